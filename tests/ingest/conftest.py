"""What ingest's tests share: clips, a link that loops back, RTSP and HTTP servers, waiting for conditions."""

from __future__ import annotations

import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from ingest.sim.file_source import FileSource
from ingest.sim.rtsp_server import RtspServer
from wire.messages import FrameHeader, InputSpec, decode, decoder
from wire.producer import CameraPort

SPEC = InputSpec(height=416, width=416, stride=32, rectangular=True)


@pytest.fixture
def spec() -> InputSpec:
    return SPEC


@pytest.fixture(scope="session")
def until() -> Callable[..., None]:
    """Waits for a condition; fails saying which, when it does not come true."""

    def wait(condition: Callable[[], object], timeout_s: float = 10.0, what: str = "condition") -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, f"{what} not met within {timeout_s} s"
            time.sleep(0.005)

    return wait


@pytest.fixture(scope="session")
def write_clip() -> Callable[..., Path]:
    """Encodes a clip: a bright square wanders over a dark gradient, so that frames differ and can be told apart."""

    def picture(index: int, height: int, width: int) -> np.ndarray:
        rows = np.linspace(30, 90, height, dtype=np.uint8)[:, None, None]
        rgb = np.broadcast_to(rows, (height, width, 3)).copy()
        size = max(1, min(height, width) // 4)
        left = (index * max(1, width // 16)) % max(1, width - size + 1)
        rgb[height // 3 : height // 3 + size, left : left + size] = (220, 200, 60)
        return rgb

    def write(
        path: Path,
        frames: int = 30,
        width: int = 128,
        height: int = 96,
        rate: int = 25,
        codec: str = "libx264",
        pix_fmt: str = "yuv420p",
        options: dict[str, str] | None = None,
        draw: Callable[[int, int, int], np.ndarray] = picture,
    ) -> Path:
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=rate)
            stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
            stream.options = options or ({"preset": "ultrafast", "g": "10"} if codec == "libx264" else {})
            for index in range(frames):
                frame = av.VideoFrame.from_ndarray(draw(index, height, width), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return write


class LoopbackLink:
    """Stands where the frame link stands, without a broker: real ports and ledgers; each frame is settled at once."""

    def __init__(self, spec: InputSpec | None = SPEC) -> None:
        self.spec = spec
        self.broker_alive = True
        self.shares_memory = False
        self.settling = True
        self.ports: dict[str, CameraPort] = {}
        self.frames: dict[str, list[FrameHeader]] = defaultdict(list)
        self.pixels: dict[str, np.ndarray] = {}  # the newest of each camera
        self.arrived_s: dict[str, list[float]] = defaultdict(list)
        self.wrong: list[str] = []
        self._decoder = decoder(FrameHeader)

    def camera(self, name: str, lossless: bool) -> CameraPort:
        if name not in self.ports:
            self.ports[name] = CameraPort(self, name, lossless, 4, None)  # type: ignore[arg-type]  # this link is enough of one
        return self.ports[name]

    def transmit(self, message: bytes, pixels: np.ndarray) -> bool:
        header = decode(self._decoder, message)
        if pixels.nbytes != header.pixel_bytes or pixels.dtype != np.uint8 or not pixels.flags.c_contiguous:
            self.wrong.append(f"{header}: {pixels.shape} {pixels.dtype}")
        self.pixels[header.camera] = pixels
        self.arrived_s[header.camera].append(time.monotonic())
        self.frames[header.camera].append(header)
        if self.settling:
            self.ports[header.camera].settle(header.session, header.seq, "detected")
        return True

    def check(self) -> None:
        """What must hold for every camera at every time."""
        assert not self.wrong, self.wrong[:3]
        for name, port in self.ports.items():
            assert port.ledger.snapshot().balanced, port.ledger.snapshot()
            headers = self.frames[name]
            assert all(a.seq < b.seq for a, b in itertools.pairwise(headers))
            assert all(a.event_us < b.event_us for a, b in itertools.pairwise(headers))


@pytest.fixture
def make_link() -> Callable[..., LoopbackLink]:
    return LoopbackLink


@pytest.fixture
def link() -> Iterator[LoopbackLink]:
    """A loopback link; the conservation law and rising frame numbers are asserted at the end of the test."""
    made = LoopbackLink()
    yield made
    made.check()


@pytest.fixture
def serve_rtsp() -> Iterator[Callable[..., RtspServer]]:
    """Serves a clip over real RTSP until the test ends; the server's `faults` cause trouble."""
    servers: list[RtspServer] = []

    def serve(path: Path, **options: Any) -> RtspServer:
        server = RtspServer(FileSource(path), **options)
        server.start()
        servers.append(server)
        return server

    yield serve
    for server in servers:
        server.stop()


@pytest.fixture
def serve_http() -> Iterator[Callable[[Callable[[BaseHTTPRequestHandler], None]], str]]:
    """Serves GET requests with a function; returns the address."""
    servers: list[ThreadingHTTPServer] = []

    def serve(answer: Callable[[BaseHTTPRequestHandler], None]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                try:
                    answer(self)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # the reader has seen enough

            def log_message(self, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()
