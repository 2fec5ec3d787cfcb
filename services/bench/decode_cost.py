"""What a camera costs before detection: CPU time to decode and letterbox a clip of its size, measured on this machine.

The clip is a simulated street encoded as cameras do (H.264 High, CABAC, one keyframe at its begin). It is read from
disk: receiving it by RTSP comes on top, and is part of `bench pipeline --live`.
"""

from __future__ import annotations

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
from ingest.frames import Picture
from ingest.letterbox import Letterboxer
from ingest.reader import open_reader
from ingest.settings import CameraSettings, IngestSettings
from ingest.sim.scene import Street
from ingest.sim.scene_url import SceneSpec
from wire.messages import InputSpec

Profile = Literal["all", "keyframes", "adaptive"]
PROFILES: tuple[Profile, ...] = get_args(Profile)

# Enough for a mean that a keyframe does not move, little enough to draw and encode in seconds.
CLIP_FRAMES = 40
# A 1080p25 camera at its usual 4 Mbit/s; decoding costs by the bit as much as by the pixel.
BITS_PER_PIXEL = 0.077
PASSES = 3  # the quickest counts: whatever else ran made the others slower


class DecodeCost(Struct, frozen=True):
    """CPU milliseconds, one thread."""

    frame_ms: float  # decode one frame among all
    keyframe_ms: float  # decode one keyframe alone
    packet_ms: float  # receive one packet and leave it
    letterbox_ms: float  # one picture into the detector's input


class Camera(Struct, frozen=True):
    """The cameras of a plan."""

    width: int
    height: int
    fps: float
    keyframe_s: float  # between keyframes


class Load(Struct, frozen=True):
    """One camera: cores' worth of time a second before the wire, and frames a second that go over it."""

    decode: float
    letterbox: float
    detections_per_s: float


def camera_load(cost: DecodeCost, camera: Camera, profile: Profile, fps: float, busy_share: float) -> Load:
    """What one camera needs under a decode profile, at `fps` detections a second wanted.

    adaptive: like `all` while something moves (`busy_share` of the time), like `keyframes` otherwise, its keyframes
    detected too: an upper bound, since a still one may be dropped.
    """
    keyframes_per_s = 1 / camera.keyframe_s
    if profile == "all":
        return Load(camera.fps * cost.frame_ms / 1e3, fps * cost.letterbox_ms / 1e3, fps)
    if profile == "keyframes":
        seen = min(fps, keyframes_per_s)
        decode_ms = camera.fps * cost.packet_ms + keyframes_per_s * cost.keyframe_ms
        return Load(decode_ms / 1e3, seen * cost.letterbox_ms / 1e3, seen)
    awake = camera_load(cost, camera, "all", fps, 1)
    asleep = camera_load(cost, camera, "keyframes", fps, 0)
    mixed = (
        busy_share * one + (1 - busy_share) * other
        for one, other in (
            (awake.decode, asleep.decode),
            (awake.letterbox, asleep.letterbox),
            (awake.detections_per_s, asleep.detections_per_s),
        )
    )
    return Load(*mixed)


def measure_decode(camera: Camera, spec: InputSpec, cache_dir: Path | None = None) -> DecodeCost:
    """This machine's cost for cameras of that size, from the cache or measured (seconds)."""
    key = verdicts.key(
        "decode-cost", 3, camera.width, camera.height, spec.height, spec.width, spec.stride, int(spec.rectangular)
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
    packets_ms, packets = _quickest(lambda: _demux(path))
    opened_ms, _ = _quickest(lambda: _demux(path, only_open=True))
    packet_ms = max(0.0, packets_ms - opened_ms) / packets
    return DecodeCost(
        frame_ms=round(max(0.0, all_ms - opened_ms) / pictures, 4),
        keyframe_ms=round(max(0.0, alone_ms - packets_ms) / keyframes, 4),
        packet_ms=round(packet_ms, 4),
        letterbox_ms=round(max(0.0, boxed_ms - all_ms) / pictures, 4),
    )


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


def _demux(path: Path, *, only_open: bool = False) -> int:
    with av.open(str(path)) as container:
        if only_open:
            return 0
        return sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))
