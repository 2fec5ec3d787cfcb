"""Pictures of a batch with their boxes in one image: the quickest way to see that data and labels are right."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from trainer.metrics import CONFUSION_CONFIDENCE, Found, Truth

_MAX_PICTURES = 16  # four by four, as YOLOv5 shows them
_MAX_SIDE = 1920  # pixels of the whole; larger is slow to open and shows no more
_GREY = 114  # between pictures, as letterboxed borders


def truths_of(rows: NDArray[Any], pictures: int, height: int, width: int) -> list[Truth]:
    """A training batch's labels, (n, 6) picture, class, cx, cy, w, h as fractions, as boxes in pixels by picture."""
    truths = []
    for number in range(pictures):
        mine = rows[rows[:, 0] == number]
        centres, sides = mine[:, 2:4], mine[:, 4:6]
        boxes = np.hstack([centres - sides / 2, centres + sides / 2]) * (width, height, width, height)
        truths.append(Truth(boxes, mine[:, 1].astype(np.int64)))
    return truths


def draw_batch(pictures: NDArray[np.uint8], marks: Sequence[Truth | Found], names: Sequence[str], path: Path) -> None:
    """Write the first pictures of a batch, (b, 3, h, w) RGB, side by side, with boxes in their pixels, to .jpg or .png.

    Of detections those are drawn that a person would be shown. Raises OSError where the file cannot be written.
    """
    if len(pictures) != len(marks):
        raise ValueError(f"{len(pictures)} pictures, but boxes for {len(marks)}")
    shown = pictures[:_MAX_PICTURES]
    columns = max(1, math.ceil(math.sqrt(len(shown))))
    lines = max(1, math.ceil(len(shown) / columns))
    height, width = pictures.shape[2:]
    scale = min(1.0, _MAX_SIDE / max(columns * width, lines * height))
    high, wide = max(1, round(height * scale)), max(1, round(width * scale))
    canvas = np.full((lines * high, columns * wide, 3), _GREY, np.uint8)
    for number, picture in enumerate(shown):
        tile = cv2.resize(picture.transpose(1, 2, 0)[:, :, ::-1], (wide, high), interpolation=cv2.INTER_AREA)
        _draw(tile, marks[number], names, (wide / width, high / height))
        cv2.rectangle(tile, (0, 0), (wide - 1, high - 1), (255, 255, 255), 1)
        top, left = number // columns * high, number % columns * wide
        canvas[top : top + high, left : left + wide] = tile
    path.parent.mkdir(parents=True, exist_ok=True)
    written, data = cv2.imencode(path.suffix, canvas)
    if not written:
        raise OSError(f"{path}: could not be encoded as {path.suffix}")
    path.write_bytes(data.tobytes())


def _draw(tile: NDArray[np.uint8], marks: Truth | Found, names: Sequence[str], scale: tuple[float, float]) -> None:
    scores = marks.scores if isinstance(marks, Found) else None
    for row, (box, number) in enumerate(zip(marks.boxes, marks.classes, strict=True)):
        if scores is not None and scores[row] < CONFUSION_CONFIDENCE:
            continue
        label = names[int(number)] if scores is None else f"{names[int(number)]} {scores[row]:.2f}"
        color = _color(int(number))
        x1, y1, x2, y2 = np.rint(np.asarray(box, np.float64) * (*scale, *scale)).astype(int).tolist()
        cv2.rectangle(tile, (x1, y1), (x2, y2), color, 2)
        (text_width, text_height), _ = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, 0.4, 1)
        base = max(y1, text_height + 4)  # inside the picture also where the box touches its upper edge
        cv2.rectangle(tile, (x1, base - text_height - 4), (x1 + text_width + 2, base), color, cv2.FILLED)
        cv2.putText(tile, label, (x1 + 1, base - 3), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)


def _color(number: int) -> tuple[int, int, int]:
    """Blue, green, red of a class; not too light, for white words upon it."""
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1.0, 1.0, 0.75)
    return round(blue * 255), round(green * 255), round(red * 255)
