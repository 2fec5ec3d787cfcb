"""Workers that do not see ingest's shared memory: it is said, pixels then go by socket, and no file loses a frame."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import structlog

from wire.broker import Broker
from wire.consumer import WorkSource
from wire.messages import FrameHeader, InputSpec
from wire.producer import CameraPort, FrameLink

FRAMES = 100


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for Unix sockets, which pytest's own need not be."""
    with tempfile.TemporaryDirectory(prefix="sc-") as name:
        yield Path(name)


@pytest.fixture(params=["another folder", "an empty folder", "no folder"])
def sight(request: pytest.FixtureRequest, folder: Path) -> Path | None:
    """Where the worker looks for rings; it never is where they are."""
    if request.param == "an empty folder":
        (folder / "empty").mkdir()
    return {"another folder": folder / "none", "an empty folder": folder / "empty", "no folder": None}[request.param]


class Running:
    """A broker, an ingest's link with shared memory, and a worker that notes what it gets and when it has trouble."""

    def __init__(self, folder: Path, sight: Path | None) -> None:
        frames, workers = f"ipc://{folder}/frames", f"ipc://{folder}/workers"
        self._stop = threading.Event()
        self.broker = Broker(frames, workers, max_age_ms=60_000)
        self.worker = WorkSource(
            workers, InputSpec(32, 32, 32, False), capacity=2, stuck_s=60, on_stuck=lambda _: None, rings=sight
        )
        self.link = FrameLink(frames, lossless_window=8, rings=folder / "rings")
        self.got: list[tuple[str, int, int]] = []  # camera, seq, first pixel
        self.troubles: set[str] = set()
        self._threads = [
            threading.Thread(target=self.broker.run, args=(self._stop,)),
            threading.Thread(target=self._work),
        ]
        for thread in self._threads:
            thread.start()
        self.link.start()

    def _work(self) -> None:
        while not self._stop.is_set():
            item = self.worker.next(0.1)
            self.troubles.add(self.worker.trouble)
            if item is not None:
                self.got.append((item[0].frame.camera, item[0].frame.seq, item[1][0]))
                self.worker.done(item[0], outcome="detected")

    def close(self) -> None:
        self.link.close(0)
        self._stop.set()
        self._threads[1].join()
        self.worker.close()
        self._threads[0].join()


@pytest.fixture
def running(folder: Path, sight: Path | None) -> Iterator[Running]:
    running = Running(folder, sight)
    yield running
    running.close()


def capture(port: CameraPort, seq: int) -> None:
    port.ledger.captured()
    header = FrameHeader(
        port.name, port.session, seq, port.lossless, 0, time.monotonic_ns(), "i420", 32, 32, 32, 32, 1.0, 0, 0
    )
    port.send(header, np.full((48, 32), seq, np.uint8))


def test_a_file_loses_no_frame_and_gets_none_twice(running: Running) -> None:
    port = running.link.camera("file", lossless=True)
    for seq in range(FRAMES):
        capture(port, seq)
    assert port.drain(60)
    law = port.ledger.snapshot()
    assert law.balanced and (law.captured, law.detected, law.dropped) == (FRAMES, FRAMES, {})
    assert sorted(running.got) == [("file", seq, seq) for seq in range(FRAMES)]
    assert running.worker.unseen == running.broker.stats.ends[("file", "no_pixels")] > 0


def test_a_live_camera_loses_what_was_on_its_way_and_goes_on(
    running: Running, sight: Path | None, wait_until: Callable[..., None]
) -> None:
    ports = [running.link.camera(name, lossless=False) for name in ("first", "second")]
    wait_until(lambda: running.link.broker_alive)
    assert not running.link.trouble
    with structlog.testing.capture_logs() as logs:
        for port in ports:
            for seq in range(10):
                capture(port, seq)
                assert port.drain(20)
    first, second = (port.ledger.snapshot() for port in ports)
    assert first.dropped == {"no_pixels": 1} and first.detected == 9 and first.balanced
    assert second.dropped == {} and second.detected == 10, "what one camera found out the others know"
    assert "shared memory" in running.link.trouble
    told = [line["event"] for line in logs if "shared memory of ingest" in line["event"]]
    by_worker = [] if sight and sight.is_dir() else ["cannot see the shared memory of ingest"]
    assert sorted(told) == sorted([*by_worker, f"{running.link.trouble}, which costs more CPU"])
    assert len(running.troubles) == 1 + len(by_worker), "trouble is over once pixels come"
    assert running.worker.trouble == ""


@pytest.mark.parametrize("sight", [None])
def test_a_files_frame_that_is_too_large_for_a_socket_ends(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wire.producer.MAX_PIXEL_BYTES", 1000)
    port = running.link.camera("file", lossless=True)
    for seq in range(20):
        capture(port, seq)
    assert port.drain(20)
    assert port.ledger.snapshot().dropped == {"bad_frame": 20}
