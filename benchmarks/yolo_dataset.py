"""A labelled folder in YOLO's format: `images/NAME.jpg` and `labels/NAME.txt` with lines `class cx cy w h` in 0..1."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.average_precision import Truth

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
# An object of which a crop leaves less than this share cannot be asked for.
_LEFT_BY_CROP = 0.5

Picture = NDArray[np.uint8]


class BadDataset(Exception):
    """The folder or one of its labels is not in YOLO's format; the message says where."""


def image_paths(folder: Path) -> list[Path]:
    """The pictures of `folder/images`, sorted by name; raises BadDataset."""
    paths = sorted(path for path in (folder / "images").rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise BadDataset(f"{folder / 'images'} holds no picture ({', '.join(sorted(_SUFFIXES))})")
    return paths


def pictures(folder: Path, aspect: float | None) -> Iterator[tuple[Picture, Truth]]:
    """Each picture as BGR with its objects; with an aspect (width / height), its middle cut to that form."""
    for path in image_paths(folder):
        picture: Any = cv2.imread(str(path))
        if picture is None:
            raise BadDataset(f"{path}: not a picture that OpenCV reads")
        label = folder / "labels" / path.relative_to(folder / "images").with_suffix(".txt")
        truth = read_label(label, *picture.shape[:2])
        yield cut(picture, truth, aspect) if aspect else (picture, truth)


def read_label(path: Path, height: int, width: int) -> Truth:
    """Objects of a picture of this size; no file: none. Raises BadDataset."""
    rows = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            row = [float(field) for field in fields]
        except ValueError:
            row = []
        if len(row) != 5:
            raise BadDataset(f"{path}:{number}: expected `class cx cy w h`, found {line!r}")
        rows.append(row)
    table = np.array(rows, np.float64).reshape(-1, 5)
    centres, halves = table[:, 1:3], table[:, 3:5] / 2
    sizes = np.array([width, height, width, height], np.float64)
    corners = np.concatenate([centres - halves, centres + halves], axis=1) * sizes
    return Truth(corners, table[:, 0].astype(np.int64))


def cut(picture: Picture, truth: Truth, aspect: float) -> tuple[Picture, Truth]:
    """The largest middle part of width / height = `aspect`; objects cut to it, and left out where little remains."""
    height, width = picture.shape[:2]
    new_height, new_width = min(height, round(width / aspect)), min(width, round(height * aspect))
    top, left = (height - new_height) // 2, (width - new_width) // 2
    boxes = np.clip(truth.boxes - (left, top, left, top), 0, (new_width, new_height) * 2)
    kept = _area(boxes) >= _LEFT_BY_CROP * _area(truth.boxes)
    part = picture[top : top + new_height, left : left + new_width]
    return np.ascontiguousarray(part), Truth(boxes[kept], truth.classes[kept])


def _area(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    area: NDArray[np.float64] = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return area
