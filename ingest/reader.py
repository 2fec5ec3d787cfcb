"""Reads video with PyAV: files, RTSP, HTTP, webcams.

One thread decodes a camera (`thread_count=1`): more threads cost more CPU in total, and there are other cameras.
Every packet of the video stream is accounted for, as a picture or as a skipped frame with its cause.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import av
import av.error
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ingest.diagnose import open_error, read_error
from ingest.errors import SourceError
from ingest.frames import Delivery, Picture, Reader, Skipped
from ingest.gop import HeldPackets
from ingest.images import ImageReader
from ingest.settings import CameraSettings
from ingest.sources import Source, parse

# No codec reorders further than 16 pictures (H.264 and H.265 level limits); packets fed beyond twice that without a
# picture have been swallowed: the decoder does so silently with what comes before the first keyframe.
_MAX_DELAY = 32
# Ten seconds at 25 fps in which nothing could be decoded: connecting anew gets a fresh keyframe and parameter sets.
_HOPELESS = 250
# Measured on RTSP: opening took 1.1 s, of which 0.8 s went into guessing a frame rate that timestamps give anyway.
# `nobuffer` would open as fast, but throws the first keyframe away. A live playlist may hold a second or two only.
_PROBING = {"fpsprobesize": "0", "analyzeduration": "1000000"}
_DEBIAN_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
# HLS is silent until its next segment: players wait for three times the usual ten seconds.
_SEGMENT_LIMIT_S = 30.0
# The formats whose timestamps FFmpeg makes up from a guessed frame rate: arrival is the better clock.
_NO_CLOCK = frozenset({"mpjpeg", "mjpeg"})


def open_reader(
    settings: CameraSettings, max_pixels: int, wanted: Callable[[], bool] = lambda: True
) -> tuple[Source, Reader]:
    """Open a camera's source. While `wanted()` is false a live reader decodes nothing. Raises SourceError."""
    source = parse(settings.source, settings.live)
    if source.kind == "images":
        return source, ImageReader(source, settings.images_per_s, max_pixels)
    if source.kind == "sim":
        return source, _open_simulated(source, settings, max_pixels, wanted)
    return source, VideoReader(source, settings, max_pixels, wanted)


def _open_simulated(
    source: Source, settings: CameraSettings, max_pixels: int, wanted: Callable[[], bool]
) -> VideoReader:
    # Imported only here: most processes simulate nothing.
    from ingest.sim import SimulatedCameraError, launch

    try:
        simulated = launch(source.url)
    except (OSError, ValueError, SimulatedCameraError) as error:
        raise SourceError("simulator_failed", f"{source.shown}: {error}") from error
    try:
        stream = Source("rtsp", simulated.rtsp_url, source.live)
        return VideoReader(stream, settings, max_pixels, wanted, on_close=simulated.close)
    except BaseException:
        simulated.close()
        raise


def read_limit_s(source: Source, settings: CameraSettings) -> float:
    """How long a source may be silent before it counts as frozen (seconds)."""
    return max(settings.read_timeout_s, _SEGMENT_LIMIT_S) if source.segmented else settings.read_timeout_s


def open_options(source: Source, settings: CameraSettings, max_pixels: int) -> dict[str, str]:
    """FFmpeg's options for a source."""
    options = {"max_pixels": str(max_pixels)}
    if source.kind == "rtsp":
        options |= {
            "rtsp_transport": settings.rtsp_transport,
            "allowed_media_types": "video",
        } | _PROBING
    elif source.kind == "http":
        # A playlist from the network must not make us read local files.
        options |= {"protocol_whitelist": "http,https,tcp,tls,crypto,data"} | _PROBING
    elif source.kind == "file":
        # Nor a local playlist the network.
        options |= {"protocol_whitelist": "file,crypto,data"}
    if source.url.startswith(("https:", "rtsps:")):
        options["tls_verify"] = "1" if settings.tls_verify else "0"
        if settings.tls_verify:
            # The FFmpeg inside PyAV knows no certificate authorities; SSL_CERT_FILE is heeded here.
            options["ca_file"] = ssl.get_default_verify_paths().cafile or _DEBIAN_AUTHORITIES
    return options


class VideoReader:
    """One open video source. Raises SourceError when it cannot be opened."""

    def __init__(
        self,
        source: Source,
        settings: CameraSettings,
        max_pixels: int,
        wanted: Callable[[], bool] = lambda: True,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self.concealed = 0
        self.defect: SourceError | None = None
        self._source = source
        self._settings = settings
        self._read_limit_s = read_limit_s(source, settings)
        self._wanted = wanted
        self._on_close = on_close
        self._held = HeldPackets()
        self._fed = 0  # packets in the decoder of which no picture has come yet
        self._failed_in_a_row = 0
        self._interlaced = False
        self._asleep = False
        self._counted: set[int | None] = set()  # time stamps of frames counted while asleep, still in the decoder
        self._trouble: SourceError | None = None
        self._container = self._open(max_pixels)
        try:
            self._stream = self._choose_stream(max_pixels)
        except BaseException:
            self._container.close()
            raise
        rate = self._stream.average_rate or self._stream.guessed_rate
        # Rates beyond 240 are a container's time base mistaken for one.
        self.nominal_s = float(1 / rate) if rate and 0 < rate <= 240 else 0.04
        self._time_base = float(self._stream.time_base or 1 / 90_000)
        self._timed = self._container.format.name not in _NO_CLOCK

    def _open(self, max_pixels: int) -> InputContainer:
        source, settings = self._source, self._settings
        begun_s = time.monotonic()
        try:
            return av.open(
                source.url,
                format="v4l2" if source.kind == "webcam" else None,
                options=open_options(source, settings, max_pixels),
                # PyAV starts its read limit anew within a read: an idle camera was reported after twice the value.
                timeout=(settings.open_timeout_s, self._read_limit_s / 2),
            )
        except (av.error.FFmpegError, OSError, ValueError) as error:
            elapsed_s = time.monotonic() - begun_s
            raise open_error(error, source, settings, elapsed_s) from None

    def _choose_stream(self, max_pixels: int) -> VideoStream:
        shown = self._source.shown
        streams = self._container.streams.video
        if not streams:
            raise SourceError("no_video", f"{shown}: no video track")
        stream = streams[0]
        # PyAV's stubs do not say so, but a stream without a decoder has no codec context.
        context = getattr(stream, "codec_context", None)
        if context is None:
            raise SourceError("codec_unsupported", f"{shown}: no decoder for its video codec")
        if stream.width * stream.height > max_pixels:
            raise SourceError("too_large", f"{shown}: {stream.width}x{stream.height} is over {max_pixels} pixels")
        context.thread_count = 1
        # Also refuses, packet by packet, a stream that grows beyond it later.
        context.options = {"max_pixels": str(max_pixels)}
        return stream

    def deliveries(self) -> Iterator[Delivery]:
        """Every frame of the source once. A live source that ends raises SourceError `ended`."""
        packets = 0
        for packet in self._packets():
            packets += 1
            yield from self._handle(packet, time.monotonic_ns())
            if self._source.live and self._failed_in_a_row >= _HOPELESS:
                raise SourceError("corrupt", f"{self._source.shown}: {_HOPELESS} frames in a row could not be decoded")
        yield from self._flush()
        if self._trouble is not None:
            raise self._trouble
        if self._source.live:
            raise SourceError("ended", f"{self._source.shown}: the stream ended")
        self._check_end(packets)

    def _handle(self, packet: Packet[VideoStream], captured_ns: int) -> Iterator[Delivery]:
        keyframes_only = self._settings.profile == "keyframes"
        if self._source.live and not self._wanted():
            self._held.add(packet)
            self._asleep = True
            yield Skipped("no_model", 1)
            return
        if self._asleep:
            self._wake()
        if keyframes_only and not packet.is_keyframe:
            if not packet.is_discard:
                yield Skipped("not_keyframe", 1)
            return
        yield from self._decode(packet, captured_ns, alone=keyframes_only)

    def close(self) -> None:
        """Close the source (and its simulator); harmless to repeat."""
        self._held.take()
        try:
            self._container.close()
        finally:
            self._on_close()

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        try:
            for packet in self._container.demux(self._stream):
                # PyAV ends with an empty packet, for decoders that hold pictures back.
                if packet.size:
                    yield packet
        except (av.error.FFmpegError, OSError, ValueError) as error:
            # Raised only after the pictures that the decoder still holds.
            if not isinstance(error, av.error.EOFError):
                self._trouble = read_error(error, self._source, self._read_limit_s)

    def _decode(self, packet: Packet[VideoStream], captured_ns: int, alone: bool) -> Iterator[Delivery]:
        context = self._stream.codec_context
        try:
            frames = context.decode(packet)
            if alone:
                # A decoder that reorders would give a lone keyframe back only several keyframes later.
                frames += context.decode(None)
                context.flush_buffers()
        except (av.error.FFmpegError, ValueError):
            if alone:
                context.flush_buffers()
            self._failed_in_a_row += 1
            yield Skipped("decode_error", 1)
            return
        # A file's edit list cuts frames that the decoder needs all the same: it decodes and does not show them.
        self._fed += not packet.is_discard
        yield from self._pictures(frames, captured_ns)
        limit = 0 if alone else _MAX_DELAY
        if self._fed > limit:
            yield from self._swallowed(self._fed - limit)

    def _pictures(self, frames: list[VideoFrame], captured_ns: int) -> Iterator[Picture]:
        for frame in frames:
            if frame.pts in self._counted:
                continue  # of a packet held while asleep, given out late by a decoder that reorders
            self._fed = max(0, self._fed - 1)
            self._failed_in_a_row = 0
            self.concealed += frame.is_corrupt
            self._interlaced |= frame.interlaced_frame
            yield Picture(frame, self._pts_s(frame), captured_ns)

    def _pts_s(self, frame: VideoFrame) -> float | None:
        # Not `frame.time`: it is NaN for pictures that come out of a flush.
        return frame.pts * self._time_base if self._timed and frame.pts is not None else None

    def _swallowed(self, count: int) -> Iterator[Delivery]:
        self._fed -= count
        # Two packets of interlaced video, one a field, may make one picture: nothing is missing then.
        if count > 0 and not self._interlaced:
            self._failed_in_a_row += count
            yield Skipped("decode_error", count)

    def _flush(self) -> Iterator[Delivery]:
        """The pictures that the decoder still holds."""
        frames: list[VideoFrame] = []
        with suppress(av.error.FFmpegError, ValueError):
            frames = self._stream.codec_context.decode(None)
        yield from self._pictures(frames, time.monotonic_ns())
        yield from self._swallowed(self._fed)

    def _wake(self) -> None:
        """Decode what was held, for its references alone: those frames have been counted already."""
        self._asleep = False
        held = self._held.take()
        self._counted = {packet.pts for packet in held} - {None}
        for packet in held:
            with suppress(av.error.FFmpegError, ValueError):
                self._counted -= {frame.pts for frame in self._stream.codec_context.decode(packet)}

    def _check_end(self, packets: int) -> None:
        """Say so when a file held fewer frames than its index promised."""
        promised = self._stream.frames
        if packets == 0:
            raise SourceError("empty", f"{self._source.shown}: not one frame in it")
        # Some writers count one frame too many.
        if packets + 1 < promised:
            self.defect = SourceError(
                "corrupt", f"{self._source.shown}: ends early, {packets} of {promised} frames are there"
            )
