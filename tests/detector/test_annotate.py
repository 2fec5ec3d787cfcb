"""Drawn detections are where they should be, on pictures of any size."""

from __future__ import annotations

import numpy as np
import pytest

from detector.annotate import draw
from wire.messages import Detection


def test_a_box_is_drawn_on_its_edges_and_not_inside() -> None:
    picture = np.zeros((200, 300, 3), np.uint8)
    draw(picture, [Detection("cat", 0, 0.9, (100.0, 80.0, 180.0, 160.0))])
    assert picture[160, 140].any() and picture[120, 100].any() and picture[120, 180].any()
    assert not picture[120, 140].any()
    assert picture[60:80, 100:180].any()  # the name, above the box


def test_classes_have_colours_of_their_own() -> None:
    colours = set()
    for number in range(20):
        picture = np.zeros((50, 50, 3), np.uint8)
        draw(picture, [Detection("", number, 0.5, (5.0, 30.0, 45.0, 45.0))])
        colours.add(tuple(picture[45, 40].tolist()))
    assert len(colours) == 20


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 3000, 3), (4320, 7680, 3)])
def test_any_size_can_be_drawn_on(shape: tuple[int, ...]) -> None:
    picture = np.zeros(shape, np.uint8)
    draw(picture, [Detection("ein Schläfer", 3, 0.5, (0.0, 0.0, float(shape[1]), float(shape[0])))])
    assert picture.any()
