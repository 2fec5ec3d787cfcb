from __future__ import annotations

import av
import numpy as np
import pytest

from ingest.motion import MotionGate
from ingest.settings import MotionSettings

FRAME_US = 40_000


def scene(seed: int, person_at: int | None = None, shape: tuple[int, int] = (360, 640), light: int = 0) -> np.ndarray:
    """A noisy grey street, with a dark figure 16x48 pixels in it."""
    rows, columns = shape
    noise = np.random.default_rng(seed).normal(0, 4, shape)
    grey = np.clip(120 + light + np.linspace(-40, 40, columns)[None] + noise, 0, 255).astype(np.uint8)
    if person_at is not None:
        grey[rows // 2 : rows // 2 + 48, person_at : person_at + 16] = 20
    return grey


def as_frame(grey: np.ndarray, name: str) -> av.VideoFrame | np.ndarray:
    rgb = np.repeat(grey[..., None], 3, 2)
    return rgb if name == "image" else av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(format=name)


@pytest.mark.parametrize("name", ["yuv420p", "yuvj422p", "yuv420p10le", "rgb24", "image"])
def test_a_person_walking_passes_and_noise_does_not(name: str) -> None:
    gate = MotionGate(MotionSettings(enabled=True, max_quiet_s=3600))
    assert gate.passes(as_frame(scene(0), name), 0)  # the first frame always does
    assert not any(gate.passes(as_frame(scene(n), name), n * FRAME_US) for n in range(1, 30))
    walking = [gate.passes(as_frame(scene(n, 100 + 4 * n), name), n * FRAME_US) for n in range(30, 60)]
    assert all(walking)


def test_one_frame_passes_every_max_quiet_s() -> None:
    gate = MotionGate(MotionSettings(enabled=True, max_quiet_s=1))
    frame = as_frame(scene(0), "yuv420p")
    passed = [n for n in range(100) if gate.passes(frame, n * FRAME_US)]
    assert passed == [0, 25, 50, 75]


def test_what_stays_becomes_background() -> None:
    gate = MotionGate(MotionSettings(enabled=True, max_quiet_s=3600))
    gate.passes(scene(0), 0)
    parked = [gate.passes(scene(n, 100), n * FRAME_US) for n in range(1, 100)]
    assert all(parked[:10]) and not any(parked[70:])


def test_slow_daylight_is_no_motion() -> None:
    gate = MotionGate(MotionSettings(enabled=True, max_quiet_s=3600))
    gate.passes(scene(0), 0)
    assert not any(gate.passes(scene(n, light=n // 10), n * FRAME_US) for n in range(1, 150))


def test_another_picture_size_starts_anew() -> None:
    gate = MotionGate(MotionSettings(enabled=True, max_quiet_s=3600))
    gate.passes(scene(0), 0)
    assert gate.passes(scene(0, shape=(1, 1)), 1)
    assert not gate.passes(scene(0, shape=(1, 1)), 2)


def test_switched_off_it_passes_all() -> None:
    gate = MotionGate(MotionSettings(enabled=False))
    assert all(gate.passes(scene(0), n) for n in range(5))
