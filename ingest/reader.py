"""Reads video with PyAV: files, RTSP, HTTP, webcams.

One thread decodes a camera (`thread_count=1`): more threads cost more CPU in total, and there are other cameras.
Every packet of the video stream is accounted for, as a picture or as a skipped frame with its cause.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator

import av
import av.error
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from ingest.adaptive import SEND_HELD_S, Adaptive
from ingest.decoder import Decoder
from ingest.diagnose import open_error, read_error
from ingest.errors import SourceError
from ingest.frames import Delivery, Reader, Skipped
from ingest.gop import HeldPackets
from ingest.images import ImageReader
from ingest.media.ring import PacketRing, Segment
from ingest.settings import CameraSettings
from ingest.sources import Source, parse
from ingest.wakefulness import Wakefulness

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
# The codecs of surveillance cameras that predict pictures from others: there, a packet's size tells how much changed.
_SIZES_TELL = frozenset({"h264", "hevc"})


def open_reader(
    settings: CameraSettings,
    max_pixels: int,
    wanted: Callable[[], bool] = lambda: True,
    wakefulness: Wakefulness | None = None,
) -> tuple[Source, Reader]:
    """Open a camera's source. While `wanted()` is false a live reader decodes nothing. Raises SourceError."""
    source = parse(settings.source, settings.live)
    if source.kind == "images":
        return source, ImageReader(source, settings.images_per_s, max_pixels)
    if source.kind == "sim":
        return source, _open_simulated(source, settings, max_pixels, wanted, wakefulness)
    return source, VideoReader(source, settings, max_pixels, wanted, wakefulness=wakefulness)


def _open_simulated(
    source: Source,
    settings: CameraSettings,
    max_pixels: int,
    wanted: Callable[[], bool],
    wakefulness: Wakefulness | None,
) -> VideoReader:
    # Imported only here: most processes simulate nothing.
    from ingest.sim import SimulatedCameraError, launch

    try:
        simulated = launch(source.url)
    except (OSError, ValueError, SimulatedCameraError) as error:
        raise SourceError("simulator_failed", f"{source.shown}: {error}") from error
    try:
        stream = Source("rtsp", simulated.rtsp_url, source.live)
        return VideoReader(stream, settings, max_pixels, wanted, on_close=simulated.close, wakefulness=wakefulness)
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
        *,
        on_close: Callable[[], None] = lambda: None,
        wakefulness: Wakefulness | None = None,
    ) -> None:
        self.defect: SourceError | None = None
        self._source = source
        self._settings = settings
        self._read_limit_s = read_limit_s(source, settings)
        self._wanted = wanted
        self._on_close = on_close
        self._held = HeldPackets()
        self._recording: Segment | None = None
        self._waiting = False  # for a model
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
        time_base_s = float(self._stream.time_base or 1 / 90_000)
        timed = self._container.format.name not in _NO_CLOCK
        self._decoder = Decoder(self._stream.codec_context, time_base_s, timed)
        self._profile = settings.profile or ("adaptive" if source.live and self._codec in _SIZES_TELL else "all")
        self._adaptive = self._open_adaptive(wakefulness or Wakefulness(), time_base_s)

    def record(self, ring: PacketRing) -> None:
        """Keep the packets that come from now on in `ring`, whatever is decoded of them."""
        self._recording = ring.begin(self._stream)

    @property
    def concealed(self) -> int:
        """Pictures delivered although the decoder had to guess parts of them."""
        return self._decoder.concealed

    @property
    def _codec(self) -> str:
        return str(self._stream.codec_context.codec.name)

    def _open_adaptive(self, wakefulness: Wakefulness, time_base_s: float) -> Adaptive | None:
        if self._profile != "adaptive":
            wakefulness.begins(self._profile, "as its profile says")
            return None
        if self._codec not in _SIZES_TELL:
            wakefulness.begins("always_awake", f"the packet sizes of {self._codec} do not tell motion")
            return None
        send_held_s = SEND_HELD_S if self._source.live else float("inf")
        return Adaptive(self._decoder, self._settings.adaptive, wakefulness, time_base_s, send_held_s)

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
            captured_ns = time.monotonic_ns()
            if self._recording is not None:
                self._recording.add(packet, captured_ns)
            yield from self._handle(packet, captured_ns)
            if self._source.live and self._decoder.failed_in_a_row >= _HOPELESS:
                raise SourceError("corrupt", f"{self._source.shown}: {_HOPELESS} frames in a row could not be decoded")
        yield from self._empty()
        if self._trouble is not None:
            raise self._trouble
        if self._source.live:
            raise SourceError("ended", f"{self._source.shown}: the stream ended")
        self._check_end(packets)

    def _handle(self, packet: Packet[VideoStream], captured_ns: int) -> Iterator[Delivery]:
        if self._source.live and not self._wanted():
            if not self._waiting:
                yield from self._empty()
            self._held.add(packet)
            self._waiting = True
            yield Skipped("no_model", 1)
            return
        if self._waiting:
            self._waiting = False
            # For its references alone: those frames have been counted already.
            yield from self._decoder.replay(self._held.take())
        if self._adaptive is not None:
            yield from self._adaptive.handle(packet, captured_ns)
        elif self._profile != "keyframes":
            yield from self._decoder.decode(packet, captured_ns)
        elif packet.is_keyframe:
            yield from self._decoder.alone(packet, captured_ns)
        elif not packet.is_discard:
            yield Skipped("not_keyframe", 1)

    def _empty(self) -> Iterator[Delivery]:
        """What is still held, and the pictures that the decoder still has."""
        if self._adaptive is not None:
            yield from self._adaptive.interrupt()
        yield from self._decoder.flush()

    def close(self) -> None:
        """Close the source (and its simulator); harmless to repeat."""
        self._held.take()
        if self._recording is not None:
            self._recording.end()
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
