"""From a decoded picture of any size to the detector's input, once over the pixels.

A YUV frame's planes are resized each straight into its place in one I420 buffer: no full-size RGB picture is ever made.
Linear interpolation, because YOLOv5 was trained and is validated with it; area averaging measured 7 times slower.
Everything else (RGB, more than 8 bits, images of a folder) becomes an RGB letterbox.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from av import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from ingest.planes import Planes, planes_of
from wire.messages import InputSpec, PixelFormat

GREY = 114  # the grey that YOLOv5 pads with
# The same grey in limited-range YUV: 16 + 114 * 219 / 255 = 113.9.
_GREY_Y, _NO_COLOUR = 114, 128

_levels = np.arange(256)
# Full range (0..255) to limited: luma to 16..235, chroma to 16..240 about 128 (ITU-T H.273).
_LUMA_TO_LIMITED = np.rint(16 + _levels * 219 / 255).astype(np.uint8)
_CHROMA_TO_LIMITED = np.rint(128 + (_levels - 128) * 224 / 255).astype(np.uint8)

_CV_TURN = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


@dataclass(frozen=True)
class Fit:
    """Where an upright source picture lies in its letterbox; all in pixels of the letterbox, offsets and sizes even.

    A source point (x, y) lies at (x * scale + left, y * scale + top), but for less than a pixel of rounding.
    """

    height: int
    width: int
    inner_height: int
    inner_width: int
    top: int
    left: int
    scale: float


def fit(source_height: int, source_width: int, spec: InputSpec) -> Fit:
    """The letterbox of a source size under a detector's spec: never stretched, small pictures enlarged, centred.

    Rectangular specs get the smallest height and width that are multiples of the stride.
    """
    scale = min(spec.height / source_height, spec.width / source_width)
    inner_height = _even(source_height * scale, spec.height)
    inner_width = _even(source_width * scale, spec.width)
    height, width = spec.height, spec.width
    if spec.rectangular:
        height = min(height, -(-inner_height // spec.stride) * spec.stride)
        width = min(width, -(-inner_width // spec.stride) * spec.stride)
    # Even offsets: chroma of 4:2:0 then lies exactly under its luma.
    top, left = (height - inner_height) // 2 & ~1, (width - inner_width) // 2 & ~1
    return Fit(height, width, inner_height, inner_width, top, left, scale)


def target_shape(source_height: int, source_width: int, spec: InputSpec) -> tuple[int, int]:
    """(height, width) of the letterbox of a source size."""
    box = fit(source_height, source_width, spec)
    return box.height, box.width


def _even(length: float, limit: int) -> int:
    return max(2, min(2 * round(length / 2), limit - limit % 2))


@dataclass(frozen=True)
class Letterboxed:
    """Pixels for the wire (fresh memory, uint8, C-contiguous) and where the picture lies in them."""

    pixels: NDArray[np.uint8]
    pixel_format: PixelFormat
    source_height: int  # of the upright picture
    source_width: int
    box: Fit


class Letterboxer:
    """Makes letterboxes for one camera; keeps the geometry of the last size and swscale's tables."""

    def __init__(self) -> None:
        self._key: tuple[int, int, InputSpec] | None = None
        self._box: Fit | None = None
        self._scaler = VideoReformatter()

    def frame(self, frame: VideoFrame, turn: int, spec: InputSpec) -> Letterboxed:
        """A decoded frame, turned clockwise by 0, 90, 180 or 270 degrees."""
        height, width = _turned(frame.height, frame.width, turn)
        box = self._fit(height, width, spec)
        planes = planes_of(frame)
        # Odd shapes have no I420 form.
        if planes is not None and not (box.height % 2 or box.width % 2):
            return Letterboxed(_i420(planes, box, turn), "i420", height, width, box)
        small_height, small_width = _turned(box.inner_height, box.inner_width, turn)
        small = self._scaler.reformat(frame, small_width, small_height, "rgb24", interpolation="BILINEAR", threads=1)
        # PyAV's stubs give the union over all formats; rgb24 is uint8.
        rgb = _rgb(cast("NDArray[np.uint8]", small.to_ndarray()), box, turn)
        return Letterboxed(rgb, "rgb24", height, width, box)

    def image(self, bgr: NDArray[np.uint8], turn: int, spec: InputSpec) -> Letterboxed:
        """An upright BGR image (height, width, 3) as OpenCV decodes it, turned clockwise."""
        height, width = _turned(bgr.shape[0], bgr.shape[1], turn)
        box = self._fit(height, width, spec)
        small_height, small_width = _turned(box.inner_height, box.inner_width, turn)
        small = cv2.resize(bgr, (small_width, small_height), interpolation=cv2.INTER_LINEAR)
        # Colours are swapped after the resize: on a tenth of the pixels.
        rgb = np.asarray(cv2.cvtColor(small, cv2.COLOR_BGR2RGB), np.uint8)
        return Letterboxed(_rgb(rgb, box, turn), "rgb24", height, width, box)

    def _fit(self, height: int, width: int, spec: InputSpec) -> Fit:
        key = (height, width, spec)
        if self._box is None or self._key != key:
            self._key, self._box = key, fit(height, width, spec)
        return self._box


def _turned(height: int, width: int, turn: int) -> tuple[int, int]:
    return (width, height) if turn in {90, 270} else (height, width)


def _i420(planes: Planes, box: Fit, turn: int) -> NDArray[np.uint8]:
    buffer = np.empty((box.height * 3 // 2, box.width), np.uint8)
    half_height, half_width = box.height // 2, box.width // 2
    chroma = buffer[box.height :].reshape(2, half_height, half_width)
    luma_at = (box.top, box.left, box.inner_height, box.inner_width)
    chroma_at = (box.top // 2, box.left // 2, box.inner_height // 2, box.inner_width // 2)
    full = planes.full_range
    _place(planes.luma, buffer[: box.height], luma_at, turn, pad=_GREY_Y, levels=_LUMA_TO_LIMITED if full else None)
    if len(planes.views) == 1:
        chroma[:] = _NO_COLOUR
    else:
        for view, out in zip(planes.views[1:], chroma, strict=True):
            _place(view, out, chroma_at, turn, pad=_NO_COLOUR, levels=_CHROMA_TO_LIMITED if full else None)
    return buffer


def _rgb(small: NDArray[np.uint8], box: Fit, turn: int) -> NDArray[np.uint8]:
    out = np.empty((box.height, box.width, 3), np.uint8)
    _place(small, out, (box.top, box.left, box.inner_height, box.inner_width), turn, pad=GREY, levels=None)
    return out


def _place(
    source: NDArray[np.uint8],
    out: NDArray[np.uint8],
    at: tuple[int, int, int, int],
    turn: int,
    *,
    pad: int,
    levels: NDArray[np.uint8] | None,
) -> None:
    """Resize `source` into out[top:top+height, left:left+width], turned, its levels mapped; pad around it."""
    top, left, height, width = at
    out[:top] = pad
    out[top + height :] = pad
    out[top : top + height, :left] = pad
    out[top : top + height, left + width :] = pad
    inner = out[top : top + height, left : left + width]
    if turn:
        small = cv2.resize(source, _turned(width, height, turn), interpolation=cv2.INTER_LINEAR)
        cv2.rotate(small, _CV_TURN[turn], dst=inner)
    else:
        cv2.resize(source, (width, height), dst=inner, interpolation=cv2.INTER_LINEAR)
    if levels is not None:
        cv2.LUT(inner, levels, dst=inner)
