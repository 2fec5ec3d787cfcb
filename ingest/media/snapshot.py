"""The full-resolution picture of one frame, decoded again from the packets since its keyframe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import cast

import av
import av.error
import cv2
import numpy as np
from av import VideoFrame
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from numpy.typing import NDArray

from ingest.media.ring import Kept, StreamFormat
from wire.alerts import Alert, Box

Image = NDArray[np.uint8]

# OpenCV's quarter turns, by degrees clockwise.
_TURNS = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}
_LINE_BGR, _TEXT_BGR = (60, 200, 60), (0, 0, 0)
# At 1080p a line of three pixels and letters of about 20: seen at arm's length on a telephone.
_LINE_PER_HEIGHT, _TEXT_PER_HEIGHT = 1 / 360, 1 / 1200


def decode_frame(stream: StreamFormat, packets: Sequence[Kept], wanted: int) -> VideoFrame | None:
    """The picture of `packets[wanted]`; None when it cannot be decoded. The first packet is a keyframe.

    Costs what decoding all the packets up to it costs (a few milliseconds each at 1080p), on one core.
    """
    context = _open_decoder(stream)
    for number, kept in enumerate(packets):
        # Packets of our own: theirs belong to the camera's thread. Numbered, for the sake of those without time stamps.
        packet = Packet(bytes(kept.packet))
        packet.pts = number
        with suppress(av.error.FFmpegError, ValueError):
            found = _with_number(context.decode(packet), wanted)
            if found is not None:
                return found
    with suppress(av.error.FFmpegError, ValueError):
        return _with_number(context.decode(None), wanted)
    return None


def _open_decoder(stream: StreamFormat) -> VideoCodecContext:
    context = cast(VideoCodecContext, av.CodecContext.create(stream.codec, "r"))
    context.thread_count = 1
    context.options = dict(stream.options)
    context.width, context.height = stream.size
    if stream.pixel_format is not None:
        context.pix_fmt = stream.pixel_format
    if stream.extradata:
        context.extradata = stream.extradata
    return context


def _with_number(frames: Iterable[VideoFrame], wanted: int) -> VideoFrame | None:
    return next((frame for frame in frames if frame.pts == wanted), None)


def upright(frame: VideoFrame, turn: int) -> Image:
    """The frame as BGR (height, width, 3) uint8, turned clockwise by 0, 90, 180 or 270 degrees."""
    image = np.asarray(frame.to_ndarray(format="bgr24"), np.uint8)
    return np.asarray(cv2.rotate(image, _TURNS[turn]), np.uint8) if turn in _TURNS else image


def draw_boxes(image: Image, alert: Alert) -> None:
    """Draw the alert's objects into a BGR image, in place."""
    found: list[tuple[Box, str]] = [(each.box, f"{each.label} {each.score:.2f}") for each in alert.objects]
    if not found and alert.box is not None:
        found = [(alert.box, alert.label or "")]
    side = min(image.shape[:2])
    line = max(2, round(side * _LINE_PER_HEIGHT))
    scale = max(0.4, side * _TEXT_PER_HEIGHT)
    # The best last: it lies on top.
    for box, text in reversed(found):
        left, top = _pixel(box.left), _pixel(box.top)
        cv2.rectangle(image, (left, top), (_pixel(box.right), _pixel(box.bottom)), _LINE_BGR, line)
        (width, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        bottom = max(top, height + base)  # inside the picture, where there is no room above the box
        cv2.rectangle(image, (left, bottom - height - base), (left + width, bottom), _LINE_BGR, cv2.FILLED)
        cv2.putText(image, text, (left, bottom - base), cv2.FONT_HERSHEY_SIMPLEX, scale, _TEXT_BGR, 1, cv2.LINE_AA)


def _pixel(value: float) -> int:
    # OpenCV's coordinates are 16 bits wide in places; what lies outside is clipped all the same.
    return round(min(max(value, -16_000.0), 16_000.0))


def to_jpeg(image: Image, quality: int) -> bytes:
    """A BGR image as JPEG; quality as in libjpeg (1 to 100). Raises ValueError when it cannot be one."""
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"a picture of {image.shape[1]}x{image.shape[0]} cannot be written as JPEG")
    return data.tobytes()
