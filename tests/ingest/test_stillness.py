from __future__ import annotations

import numpy as np
import pytest

from ingest.stillness import Stillness

SHAPE = (360, 640)


def scene(seed: int, sigma: float = 4, light: float = 1.0) -> np.ndarray:
    """A noisy grey street."""
    rng = np.random.default_rng(seed)
    texture = np.random.default_rng(1).integers(60, 180, (SHAPE[0] // 8, SHAPE[1] // 8))
    grey = np.kron(texture, np.ones((8, 8))) * light + rng.normal(0, sigma, SHAPE)
    return np.clip(grey, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("sigma", [0, 4, 12])
def test_noise_is_still_and_a_small_figure_is_not(sigma: float) -> None:
    stillness = Stillness()
    assert stillness.changed(scene(0, sigma), 0.0) == 1.0  # all of the first picture is new
    assert not any(stillness.changed(scene(n, sigma), n * 0.5) for n in range(1, 30))
    figure = scene(99, sigma)
    figure[200:224, 300:312] = 0  # 12x24 pixels, 8x16 of a 416-pixel input
    assert 0 < stillness.changed(figure, 15.0) < 0.01


def test_a_cloud_is_still() -> None:
    stillness = Stillness()
    stillness.changed(scene(0), 0.0)
    assert not any(stillness.changed(scene(n, light=1 - n * 0.004), n * 0.5) for n in range(1, 50))


def test_what_has_stopped_is_background_after_a_few_seconds() -> None:
    stillness = Stillness()
    stillness.changed(scene(0), 0.0)
    parked = scene(1)
    parked[100:200, 100:250] = 20
    seen = [stillness.changed(parked, 0.5 * n) > 0 for n in range(1, 30)]
    assert seen[0] and not any(seen[16:])


def test_after_a_long_pause_one_look_takes_the_picture_in() -> None:
    stillness = Stillness()
    stillness.changed(scene(0), 0.0)
    parked = scene(1)
    parked[100:200, 100:250] = 60
    assert stillness.changed(parked, 20.0) and not stillness.changed(parked, 20.5)


def test_another_size_starts_anew() -> None:
    stillness = Stillness()
    stillness.changed(scene(0), 0.0)
    assert stillness.changed(np.zeros((90, 160), np.uint8), 1.0) == 1.0
    assert stillness.changed(np.zeros((90, 160), np.uint8), 2.0) == 0.0
