"""Zero-copy NumPy views of a decoded frame's planes, and what its pixel format means."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from av import VideoFrame
from numpy.typing import NDArray

Plane = NDArray[np.uint8]

# (horizontal, vertical) chroma subsampling of FFmpeg's 8-bit planar YUV formats. `yuvj` is the same in full range.
_SUBSAMPLING = {
    "yuv420p": (2, 2),
    "yuv422p": (2, 1),
    "yuv444p": (1, 1),
    "yuv440p": (1, 2),
    "yuv411p": (4, 1),
    "yuv410p": (4, 4),
}
_PLANAR = frozenset(_SUBSAMPLING) | {name.replace("yuv", "yuvj") for name in _SUBSAMPLING} | {"gray"}

# AVColorRange, from FFmpeg's pixfmt.h.
_MPEG_RANGE, _JPEG_RANGE = 1, 2


@dataclass(frozen=True)
class Planes:
    """Y, or Y, U and V, as views of the frame's own memory; each is (rows, columns) uint8, rows may be padded apart."""

    views: tuple[Plane, ...]
    full_range: bool  # Y and chroma use 0..255, not 16..235 and 16..240

    @property
    def luma(self) -> Plane:
        """The Y plane."""
        return self.views[0]


def planes_of(frame: VideoFrame) -> Planes | None:
    """Views of an 8-bit planar YUV or grey frame; None for any other format (packed, RGB, more bits, flipped)."""
    name = frame.format.name
    if name not in _PLANAR:
        return None
    views = []
    for plane in frame.planes:
        # A negative line size (a picture stored bottom-up) has no plain view.
        if plane.line_size < plane.width:
            return None
        rows = np.frombuffer(plane, np.uint8)  # type: ignore[call-overload]  # PyAV's planes are buffers at run time
        views.append(rows[: plane.line_size * plane.height].reshape(plane.height, plane.line_size)[:, : plane.width])
    grey = name == "gray"
    marked = frame.color_range
    full_range = marked != _MPEG_RANGE if grey else (name.startswith("yuvj") or marked == _JPEG_RANGE)
    return Planes(tuple(views), full_range)


def clockwise_turn(frame: VideoFrame) -> int:
    """How far the picture must be turned clockwise to stand upright: 0, 90, 180 or 270 degrees.

    FFmpeg gives the display matrix as a counter-clockwise angle. Angles between the quarters are left alone, as players
    do with them.
    """
    angle = -frame.rotation % 360
    return angle if angle % 90 == 0 else 0
