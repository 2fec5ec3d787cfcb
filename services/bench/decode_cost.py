"""What a camera costs before detection: CPU time to receive, decode and letterbox a clip of its size, measured here.

The clip is a simulated street encoded as cameras do (H.264 High, CABAC, one keyframe at its begin). Decoding is
measured from disk, as fast as it goes; receiving over RTSP on loopback, at the camera's own pace, since each packet
wakes its thread. Of a network card's work nothing is in it.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args

import av
import cv2
import numpy as np
from av import VideoFrame
from msgspec import Struct

from detector import verdicts
from ingest.adaptive import LOOK_EVERY_S
from ingest.frames import Picture, Skipped
from ingest.letterbox import Letterboxer
from ingest.reader import open_reader
from ingest.settings import AdaptiveSettings, CameraSettings, IngestSettings
from ingest.sim.file_source import FileSource
from ingest.sim.rtsp_server import RtspServer
from ingest.sim.scene import Street
from ingest.sim.scene_url import SceneSpec
from ingest.stillness import Stillness
from wire.messages import InputSpec

Profile = Literal["all", "keyframes", "adaptive"]
PROFILES: tuple[Profile, ...] = get_args(Profile)

# Enough for a mean that a keyframe does not move, little enough to draw and encode in seconds.
CLIP_FRAMES = 40
# A 1080p25 camera at its usual 4 Mbit/s; decoding costs by the bit as much as by the pixel.
BITS_PER_PIXEL = 0.077
PASSES = 3  # the quickest counts: whatever else ran made the others slower
# Receiving goes at the camera's pace, so it ends after so long, or after the clip's packets.
RECEIVE_S = 2.0
# Of a sleeping camera so often, at the next keyframe: the default of cameras.<name>.adaptive.
MAX_QUIET_S = AdaptiveSettings().max_quiet_s


class DecodeCost(Struct, frozen=True):
    """CPU milliseconds, one thread."""

    packet_ms: float  # receive one packet over RTSP, decoded or not
    frame_ms: float  # decode one frame among all
    keyframe_ms: float  # decode one keyframe alone
    look_ms: float  # compare one picture with the quiet scene (adaptive)
    letterbox_ms: float  # one picture into the detector's input


class Camera(Struct, frozen=True):
    """The cameras of a plan."""

    width: int
    height: int
    fps: float
    keyframe_s: float  # between keyframes


class Load(Struct, frozen=True):
    """One camera: cores' worth of time a second before the wire, and frames a second that go over it."""

    receive: float
    decode: float  # and the looks of adaptive
    letterbox: float
    detections_per_s: float


def asleep_keyframes_per_s(camera: Camera) -> float:
    """Keyframes that a sleeping camera decodes: the first that comes when MAX_QUIET_S are over."""
    # Floats: 10 s are five intervals of 2 s, and of 0.1 s a hundred and not a hundred and one.
    return 1 / (camera.keyframe_s * max(1, math.ceil(MAX_QUIET_S / camera.keyframe_s - 1e-6)))


def camera_load(cost: DecodeCost, camera: Camera, profile: Profile, fps: float, busy_share: float) -> Load:
    """What one camera needs under a decode profile, at `fps` detections a second wanted.

    adaptive (ingest.adaptive): awake, which is `busy_share` of the time, every frame is decoded and some are looked at;
    asleep, one keyframe every MAX_QUIET_S is decoded, looked at and detected. Decoding the held packets at a wake-up or
    a false alarm comes on top: at most one keyframe interval's frames each time.
    """

    def load(decode_ms: float, seen: float) -> Load:
        return Load(camera.fps * cost.packet_ms / 1e3, decode_ms / 1e3, seen * cost.letterbox_ms / 1e3, seen)

    all_ms = camera.fps * cost.frame_ms
    if profile == "all":
        return load(all_ms, fps)
    if profile == "keyframes":
        keyframes_per_s = 1 / camera.keyframe_s
        return load(keyframes_per_s * cost.keyframe_ms, min(fps, keyframes_per_s))
    looks_per_s = min(camera.fps, 1 / LOOK_EVERY_S)
    asleep_per_s = asleep_keyframes_per_s(camera)
    awake_ms = all_ms + looks_per_s * cost.look_ms
    asleep_ms = asleep_per_s * (cost.keyframe_ms + cost.look_ms)
    quiet_share = 1 - busy_share
    return load(
        busy_share * awake_ms + quiet_share * asleep_ms, busy_share * fps + quiet_share * min(fps, asleep_per_s)
    )


def measure_decode(camera: Camera, spec: InputSpec, cache_dir: Path | None = None) -> DecodeCost:
    """This machine's cost for cameras of that size, from the cache or measured (seconds)."""
    key = verdicts.key(
        "decode-cost", 4, camera.width, camera.height, spec.height, spec.width, spec.stride, int(spec.rectangular)
    )
    known = verdicts.read(cache_dir, key, DecodeCost)
    if known is not None:
        return known
    with tempfile.TemporaryDirectory(prefix="sparsecam-clip-") as folder:
        path = Path(folder) / "clip.mp4"
        write_clip(path, camera)
        cost = decode_cost(path, spec)
    verdicts.write(cache_dir, key, cost)
    return cost


def write_clip(path: Path, camera: Camera) -> None:
    """A street of that size; sizes that the scene cannot draw are drawn at the nearest it can and scaled."""
    # The scene wants 160x96 to 3840x2160 and a width of half to two and a half heights.
    height = min(max(camera.height, 96), 2160)
    width = min(max(camera.width, 160, height // 2), 3840, int(height * 2.5))
    fps = max(1.0, min(camera.fps, 60.0))
    street = Street(SceneSpec(width=width & ~1, height=height & ~1, fps=fps, objects=12, noise=6))
    bits_per_s = str(int(BITS_PER_PIXEL * camera.width * camera.height * camera.fps))
    with av.open(str(path), "w") as container:
        options = {"preset": "veryfast", "profile": "high", "g": str(CLIP_FRAMES), "bf": "0"}
        options |= {"b": bits_per_s, "maxrate": bits_per_s, "bufsize": bits_per_s}
        stream = container.add_stream("libx264", rate=Fraction(camera.fps).limit_denominator(1001), options=options)
        stream.width, stream.height, stream.pix_fmt = camera.width & ~1, camera.height & ~1, "yuv420p"
        for index in range(CLIP_FRAMES):
            picture = cv2.resize(street.render(index)[0], (stream.width, stream.height))
            planes = np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420), np.uint8)
            container.mux(stream.encode(VideoFrame.from_ndarray(planes, "yuv420p")))
        container.mux(stream.encode())


def decode_cost(path: Path, spec: InputSpec) -> DecodeCost:
    """Measure a clip through ingest's own reader and letterbox."""
    cv2.setNumThreads(1)  # as ingest does
    letterboxer = Letterboxer()
    all_ms, pictures = _quickest(lambda: _read(path, "all"))
    boxed_ms, _ = _quickest(lambda: _read(path, "all", lambda picture: letterboxer.frame(picture, 0, spec)))
    alone_ms, keyframes = _quickest(lambda: _read(path, "keyframes"))
    demuxed_ms, _ = _quickest(lambda: _demux(path))
    stillness = Stillness()
    looked_ms, _ = _quickest(lambda: _read(path, "all", lambda picture: stillness.changed(picture, 0.0)))
    return DecodeCost(
        packet_ms=round(receive_ms(path), 4),
        frame_ms=round(max(0.0, all_ms - demuxed_ms) / pictures, 4),
        keyframe_ms=round(max(0.0, alone_ms - demuxed_ms) / keyframes, 4),
        look_ms=round(max(0.0, looked_ms - all_ms) / pictures, 4),
        letterbox_ms=round(max(0.0, boxed_ms - all_ms) / pictures, 4),
    )


def receive_ms(path: Path) -> float:
    """CPU milliseconds of one packet that is received over RTSP by ingest's own reader and not decoded."""
    with RtspServer(FileSource(path)) as server:
        settings = CameraSettings.model_validate({"source": server.url, "profile": "keyframes"})
        _, reader = open_reader(settings, IngestSettings().max_pixels)
        spent_s, packets = 0.0, 0
        try:
            begun_s, until_s = time.thread_time(), time.monotonic() + RECEIVE_S
            for delivery in reader.deliveries():
                now_s = time.thread_time()
                if isinstance(delivery, Skipped):  # the others are keyframes, whose decoding is measured by itself
                    spent_s += now_s - begun_s
                    packets += delivery.count
                if packets and (packets >= CLIP_FRAMES or time.monotonic() >= until_s):
                    break
                begun_s = time.thread_time()
        finally:
            reader.close()
    return 1e3 * spent_s / packets


def _quickest(work: Callable[[], int]) -> tuple[float, int]:
    """(CPU milliseconds of this thread in the quickest pass, what it counted)."""
    found = []
    for _ in range(PASSES):
        begun_s = time.thread_time()
        count = work()
        found.append(((time.thread_time() - begun_s) * 1e3, count))
    return min(found)


def _read(path: Path, profile: str, each: Callable[[VideoFrame], object] = lambda _: None) -> int:
    settings = CameraSettings.model_validate({"source": str(path), "profile": profile})
    _, reader = open_reader(settings, IngestSettings().max_pixels)
    pictures = 0
    try:
        for delivery in reader.deliveries():
            if isinstance(delivery, Picture) and isinstance(delivery.image, VideoFrame):
                each(delivery.image)
                pictures += 1
    finally:
        reader.close()
    return pictures


def _demux(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))
