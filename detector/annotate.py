"""Draw detections on a picture."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import cv2
from numpy.typing import NDArray

from wire.messages import Detection

_GOLDEN = 0.618034  # steps of the golden ratio round the colour circle keep any number of classes apart
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw(bgr: NDArray[Any], detections: Sequence[Detection]) -> None:
    """Draw boxes, class names and scores into a uint8 BGR picture (height, width, 3), in place.

    Lines and letters grow with the picture, so they can be read on any size.
    """
    height, width = bgr.shape[:2]
    line = max(round((height + width) / 800), 1)
    size = max((height + width) / 2400, 0.4)
    for detection in detections:
        left, top, right, bottom = (round(edge) for edge in detection.box)
        colour = _colour(detection.class_id)
        cv2.rectangle(bgr, (left, top), (right, bottom), colour, line)
        text = f"{detection.label} {detection.score:.2f}"
        (text_width, text_height), below = cv2.getTextSize(text, _FONT, size, line)
        # Above the box where there is room, else inside it.
        base = top - below if top >= text_height + 2 * below else top + text_height + below
        cv2.rectangle(bgr, (left, base - text_height - below), (left + text_width, base + below), colour, cv2.FILLED)
        cv2.putText(bgr, text, (left, base), _FONT, size, (0, 0, 0), line, cv2.LINE_AA)


def _colour(class_id: int) -> tuple[int, int, int]:
    """A bright BGR colour for a class, the same every time."""
    red, green, blue = colorsys.hsv_to_rgb(class_id * _GOLDEN % 1, 0.65, 1.0)
    return round(blue * 255), round(green * 255), round(red * 255)
