"""The frame link over real sockets and processes: it survives dead workers, dead brokers and bad messages."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import structlog
import zmq

from wire.broker import Broker
from wire.consumer import WorkSource
from wire.curve import LinkError, check_endpoint, generate_keys, load_keys
from wire.messages import FrameHeader, Hello, InputSpec, encode
from wire.producer import CameraPort, FrameLink

WORKER = Path(__file__).with_name("slow_worker.py")


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for Unix sockets, which pytest's own need not be."""
    with tempfile.TemporaryDirectory(prefix="sc-") as name:
        yield Path(name)


@contextmanager
def running_broker(frames: str, workers: str, **kwargs: object) -> Iterator[Broker]:
    broker = Broker(frames, workers, max_age_ms=500, **kwargs)  # type: ignore[arg-type]  # test pass-through
    stop = threading.Event()
    thread = threading.Thread(target=broker.run, args=(stop,))
    thread.start()
    try:
        yield broker
    finally:
        stop.set()
        thread.join(5)
        assert not thread.is_alive()


@pytest.fixture
def endpoints(folder: Path) -> tuple[str, str]:
    return f"ipc://{folder}/frames", f"ipc://{folder}/workers"


@pytest.fixture(params=["by socket", "by shared memory"])
def rings(request: pytest.FixtureRequest, folder: Path) -> Path | None:
    """How pixels travel: every promise holds for both ways."""
    return folder / "rings" if request.param == "by shared memory" else None


@pytest.fixture
def link(endpoints: tuple[str, str], rings: Path | None) -> Iterator[FrameLink]:
    link = FrameLink(endpoints[0], lossless_window=8, rings=rings)
    link.start()
    yield link
    link.close(0)


@pytest.fixture
def start_worker(
    endpoints: tuple[str, str], folder: Path, rings: Path | None
) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started = []

    def start(work_ms: float = 1) -> subprocess.Popen[bytes]:
        arguments = [endpoints[1], str(folder / "notes"), str(work_ms), str(rings or "")]
        child = subprocess.Popen([sys.executable, str(WORKER), *arguments])
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.wait()


def frame(port: CameraPort, seq: int) -> tuple[FrameHeader, np.ndarray]:
    pixels = np.full((48, 32), seq % 251, np.uint8)
    header = FrameHeader(
        port.name, port.session, seq, port.lossless, 0, time.monotonic_ns(), "i420", 32, 32, 32, 32, 1.0, 0, 0
    )
    return header, pixels


def capture(port: CameraPort, seq: int) -> bool:
    port.ledger.captured()
    return port.send(*frame(port, seq))


def seqs(folder: Path, camera: str) -> list[int]:
    lines = [line.split() for line in (folder / "notes").read_text().splitlines()]
    for _, seq, pixels in lines:
        assert pixels == f"{int(seq) % 251:02x}" * 4, "a frame met another one's pixels"
    return [int(line[1]) for line in lines if line[0] == camera]


def test_killing_workers_while_a_file_plays_loses_none_of_its_frames(endpoints, folder, link, start_worker) -> None:
    with running_broker(*endpoints) as broker:
        port = link.camera("file", lossless=True)
        workers = [start_worker(5), start_worker(5)]
        for seq in range(300):
            assert capture(port, seq)
            if seq in (60, 150, 220):
                workers.pop(0).kill()
                workers.append(start_worker(5))
        assert port.drain(20)
        law = port.ledger.snapshot()
        assert law.balanced and law.detected == law.captured == 300
        assert set(seqs(folder, "file")) == set(range(300))
        assert broker.stats.workers_lost == 3


def test_a_killed_worker_costs_a_live_camera_one_frame_at_most(endpoints, folder, link, start_worker) -> None:
    with running_broker(*endpoints):
        port = link.camera("live", lossless=False)
        doomed = start_worker(100)
        assert link.wait_spec(threading.Event(), 10)
        capture(port, 0)
        wait_until(lambda: port.ledger.unsettled == 1)
        doomed.kill()
        start_worker(1)
        for seq in itertools.count(1):
            capture(port, seq)
            time.sleep(0.01)
            if port.ledger.snapshot().detected > 20:
                break
        assert port.drain(10)
        law = port.ledger.snapshot()
        assert law.balanced and law.dropped.get("worker_lost", 0) <= 1


def test_a_restarted_broker_gets_a_files_frames_again_and_live_ones_are_counted(
    endpoints, folder, link, start_worker
) -> None:
    film, live = link.camera("file", lossless=True), link.camera("live", lossless=False)
    start_worker(2)
    for part in range(3):
        with running_broker(*endpoints):
            for seq in range(part * 50, part * 50 + 50):
                assert capture(film, seq)
                capture(live, seq)
    with running_broker(*endpoints):
        assert film.drain(20) and live.drain(20)
    assert set(seqs(folder, "file")) == set(range(150))
    law = film.ledger.snapshot()
    assert (law.captured, law.detected, law.balanced) == (150, 150, True)
    assert live.ledger.snapshot().balanced
    assert live.ledger.snapshot().in_flight == 0


def test_without_any_worker_live_frames_are_overwritten_and_the_law_holds(endpoints, link) -> None:
    with running_broker(*endpoints):
        wait_until(lambda: link.broker_alive)
        port = link.camera("live", lossless=False)
        for seq in range(50):
            capture(port, seq)
        wait_until(lambda: port.ledger.snapshot().dropped.get("overwritten", 0) == 49)
        assert port.ledger.snapshot().balanced


def test_live_frames_without_a_broker_are_dropped_at_once_and_counted(link) -> None:
    port = link.camera("live", lossless=False)
    assert not capture(port, 0)
    assert port.ledger.snapshot().dropped == {"broker_lost": 1}


def test_malformed_messages_are_counted_and_hurt_nobody(endpoints, link, start_worker) -> None:
    with running_broker(*endpoints) as broker, zmq.Context() as context:
        port = link.camera("file", lossless=True)
        start_worker(1)
        bad = context.socket(zmq.DEALER)
        bad.linger = 1000
        for endpoint in endpoints:
            bad.connect(endpoint)
            for message in ([b""], [b"\xff" * 99], [b"\x93" * 2000], [b"a", b"b", b"c", b"d"], [encode(Hello())] * 3):
                bad.send_multipart(message)
            bad.disconnect(endpoint)
        for seq in range(20):
            assert capture(port, seq)
        assert port.drain(10)
        wait_until(lambda: broker.stats.malformed >= 9)
        bad.close()


def test_pixels_that_do_not_fit_their_header_are_a_bad_frame(endpoints, link) -> None:
    with running_broker(*endpoints):
        wait_until(lambda: link.broker_alive)
        port = link.camera("live", lossless=False)
        header, pixels = frame(port, 0)
        port.ledger.captured()
        assert port.send(header, pixels[:-1])
        assert port.drain(5)
        assert port.ledger.snapshot().dropped == {"bad_frame": 1}


@pytest.mark.parametrize("lossless", [True, False])
def test_a_picture_larger_than_the_link_takes_is_refused_and_said_once(endpoints, lossless: bool) -> None:
    link = FrameLink(endpoints[0], lossless_window=2)
    link.start()
    with running_broker(*endpoints), structlog.testing.capture_logs() as logs:
        wait_until(lambda: link.broker_alive)
        port = link.camera("wide", lossless)
        pixels = np.zeros((8192 * 3 // 2, 8192), np.uint8)
        for seq in range(3):
            header = FrameHeader(
                port.name, port.session, seq, lossless, 0, 0, "i420", 8192, 8192, 8192, 8192, 1.0, 0, 0
            )
            port.ledger.captured()
            assert not port.send(header, pixels)
        assert port.drain(0), "nothing is left to wait for"
        assert port.ledger.snapshot().dropped == {"bad_frame": 3} and port.ledger.snapshot().balanced
    assert [(line["log_level"], "8192x8192" in line["event"]) for line in logs if "too large" in line["event"]] == [
        ("error", True)
    ]
    link.close(0)


def test_frames_of_one_shape_come_together_and_one_that_workers_died_of_comes_alone(endpoints, link, rings) -> None:
    with running_broker(*endpoints) as broker:
        port = link.camera("file", lossless=True)
        first, second = (
            WorkSource(endpoints[1], InputSpec(32, 32, 32, False), capacity=4, stuck_s=30, on_stuck=print, rings=rings)
            for _ in range(2)
        )
        wait_until(lambda: len(broker._dispatcher.workers) == 2)
        dead = first.name.encode()
        broker._dispatcher.ready(dead, InputSpec(32, 32, 32, False), 4, quiet_until_s=0)  # as if it had fallen silent
        first._stop.set()
        for seq in range(8):
            assert capture(port, seq)
        wait_until(lambda: broker.stats.workers_lost == 1)
        batches: list[list[int]] = []
        while sum(map(len, batches)) < 8:
            batch = second.next_batch(1.0, most=4)
            if batch:
                batches.append([work.frame.seq for work, _ in batch])
                assert len(batch) == 1 or not any(work.attempts for work, _ in batch)
                second.done(*(work for work, _ in batch), outcome="detected")
        assert sorted(seq for batch in batches for seq in batch) == list(range(8))
        assert port.drain(5)
        first.close()
        second.close()


def test_live_frames_come_in_full_batches_or_one_by_one(endpoints, link, rings) -> None:
    with running_broker(*endpoints):
        source = WorkSource(
            endpoints[1], InputSpec(32, 32, 32, False), capacity=8, stuck_s=30, on_stuck=print, rings=rings
        )
        wait_until(lambda: link.spec is not None)
        ports = [link.camera(f"live-{number}", lossless=False) for number in range(6)]
        sizes: list[int] = []

        def a_full_batch_came() -> bool:
            for port in ports:
                assert capture(port, len(sizes))
            while batch := source.next_batch(0.1, most=4):
                sizes.append(len(batch))
                source.done(*(work for work, _ in batch), outcome="detected")
            return 4 in sizes

        wait_until(a_full_batch_came)  # not at once: how many are at hand is up to the sockets
        assert set(sizes) == {1, 4}, "six frames cannot all come in fours"
        assert all(port.drain(5) for port in ports)
        source.close()


def test_closing_counts_what_nobody_took_as_stopped(endpoints) -> None:
    with running_broker(*endpoints):
        link = FrameLink(endpoints[0], lossless_window=4)
        link.start()
        port = link.camera("file", lossless=True)
        for seq in range(4):
            assert capture(port, seq)
        link.close(0.1)
        law = port.ledger.snapshot()
        assert law.dropped == {"stopped": 4} and law.balanced
        assert not capture(port, 5)


def test_curve_admits_known_clients_and_nobody_else(folder) -> None:
    generate_keys(folder / "keys")
    generate_keys(folder / "strangers")
    keys = load_keys(folder / "keys", "broker")
    with running_broker("tcp://127.0.0.1:*", "tcp://127.0.0.1:*", curve=keys) as broker:
        endpoint = broker.endpoints[0]
        friend = FrameLink(endpoint, lossless_window=1, curve=load_keys(folder / "keys", "client"))
        stranger = FrameLink(endpoint, lossless_window=1, curve=load_keys(folder / "strangers", "client"))
        in_the_open = FrameLink(endpoint, lossless_window=1)
        for link in (friend, stranger, in_the_open):
            link.start()
        wait_until(lambda: friend.broker_alive)
        time.sleep(0.5)  # what must not happen has no condition to wait on
        assert not stranger.broker_alive and not in_the_open.broker_alive
        for link in (friend, stranger, in_the_open):
            link.close(0)


def test_keys_are_private_and_never_overwritten(folder) -> None:
    for path in generate_keys(folder / "keys"):
        assert path.stat().st_mode & 0o077 == 0
    with pytest.raises(LinkError, match="exists already"):
        generate_keys(folder / "keys")
    with pytest.raises(LinkError, match="sparsecam keys"):
        load_keys(folder / "nowhere", "client")


@pytest.mark.parametrize(
    "endpoint", ["tcp://10.0.0.5:5555", "tcp://*:5555", "tcp://camera-box:5555", "tcp://[2001:db8::1]:1"]
)
def test_frames_do_not_leave_the_host_in_the_open_unless_told_in_words(endpoint: str) -> None:
    with pytest.raises(LinkError, match="CURVE"):
        check_endpoint(endpoint, None, allow_plaintext=False)
    check_endpoint(endpoint, None, allow_plaintext=True)


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:5555", "tcp://localhost:1", "tcp://[::1]:1", "ipc:///run/x"])
def test_loopback_needs_no_keys(endpoint: str) -> None:
    check_endpoint(endpoint, None, allow_plaintext=False)


@pytest.mark.parametrize("endpoint", ["ipc://" + "x" * 108, "udp://127.0.0.1:1", "frames", "tcp://"])
def test_an_impossible_endpoint_is_refused_in_words(endpoint: str) -> None:
    with pytest.raises(LinkError):
        check_endpoint(endpoint, None, allow_plaintext=False)
