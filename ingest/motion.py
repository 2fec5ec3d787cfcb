"""The pixel motion gate: has anything in the picture left its background?

A frame costs about 0.1 ms, so a quiet camera spares its detector for next to nothing.
"""

from __future__ import annotations

import cv2
import numpy as np
from av import VideoFrame
from numpy.typing import NDArray

from ingest.planes import planes_of
from ingest.settings import MotionSettings

# Cells of the grid: at 64x36 a person 20 m away still covers several, and one frame's work stays under 0.1 ms.
GRID_WIDTH, GRID_HEIGHT = 64, 36
# The picture is first sampled at four points a cell side, then averaged: reading all of a 1080p plane would cost 1 ms.
_SAMPLES = 4
# The background takes on this share of each frame: a parked car is part of it after some twenty frames, a passing one
# is not, and daylight is followed.
_LEARN = 0.05


class MotionGate:
    """Decides, frame by frame, whether one camera's picture is worth detecting."""

    def __init__(self, settings: MotionSettings) -> None:
        self._settings = settings
        self._background: NDArray[np.float32] | None = None
        self._source_shape: tuple[int, ...] = ()
        self._passed_us = 0

    def passes(self, image: VideoFrame | NDArray[np.uint8], event_us: int) -> bool:
        """Whether to detect this frame: it moved, it is the first of its size, or it was quiet for max_quiet_s."""
        if not self._settings.enabled:
            return True
        shape, cells = grey_cells(image, GRID_WIDTH, GRID_HEIGHT)
        first = self._background is None or shape != self._source_shape
        moved = first or self._changed(cells) >= self._settings.min_changed
        if first:
            self._background, self._source_shape = cells, shape
        else:
            assert self._background is not None  # `first` was false
            cv2.accumulateWeighted(cells, self._background, _LEARN)
        quiet_us = event_us - self._passed_us
        if moved or not 0 <= quiet_us < self._settings.max_quiet_s * 1e6:  # below 0: event time fell
            self._passed_us = event_us
            return True
        return False

    def _changed(self, cells: NDArray[np.float32]) -> float:
        """Share of cells that left the background."""
        assert self._background is not None  # the caller saw a first frame
        difference = cv2.absdiff(cells, self._background)
        return float(np.count_nonzero(difference > self._settings.threshold)) / cells.size


def grey_cells(
    image: VideoFrame | NDArray[np.uint8], columns: int, rows: int
) -> tuple[tuple[int, ...], NDArray[np.float32]]:
    """(source shape, grid of mean grey levels): `rows` x `columns` cells over the whole picture."""
    width, height = columns * _SAMPLES, rows * _SAMPLES
    if isinstance(image, VideoFrame):
        shape: tuple[int, ...] = (image.height, image.width)
        planes = planes_of(image)
        # swscale writes the small grey picture of a format that has no plain luma plane.
        luma = planes.luma if planes else np.asarray(_small_grey(image, width, height), np.uint8)
    else:
        shape, luma = image.shape, image
    sampled = cv2.resize(luma, (width, height), interpolation=cv2.INTER_LINEAR)
    if sampled.ndim == 3:
        sampled = cv2.cvtColor(sampled, cv2.COLOR_BGR2GRAY)
    cells = cv2.resize(sampled, (columns, rows), interpolation=cv2.INTER_AREA)
    return shape, cells.astype(np.float32)


def _small_grey(frame: VideoFrame, width: int, height: int) -> NDArray[np.uint8]:
    small = frame.reformat(width, height, "gray", interpolation="BILINEAR", threads=1)
    return np.asarray(small.to_ndarray(), np.uint8)
