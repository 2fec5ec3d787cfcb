"""Does a camera go on sending the same picture? An encoder whose sensor has stopped does, and looks alive.

A sensor's noise makes every picture differ a little, also at night: low bit rates smooth it away between keyframes, but
each keyframe is coded anew. So pictures that stay bit for bit the same over many keyframes come from no sensor. Some
encoders code even one and the same picture a little differently each time; for these a level can be set.
"""

from __future__ import annotations

import cv2
import numpy as np
from av import VideoFrame
from numpy.typing import NDArray

from ingest.motion import grey_cells
from ingest.planes import planes_of

# A sensor that stops is not news of this second: one look a second costs a camera of 1080p about 0.03 ms.
LOOK_EVERY_NS = 1_000_000_000
# Of each side one pixel in so many is looked at: noise is everywhere, 32,000 pixels of 1080p do not miss it.
_EVERY = 8


class Sameness:
    """For how long one camera's picture has been the same. One thread uses it, any may read `same_s`."""

    def __init__(self, level: float | None) -> None:
        """`level`: grey levels by which pictures that are the same may differ, on average; None: never look."""
        self._level = level
        self._first: NDArray[np.uint8] | None = None  # of those that are the same
        self._first_ns = self._looked_ns = 0

    @property
    def same_s(self) -> float:
        """How long it has been, as of the newest picture (seconds)."""
        return (self._looked_ns - self._first_ns) / 1e9

    def look(self, image: VideoFrame | NDArray[np.uint8], captured_ns: int) -> None:
        """Take a decoded picture in."""
        if self._level is None or (self._first is not None and captured_ns - self._looked_ns < LOOK_EVERY_NS):
            return
        # Compared with the first one and not with the last, so that a slow change is a change.
        picture = _sample(image)
        if self._first is None or not self._same(picture):
            self._first, self._first_ns = picture, captured_ns
        self._looked_ns = captured_ns

    def _same(self, picture: NDArray[np.uint8]) -> bool:
        assert self._first is not None and self._level is not None  # the caller saw a first picture
        if picture.shape != self._first.shape:
            return False
        return float(np.mean(cv2.absdiff(picture, self._first))) <= self._level


def _sample(image: VideoFrame | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Some of its grey pixels, as a copy."""
    if not isinstance(image, VideoFrame):
        return image[::_EVERY, ::_EVERY].copy()
    planes = planes_of(image)
    if planes is not None:
        return planes.luma[::_EVERY, ::_EVERY].copy()
    _, cells = grey_cells(image, image.width // _EVERY, image.height // _EVERY)
    return cells.astype(np.uint8)
