"""An MP4 of a camera's own packets: a new container around them, nothing is encoded again."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import av
import av.error
from av.packet import Packet

from ingest.media.ring import Kept, StreamFormat


class ClipError(RuntimeError):
    """A clip cannot be written: its container does not take the codec, or its packets."""


class ClipWriter:
    """Writes one clip. The first packet must be a keyframe. Raises ClipError, or OSError for trouble with the disk."""

    def __init__(self, path: Path, stream: StreamFormat) -> None:
        if stream.template is None:
            raise ClipError(f"the codec {stream.codec} cannot be put into a container")
        self._time_base = stream.time_base
        self._first_pts: int | None = None
        self._leading = True  # in the first group, where pictures may be shown before the keyframe
        self._first_dts = 0
        self._last_dts: int | None = None
        self._container = av.open(str(path), "w", format="mp4")
        try:
            self._stream = self._container.add_stream_from_template(stream.template, opaque=True)
        except ValueError as error:
            self._container.close()
            raise ClipError(f"MP4 does not take the codec {stream.codec}") from error

    def write(self, packets: Iterable[Kept]) -> None:
        """Add packets, in the order in which they came."""
        try:
            for kept in packets:
                if not self._is_leading(kept):
                    self._container.mux_one(self._copy(kept))
        except (av.error.FFmpegError, ValueError) as error:
            raise _sorted_out(error) from error

    def close(self) -> None:
        """Complete the file."""
        try:
            self._container.close()
        except (av.error.FFmpegError, ValueError) as error:
            raise _sorted_out(error) from error

    def abort(self) -> None:
        """Give up a file that need not be complete."""
        with suppress(av.error.FFmpegError, OSError, ValueError):
            self._container.close()

    def _is_leading(self, kept: Kept) -> bool:
        """Whether it refers to pictures before the clip: it could only be shown as garbage."""
        packet = kept.packet
        if packet.is_keyframe:
            self._leading = self._last_dts is None
            if self._leading:
                self._first_pts = packet.pts
        first_pts = self._first_pts
        return self._leading and packet.pts is not None and first_pts is not None and packet.pts < first_pts

    def _copy(self, kept: Kept) -> Packet:  # type: ignore[type-arg]  # of no stream yet
        """A packet of the clip. The ring's own are used by others, and muxing changes a packet's times and stream."""
        source = kept.packet
        dts = source.dts if source.dts is not None else source.pts
        if self._last_dts is None:
            self._first_dts = dts or 0
        # RTSP cameras leave the first few packets without time stamps, and MP4 wants decoding times that rise.
        dts = None if dts is None else dts - self._first_dts
        if dts is None or (self._last_dts is not None and dts <= self._last_dts):
            dts = 0 if self._last_dts is None else self._last_dts + 1
        self._last_dts = dts
        packet = Packet(bytes(source))
        packet.time_base = self._time_base
        packet.dts = dts
        packet.pts = dts if source.pts is None else max(dts, source.pts - self._first_dts)
        if source.duration:
            packet.duration = source.duration
        packet.is_keyframe = source.is_keyframe
        packet.stream = self._stream
        return packet


def _sorted_out(error: Exception) -> Exception:
    # PyAV's error classes for a system's errors are Python's OSErrors as well; FFmpeg's own are not.
    return OSError(*error.args[:2]) if isinstance(error, OSError) else ClipError(str(error))
