"""A camera that repeats itself is told from one that looks at a still scene."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from ingest.sameness import Sameness

S = 1_000_000_000


def night(seed: int, sigma: float = 1.0) -> np.ndarray:
    """A dark street: nothing moves but the sensor's noise."""
    texture = np.kron(np.random.default_rng(1).integers(10, 60, (45, 80)), np.ones((8, 8)))
    noise = np.random.default_rng(seed).normal(0, sigma, texture.shape)
    return np.clip(texture + noise, 0, 255).astype(np.uint8)


def coded(pictures: list[np.ndarray], **options: str) -> list[av.VideoFrame]:
    """The pictures by way of an H.264 encoder, a keyframe every 20."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=10, options={"g": "20", "preset": "veryfast", **options})
        stream.height, stream.width = pictures[0].shape
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "gray").reformat(format="yuv420p")))
        out.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as made:
        return list(made.decode(video=0))


def same_s(frames: list, level: float | None = 0.0) -> float:
    sameness = Sameness(level)
    for index, frame in enumerate(frames):
        sameness.look(frame, 1000 * S + index * S // 10)
    return sameness.same_s


def test_a_repeated_picture_is_the_same_over_keyframes() -> None:
    assert same_s(coded([night(1)] * 100, qp="30")) >= 8


@pytest.mark.parametrize("quality", [23, 30, 36])
def test_a_still_night_is_not_however_low_the_bit_rate(quality: int) -> None:
    assert same_s(coded([night(n, sigma=2) for n in range(100)], crf=str(quality))) <= 2


def test_an_encoder_that_blurs_the_same_picture_needs_a_level() -> None:
    frames = [night(1).astype(np.uint8) + (n % 20 == 0) * (np.indices((360, 640)).sum(0) % 16 == 0) for n in range(100)]
    pictures = [frame.astype(np.uint8) for frame in frames]
    assert same_s(pictures) <= 2
    assert same_s(pictures, level=0.5) >= 8


def test_it_begins_anew_with_the_first_change_and_with_another_size() -> None:
    still, other = night(1), night(2)
    assert same_s([still] * 50 + [other] * 31) == 3.0
    assert same_s([still] * 50 + [still[:180]] * 21) == 2.0


def test_it_may_be_turned_off() -> None:
    assert same_s([night(1)] * 100, level=None) == 0
