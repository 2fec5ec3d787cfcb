"""The cameras of a pipeline benchmark: files at full speed, files served as live RTSP cameras, or any other source."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from av import VideoFrame

from ingest.frames import Picture
from ingest.letterbox import Letterboxer
from ingest.planes import clockwise_turn
from ingest.reader import open_reader
from ingest.settings import CameraSettings, IngestSettings
from ingest.sim.file_source import FileSource
from ingest.sim.h264 import AccessUnit
from ingest.sim.rtsp_server import RtspServer
from ingest.sim.scene_url import parse as parse_scene
from ingest.sim.source import Demand
from ingest.sources import parse
from services.bench.errors import BenchError
from wire.messages import InputSpec

SIMULATED = "sim://street?seed={seed}"


@dataclass(frozen=True)
class Cameras:
    """What to read: camera settings by name, and the letterbox (height, width) of each."""

    settings: dict[str, dict[str, Any]]
    shapes: dict[str, tuple[int, int]]
    live: bool


class _Later:
    """A file source whose clock starts a little later: cameras of one site do not deliver in step."""

    keyframe_on_demand = False

    def __init__(self, source: FileSource, by_s: float) -> None:
        self.parameter_sets, self.fps = source.parameter_sets, source.fps
        self._source, self._by_s = source, by_s

    def units(self, demand: Demand) -> Iterator[AccessUnit]:
        """See MediaSource."""
        if demand.wait_watched() and demand.wait_until(time.monotonic() + self._by_s):
            yield from self._source.units(demand)


def make_cameras(
    sources: Sequence[str],
    count: int | None,
    *,
    live: bool,
    profile: str,
    fps: float | None,
    spec: InputSpec,
    stack: ExitStack,
) -> Cameras:
    """`count` cameras (None: one a source) over the sources in turns; servers of live files end with `stack`."""
    given = list(sources) or [SIMULATED.format(seed=seed) for seed in range(1, (count or 2) + 1)]
    count = count or len(given)
    names = [f"cam-{number}" for number in range(count)]
    settings, shapes, lives = {}, {}, set()
    for number, name in enumerate(names):
        text = given[number % len(given)]
        source = parse(text)
        shapes[name] = _shape(text, spec)
        camera: dict[str, Any] = {"source": text, "profile": profile}
        if fps is not None:
            camera["fps"] = fps
        if source.kind in ("file", "images"):
            camera["source"] = str(Path(source.url).resolve())
            if live:
                camera["source"] = _serve(source.url, number / count, stack)
            else:
                camera["loop"] = True
        elif live and not source.live:
            raise BenchError(f"--live: {source.shown} is no file on disk and cannot be served as a camera")
        lives.add(live or source.live)
        settings[name] = camera
    if len(lives) > 1:
        raise BenchError(
            "files at full speed beside live cameras would take all workers' time: give one kind, or --live"
        )
    return Cameras(settings, shapes, lives.pop())


def _serve(path: str, phase: float, stack: ExitStack) -> str:
    try:
        file = FileSource(path)
    except ValueError as error:
        raise BenchError(f"--live: {error}") from error
    # Spread over one frame's time.
    server = RtspServer(_Later(file, phase / file.fps))
    stack.enter_context(server)
    return server.url


def _shape(text: str, spec: InputSpec) -> tuple[int, int]:
    """(height, width) of the letterbox that ingest makes of this source, from its first picture."""
    source = parse(text)
    letterboxer = Letterboxer()
    if source.kind == "sim":
        scene = parse_scene(source.url)
        box = letterboxer.frame(VideoFrame(scene.width, scene.height, "yuv420p"), 0, spec).box
        return box.height, box.width
    _, reader = open_reader(CameraSettings.model_validate({"source": text}), IngestSettings().max_pixels)
    try:
        for delivery in reader.deliveries():
            if isinstance(delivery, Picture):
                image = delivery.image
                if isinstance(image, VideoFrame):
                    box = letterboxer.frame(image, clockwise_turn(image), spec).box
                else:
                    box = letterboxer.image(image, 0, spec).box
                return box.height, box.width
    finally:
        reader.close()
    raise BenchError(f"{source.shown}: not one frame of it can be decoded")
