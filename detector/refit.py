"""Frames that were letterboxed for another model, fitted to this one.

While workers change models, and for a moment after, frames made for the old model's input reach workers with the new
one, and the other way round. None of them is lost: its picture is cut out of its letterbox and put into the right one.
"""

from __future__ import annotations

import math

import cv2
import msgspec
import numpy as np

from detector.errors import BadFrame
from detector.preprocess import GREY, Pixels
from wire.messages import FrameHeader, InputSpec


def is_fitted(header: FrameHeader, spec: InputSpec) -> bool:
    """Whether the frame has the shape and scale that `spec` gives a source of its size.

    A header that makes no sense counts as fitted: whoever reads the pixels refuses it.
    """
    if not (0 < header.scale < math.inf) or header.source_height < 1 or header.source_width < 1:
        return True
    height, width, *_ = _shape(header, spec)
    return (header.height, header.width) == (height, width) and math.isclose(header.scale, _scale(header, spec))


def refit(header: FrameHeader, pixels: memoryview | Pixels, spec: InputSpec) -> tuple[FrameHeader, Pixels]:
    """The same picture as `spec` wants it, as RGB (height, width, 3).

    Raises BadFrame where header and pixels disagree.
    """
    try:
        return _refit(header, pixels, spec)
    except (ValueError, cv2.error) as error:  # what NumPy and OpenCV say of sizes that cannot be
        raise BadFrame(f"camera {header.camera}: the picture does not lie where its header says: {error}") from error


def _refit(header: FrameHeader, pixels: memoryview | Pixels, spec: InputSpec) -> tuple[FrameHeader, Pixels]:
    flat = np.frombuffer(pixels, np.uint8) if isinstance(pixels, memoryview) else pixels.reshape(-1)
    if header.pixel_format == "i420":
        planes = flat.reshape(header.height * 3 // 2, header.width)
        rgb = np.asarray(cv2.cvtColor(planes, cv2.COLOR_YUV2RGB_I420), np.uint8)
    else:
        rgb = flat.reshape(header.height, header.width, 3)
    inner = rgb[
        header.pad_top : header.pad_top + max(1, round(header.source_height * header.scale)),
        header.pad_left : header.pad_left + max(1, round(header.source_width * header.scale)),
    ]
    height, width, inner_height, inner_width = _shape(header, spec)
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    boxed: Pixels = np.full((height, width, 3), GREY, np.uint8)
    cv2.resize(inner, (inner_width, inner_height), dst=boxed[top : top + inner_height, left : left + inner_width])
    changed = msgspec.structs.replace(
        header,
        pixel_format="rgb24",
        height=height,
        width=width,
        scale=_scale(header, spec),
        pad_left=left,
        pad_top=top,
        slot=None,
    )
    return changed, boxed


def fitted_shape(header: FrameHeader, spec: InputSpec) -> tuple[int, int]:
    """(height, width) that frames of this source have under `spec`."""
    height, width, *_ = _shape(header, spec)
    return height, width


def _scale(header: FrameHeader, spec: InputSpec) -> float:
    return min(spec.height / header.source_height, spec.width / header.source_width)


def _shape(header: FrameHeader, spec: InputSpec) -> tuple[int, int, int, int]:
    """Height and width of the letterbox, then of the picture in it; the rounding is that of whoever sends frames."""
    scale = _scale(header, spec)
    inner_height = _even(header.source_height * scale, spec.height)
    inner_width = _even(header.source_width * scale, spec.width)
    height, width = spec.height, spec.width
    if spec.rectangular:
        height = min(height, -(-inner_height // spec.stride) * spec.stride)
        width = min(width, -(-inner_width // spec.stride) * spec.stride)
    return height, width, inner_height, inner_width


def _even(length: float, limit: int) -> int:
    # Chroma of 4:2:0 is halved, so pictures have even sides on the wire.
    return max(2, min(2 * round(length / 2), limit - limit % 2))
