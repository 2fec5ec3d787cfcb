"""Hosts whose clocks began at other times: a frame's age is its age, and its stamps are of one clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import zmq

from wire.broker import Broker
from wire.consumer import Item, WorkSource
from wire.messages import FrameHeader, InputSpec, Work, encode
from wire.producer import CameraPort, FrameLink

MS = 1_000_000
SPEC = InputSpec(64, 64, 32, False)
# Of another host's clock, against ours: it was started later, or earlier.
OFFSETS_NS = [-1000 * 10**9, 1000 * 10**9]


def frame_of(port: CameraPort, seq: int, captured_ns: int) -> FrameHeader:
    return FrameHeader(port.name, port.session, seq, False, 0, captured_ns, "i420", 64, 64, 64, 64, 1.0, 0, 0)


@pytest.fixture
def by_tcp() -> Iterator[tuple[FrameLink, Callable[[], WorkSource]]]:
    """An ingest's link to a broker whose maximum age is 300 ms, and what starts a worker of it."""
    broker, stop = Broker("tcp://127.0.0.1:0", "tcp://127.0.0.1:0", max_age_ms=300), threading.Event()
    thread = threading.Thread(target=broker.run, args=(stop,))
    thread.start()
    link = FrameLink(broker.endpoints[0], lossless_window=2)
    link.start()
    workers: list[WorkSource] = []

    def worker() -> WorkSource:
        workers.append(WorkSource(broker.endpoints[1], SPEC, capacity=2, stuck_s=60, on_stuck=lambda _: None))
        return workers[-1]

    yield link, worker
    link.close(0)
    for one in workers:
        one.close()
    stop.set()
    thread.join()


def next_of(source: WorkSource) -> Item:
    deadline_s = time.monotonic() + 20
    while (item := source.next(0.1)) is None:
        assert time.monotonic() < deadline_s, "no frame came"
    return item


@pytest.mark.parametrize("offset_ns", OFFSETS_NS)
def test_a_frame_of_another_hosts_ingest_is_as_old_as_it_has_waited_here(
    by_tcp: tuple[FrameLink, Callable[[], WorkSource]], wait_until: Callable[..., None], offset_ns: int
) -> None:
    link, start_worker = by_tcp
    port = link.camera("far", lossless=False)
    wait_until(lambda: link.broker_alive)

    def send(seq: int) -> None:
        port.ledger.captured()
        port.send(frame_of(port, seq, time.monotonic_ns() + offset_ns), np.zeros((96, 64), np.uint8))

    send(0)
    time.sleep(0.4)  # its age, which the test is about
    worker = start_worker()
    wait_until(lambda: port.ledger.snapshot().dropped.get("stale") == 1)
    begun_ns = time.monotonic_ns()
    for seq in range(1, 20):  # not at once: a machine that is busy enough makes any frame stale
        send(seq)
        if (item := worker.next(1.0)) is not None:
            break
    assert item is not None
    work, _ = item
    assert begun_ns <= work.frame.captured_ns <= work.dispatched_ns <= time.monotonic_ns()
    worker.done(work, outcome="detected")
    assert port.drain(10)
    assert port.ledger.snapshot().detected >= 1 and port.ledger.snapshot().balanced


@pytest.mark.parametrize("offset_ns", OFFSETS_NS)
def test_a_worker_on_another_host_has_stamps_of_its_own_clock(offset_ns: int) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as broker:
        port = broker.bind_to_random_port("tcp://127.0.0.1")
        worker = WorkSource(f"tcp://127.0.0.1:{port}", SPEC, capacity=1, stuck_s=60, on_stuck=lambda _: None)
        name = broker.recv_multipart()[0].removesuffix(b".control")
        there_ns = time.monotonic_ns() + offset_ns
        header = FrameHeader("door", "s", 0, False, 0, there_ns - 90 * MS, "i420", 64, 64, 64, 64, 1.0, 0, 0)
        broker.send_multipart([name, encode(Work("b", 0, there_ns, 0, header)), bytes(96 * 64)])
        work, _ = next_of(worker)
        assert abs(time.monotonic_ns() - work.dispatched_ns) < 10 * 10**9
        assert work.dispatched_ns - work.frame.captured_ns == 90 * MS
        worker.close()
