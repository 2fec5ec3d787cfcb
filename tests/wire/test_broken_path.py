"""Ingest, broker and worker on several hosts: whatever the network between them does, every frame's end is known."""

from __future__ import annotations

import contextlib
import math
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path as Folder

import numpy as np
import pytest

from wire.broker import CONTROL_SUFFIX, Broker
from wire.consumer import WorkSource
from wire.messages import FrameHeader, InputSpec, Work
from wire.producer import CameraPort, FrameLink

RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no time: close sends a reset


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.01)


class Connection:
    """One connection through the path, and what of it gets lost."""

    def __init__(self, near: socket.socket, port: int) -> None:
        self.sent = self.lost_bytes = 0  # from the near end; of either
        self.greeting = b""  # what the near end says first
        self.swallows_sent = self.swallows_all = False
        self.bytes_a_second = math.inf
        self._ends = near, socket.create_connection(("127.0.0.1", port))
        for source, sink, up in ((*self._ends, True), (*self._ends[::-1], False)):
            threading.Thread(target=self._carry, args=(source, sink, up), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                time.sleep(len(data) * up / self.bytes_a_second)
                self.sent += len(data) * up
                self.greeting += data * (up and len(self.greeting) < 512)
                if self.swallows_all or (up and self.swallows_sent):
                    self.lost_bytes += len(data)
                else:
                    sink.sendall(data)

    def reset(self) -> None:
        for end in self._ends:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Path:
    """The network before the broker's endpoint `far`: a proxy for any number of connections."""

    def __init__(self, broker: Broker, far: str) -> None:
        self.broker = broker
        self.connections: list[Connection] = []
        self._far_port = int(far.rsplit(":", 1)[1])
        self._server = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.connections.append(Connection(self._server.accept()[0], self._far_port))

    def close(self) -> None:
        self._server.close()
        for one in self.connections:
            one.reset()


@pytest.fixture
def far() -> Iterator[Path]:
    """From one quick worker to its broker."""
    broker, stop = Broker("tcp://127.0.0.1:0", "tcp://127.0.0.1:0", max_age_ms=500), threading.Event()
    between = Path(broker, broker.endpoints[1])
    worker = WorkSource(between.endpoint, InputSpec(64, 64, 32, False), capacity=2, stuck_s=60, on_stuck=lambda _: None)

    def work() -> None:
        while not stop.is_set():
            if item := worker.next(0.1):
                worker.inferred(item[0])
                worker.done(item[0], outcome="detected")

    threads = [threading.Thread(target=broker.run, args=(stop,)), threading.Thread(target=work)]
    for thread in threads:
        thread.start()
    yield between
    stop.set()
    threads[1].join()
    worker.close()
    threads[0].join()
    between.close()


@pytest.fixture
def path(far: Path) -> Iterator[Path]:
    """From ingest to a broker with one quick worker."""
    between = Path(far.broker, far.broker.endpoints[0])
    yield between
    between.close()


@pytest.fixture
def link(path: Path) -> Iterator[FrameLink]:
    link = FrameLink(path.endpoint, lossless_window=8)
    link.start()
    assert link.wait_spec(threading.Event(), 20)
    yield link
    link.close(0)


def send(port: CameraPort, seq: int) -> None:
    port.ledger.captured()
    pixels = np.zeros((96, 64), np.uint8)
    port.send(
        FrameHeader(
            port.name, port.session, seq, port.lossless, 0, time.monotonic_ns(), "i420", 64, 64, 64, 64, 1.0, 0, 0
        ),
        pixels,
    )


def lose_frames(path: Path, port: CameraPort, seqs: range) -> None:
    """These frames leave, do not arrive, and their connection is reset."""
    busiest = max(path.connections, key=lambda one: one.sent)  # that of the frames
    busiest.swallows_sent = True
    before = busiest.sent
    for seq in seqs:
        send(port, seq)
    wait_until(lambda: busiest.sent > before)
    path.connections.remove(busiest)
    busiest.reset()


@pytest.mark.parametrize("lossless", [False, True], ids=["live", "file"])
def test_frames_that_a_broken_connection_took_are_counted_or_sent_again(
    path: Path, link: FrameLink, lossless: bool
) -> None:
    port = link.camera("c", lossless)
    for seq in range(20):
        send(port, seq)
        wait_until(lambda: port.ledger.unsettled == 0)
    lose_frames(path, port, range(20, 23))
    wait_until(lambda: port.ledger.unsettled == 0)
    send(port, 23)
    wait_until(lambda: port.ledger.snapshot().detected == (24 if lossless else 21))
    law = port.ledger.snapshot()
    assert law.balanced and law.in_flight == 0
    assert law.dropped == ({} if lossless else {"broker_lost": 3})


def test_ends_that_a_broken_connection_took_are_told_again(path: Path, link: FrameLink) -> None:
    port = link.camera("c", lossless=True)
    for seq in range(20):
        send(port, seq)
        wait_until(lambda: port.ledger.unsettled == 0)
    busiest = max(path.connections, key=lambda one: one.sent)
    control = next(one for one in path.connections if one is not busiest)
    control.swallows_all = True
    for seq in range(20, 24):
        send(port, seq)
    wait_until(lambda: path.broker.stats.ends["c", "detected"] == 24)
    wait_until(lambda: control.lost_bytes > 24 * 4)  # it has said how they ended, and nobody heard it
    path.connections.remove(control)
    control.reset()
    wait_until(lambda: port.ledger.unsettled == 0)
    assert port.ledger.snapshot().detected == 24


def test_ends_that_a_busy_workers_broken_connection_took_are_found_missing(
    far: Path, path: Path, link: FrameLink
) -> None:
    port, other = link.camera("c", lossless=True), link.camera("other", lossless=True)
    send(port, 0)
    wait_until(lambda: port.ledger.unsettled == 0)
    control = next(one for one in far.connections if CONTROL_SUFFIX in one.greeting)
    control.swallows_sent = True
    for seq in range(1, 4):
        send(port, seq)
    wait_until(lambda: far.broker.stats.dispatched["c"] == 4)
    wait_until(lambda: control.lost_bytes > 0)
    far.connections.remove(control)
    control.reset()
    for seq in range(3000):  # never idle: it does not say of itself that it has nothing
        send(other, seq)
        time.sleep(0.01)
        if port.ledger.unsettled == 0:
            break
    assert port.ledger.snapshot().detected == 4
    assert far.broker.stats.dispatched["c"] > 4
    assert far.broker.stats.workers_lost == 0


def test_a_frame_sent_in_the_moment_that_the_broker_is_found_is_not_taken_for_lost(path: Path) -> None:
    link = FrameLink(path.endpoint, lossless_window=8)
    port = link.camera("c", lossless=False)
    lose = port.broker_lost

    def send_and_lose() -> None:
        send(port, 0)
        lose()

    port.broker_lost = send_and_lose  # type: ignore[method-assign]  # what a camera's thread may do at any time
    link.start()
    assert link.wait_spec(threading.Event(), 20)
    send(port, 1)
    wait_until(lambda: port.ledger.unsettled == 0)
    assert port.ledger.snapshot().dropped == {"broker_lost": 1}
    assert port.ledger.snapshot().detected == path.broker.stats.ends["c", "detected"] == 1
    link.close(0)


def test_a_slow_path_is_no_loss_and_carries_no_frame_twice(path: Path, link: FrameLink) -> None:
    port = link.camera("c", lossless=True)
    send(port, 0)
    wait_until(lambda: port.ledger.unsettled == 0)
    frames = max(path.connections, key=lambda one: one.sent)
    frame_bytes, frames.bytes_a_second = frames.sent, 20_000  # a third of a second a frame, and eight on their way
    for seq in range(1, 13):
        send(port, seq)
    wait_until(lambda: port.ledger.snapshot().detected == 13, 60)
    assert frames.sent < frame_bytes * 13.5
    assert not port.ledger.snapshot().dropped


def test_a_path_that_goes_dead_without_a_word_is_left_for_another(path: Path, link: FrameLink) -> None:
    port = link.camera("c", lossless=False)
    send(port, 0)
    wait_until(lambda: port.ledger.snapshot().detected == 1)
    before = list(path.connections)
    for one in before:  # as behind a firewall that forgot them: no reset, nothing
        one.swallows_all = True
    wait_until(lambda: not link.broker_alive)
    wait_until(lambda: link.broker_alive and len(path.connections) >= len(before) + 2)
    detected = port.ledger.snapshot().detected
    for seq in range(1, 100):
        send(port, seq)
        time.sleep(0.01)
        if port.ledger.snapshot().detected > detected:
            return
    raise AssertionError(port.ledger.snapshot())


def test_what_a_worker_says_of_an_earlier_brokers_frames_ends_none_of_the_new_ones(tmp_path: Folder) -> None:
    frames, workers = f"ipc://{tmp_path}/f", f"ipc://{tmp_path}/w"

    def serve() -> tuple[threading.Event, threading.Thread]:
        stop, broker = threading.Event(), Broker(frames, workers, max_age_ms=500)
        thread = threading.Thread(target=broker.run, args=(stop,))
        thread.start()
        return stop, thread

    stop, thread = serve()
    source = WorkSource(workers, InputSpec(64, 64, 32, False), capacity=4, stuck_s=60, on_stuck=lambda _: None)
    link = FrameLink(frames, lossless_window=8)
    link.start()

    def take(count: int) -> dict[int, Work]:
        found: dict[int, Work] = {}
        deadline_s = time.monotonic() + 30
        while len(found) < count and time.monotonic() < deadline_s:
            if item := source.next(0.1):
                source.inferred(item[0])
                found[item[0].frame.seq] = item[0]
        return found

    try:
        assert link.wait_spec(threading.Event(), 20)
        port = link.camera("gate", lossless=True)
        send(port, 0)
        source.done(take(1)[0], outcome="detected")
        wait_until(lambda: port.ledger.snapshot().detected == 1)
        send(port, 1)
        send(port, 2)
        before = take(2)  # and Redis is away: their detections wait
        stop.set()
        thread.join()
        stop, thread = serve()
        again = take(2)
        # Under the new broker the number of the first of them before is that of the second.
        assert before[1].order == again[2].order
        source.done(before[1], outcome="detected")
        source.done(*again.values(), outcome="unpublished")
        wait_until(lambda: port.ledger.snapshot().dropped == {"unpublished": 2})
        assert port.ledger.snapshot().detected == 1
        assert not source._held
    finally:
        source.close()
        link.close(0)
        stop.set()
        thread.join()
