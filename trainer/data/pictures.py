"""Pictures at training size with their objects, from memory as far as they fit there, else from disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from trainer.data.labels import Labels, label_path, read_labels
from trainer.errors import DataError

Image = NDArray[np.uint8]

# 2471 pictures of 416x416 take 1.3 GB; more than this would leave a small machine too little for the training itself.
CACHE_BYTES = 2 << 30


def read_image(path: Path) -> Image | None:
    """The picture of a file as `decode_image` gives it; None as well where the file cannot be read."""
    try:
        # Not cv2.imread: a file's name that is no UTF-8 ends the whole process there.
        data = path.read_bytes()
    except (OSError, ValueError):  # ValueError: a NUL in a list's line
        return None
    return decode_image(data)


def decode_image(data: bytes) -> Image | None:
    """A picture file's bytes as BGR, turned upright as its EXIF says, as labelling tools show it; None: no picture."""
    if not data:
        return None
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # more pixels than OpenCV reads, or than memory holds, as a broken header may claim
        return None
    return None if pixels is None else np.asarray(pixels, np.uint8)


class Pictures:
    """The pictures of one split. `load` may be called from several threads and, after a fork, processes."""

    def __init__(
        self, paths: Sequence[Path], labels: Sequence[Labels], img_size: int, *, shrink: int = cv2.INTER_LINEAR
    ) -> None:
        """`labels` are as read_labels gives them. `shrink` is how larger pictures are made smaller: INTER_LINEAR as
        YOLOv5 trains and the live path works, INTER_AREA as YOLOv5 validates. Smaller ones are enlarged linearly."""
        if len(paths) != len(labels):
            raise ValueError(f"{len(paths)} pictures, but {len(labels)} labels")
        self.paths = tuple(paths)
        self.labels = tuple(labels)
        self.img_size = img_size
        self._shrink = shrink
        self._cached: list[Image | None] = [None] * len(paths)
        self._sizes: list[tuple[int, int] | None] = [None] * len(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> tuple[Image, Labels]:
        """BGR uint8 (h, w, 3) with its longer side `img_size` (treat as read-only), and its objects as float32 (n, 5):
        class, x1 y1 x2 y2 in its pixels. Raises DataError when the picture cannot be read."""
        picture = self._cached[index]
        if picture is None:
            picture = self._read(index)
        height, width = picture.shape[:2]
        rows = self.labels[index]
        boxes = np.empty_like(rows)
        boxes[:, 0] = rows[:, 0]
        half = rows[:, 3:5] / 2
        boxes[:, 1:3] = (rows[:, 1:3] - half) * (width, height)
        boxes[:, 3:5] = (rows[:, 1:3] + half) * (width, height)
        return picture, boxes

    def original_size(self, index: int) -> tuple[int, int]:
        """(height, width) of the picture as it is on disk."""
        size = self._sizes[index]
        if size is None:
            self._read(index)
            size = self._sizes[index]
        assert size is not None
        return size

    def fill(self, limit_bytes: int = CACHE_BYTES, each: Callable[[], None] = lambda: None) -> int:
        """Read all pictures once, and keep the first `limit_bytes` of them in memory; returns how many. `each` is
        called after each one, for a progress bar. Before worker processes are forked, so that they share the memory;
        a picture that cannot be read is a DataError here and not in the middle of an epoch."""
        kept = used = 0
        # OpenCV decodes without Python's lock, so threads help.
        with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
            for index, picture in enumerate(pool.map(self._read, range(len(self)))):
                if used + picture.nbytes <= limit_bytes:
                    self._cached[index] = picture
                    used += picture.nbytes
                    kept += 1
                each()
        return kept

    def _read(self, index: int) -> Image:
        path = self.paths[index]
        picture = read_image(path)
        if picture is None:
            raise DataError(f"{path}: missing, or not a picture; `sparsecam data check` lists all that is wrong")
        height, width = picture.shape[:2]
        self._sizes[index] = (height, width)
        scale = self.img_size / max(height, width)
        if scale == 1:
            return picture
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        how = self._shrink if scale < 1 else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(picture, size, interpolation=how), np.uint8)


def open_pictures(
    paths: Sequence[Path],
    classes: int,
    img_size: int,
    *,
    training: bool,
    cache_bytes: int = CACHE_BYTES,
    each: Callable[[], None] = lambda: None,
) -> Pictures:
    """Pictures with the labels that lie beside them, read into memory as `fill` does; raises DataError."""
    if not paths:
        raise DataError("no pictures; `sparsecam data check` says what a data set wants")
    labels = [read_labels(label_path(path), classes) for path in paths]
    pictures = Pictures(paths, labels, img_size, shrink=cv2.INTER_LINEAR if training else cv2.INTER_AREA)
    pictures.fill(cache_bytes, each)
    return pictures
