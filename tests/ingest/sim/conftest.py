"""A small clip, a small street and a real RTSP client for the tests of simulated cameras."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from ingest.sim.file_source import FileSource
from ingest.sim.scene_source import SceneSource
from ingest.sim.scene_url import SceneSpec, parse

Watch = Callable[..., list[av.VideoFrame]]


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One second of H.264 with B-frames, 20 fps, 64x48, a keyframe each half second; frame n is grey, 40 + 8 n."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20, options={"bf": "2", "x264-params": "keyint=10:scenecut=0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(20):
            grey = np.full((48, 64, 3), 40 + 8 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="bgr24")
            frame.pts, frame.time_base = number, Fraction(1, 20)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def spec() -> SceneSpec:
    """A street small enough to be cheap."""
    return parse("sim://street?seed=7&size=320x180&fps=25&objects=6")


@pytest.fixture(scope="session")
def street_source(spec: SceneSpec) -> SceneSource:
    """The small street as a live source; each server that plays it begins at frame 0."""
    return SceneSource(spec)


@pytest.fixture
def file_source(clip: Path) -> FileSource:
    """The clip as an endless source."""
    return FileSource(clip)


@pytest.fixture(scope="session")
def opened() -> Callable[..., object]:
    """Open a stream with FFmpeg's own RTSP client: opened(url, transport, read_s)."""

    @contextmanager
    def connect(url: str, transport: str = "tcp", read_s: float = 10.0) -> Iterator[av.container.InputContainer]:
        options = {"rtsp_transport": transport, "fpsprobesize": "0", "analyzeduration": "0"}
        with av.open(url, options=options, timeout=(10.0, read_s)) as container:
            yield container

    return connect


@pytest.fixture(scope="session")
def watch(opened: Callable[..., Any]) -> Watch:
    """Decode the first frames of a stream: watch(url, count, transport)."""

    def read(url: str, count: int, transport: str = "tcp") -> list[av.VideoFrame]:
        with opened(url, transport) as container:
            return [frame for frame, _ in zip(container.decode(video=0), range(count), strict=False)]

    return read
