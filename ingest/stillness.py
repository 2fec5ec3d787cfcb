"""Is a decoded picture still the quiet scene? Finer than the motion gate, and looked at a few times a second only.

It decides whether a camera may sleep and whether an alarm of the packet sizes is true, so it must see whatever a
detector could: no smaller share of the picture than a few of 128x72 cells.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from av import VideoFrame
from numpy.typing import NDArray

from ingest.motion import grey_cells

# Twice the motion gate's grid each way: a cell is 15 pixels of 1080p, 5 of a 640-pixel input; about 0.3 ms a look.
COLUMNS, ROWS = 128, 72
# Three cells are about 10x10 pixels of a 416-pixel input: the smallest thing that detectors of that size find.
MIN_CELLS = 3
# Grey levels. A cell is the mean of 16 samples, so sensor noise of 8 levels moves it by 2; people in dark clothes on
# dark ground differ by 15 and more.
_LEAST, _MOST = 10.0, 30.0
_DEVIATIONS = 6.0  # of the cells' own scatter, for cameras that are noisier than that
_SOME = 7  # a median of every seventh cell is as good, at a seventh of the time; prime to the columns
# The background follows with this time constant (seconds): short against a quiet spell, so that what has stopped is
# part of it within three; long against the step of someone who walks slowly.
_FOLLOW_S = 1.0


class Stillness:
    """One camera's background, and how far a picture leaves it. One thread uses it."""

    def __init__(self) -> None:
        self._background: NDArray[np.float32] | None = None
        self._source_shape: tuple[int, ...] = ()
        self._seen_s = 0.0

    def changed(self, image: VideoFrame | NDArray[np.uint8], time_s: float) -> float:
        """Share of the picture (0..1) that left the background; 0 when too little for anything to be there.

        The background then takes the picture in, the more the longer the last one is past. The first picture of a size
        is the background.
        """
        shape, cells = grey_cells(image, COLUMNS, ROWS)
        past_s, self._seen_s = time_s - self._seen_s, time_s
        if self._background is None or shape != self._source_shape:
            self._background, self._source_shape = cells, shape
            return 1.0
        difference = cells - self._background
        cv2.accumulateWeighted(cells, self._background, 1.0 - math.exp(-max(0.0, past_s) / _FOLLOW_S))
        return _share(difference)


def _share(difference: NDArray[np.float32]) -> float:
    # A cloud, or the camera's exposure, moves all cells alike.
    distance = np.abs(difference - np.median(difference.flat[::_SOME]))
    scatter = 1.4826 * float(np.median(distance.flat[::_SOME]))
    limit = min(max(_LEAST, _DEVIATIONS * scatter), _MOST)
    count = int(np.count_nonzero(distance > limit))
    return count / distance.size if count >= MIN_CELLS else 0.0
