"""The outbox: never blocks, loses nothing that fits, counts exactly what does not."""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import redis

from wire.messages import DetectionRecord, WireError, decode, decoder
from wire.outbox import Outbox
from wire.redis_link import connect
from wire.room import LEAST_KEPT
from wire.settings import RedisSettings
from wire.streams import detections_key
from wire.valkey import EmbeddedValkey

MakeRecord = Callable[..., DetectionRecord]
WaitUntil = Callable[..., None]


class Told:
    """What the callbacks were told."""

    def __init__(self) -> None:
        self.published: list[int] = []
        self.shed: list[int] = []


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def make_outbox(told: Told) -> Iterator[Callable[..., Outbox]]:
    made: list[Outbox] = []

    def make(url: str, capacity: int = 10_000, timeout_s: float = 0.3) -> Outbox:
        settings = RedisSettings(url=url, timeout_s=timeout_s)
        made.append(
            Outbox(
                lambda: connect(settings),
                capacity,
                maxlen=100_000,
                on_published=lambda records: told.published.extend(record.seq for record in records),
                on_shed=lambda records: told.shed.extend(record.seq for record in records),
            )
        )
        return made[-1]

    yield make
    for outbox in made:
        outbox.close(0)


def in_stream(server: EmbeddedValkey, camera: str = "door") -> list[int]:
    reading = decoder(DetectionRecord)
    with redis.Redis.from_url(server.url) as client:
        return [decode(reading, fields[b"d"]).seq for _, fields in client.xrange(detections_key(camera))]


def kill(server: EmbeddedValkey, wait_until: WaitUntil) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: server.pid is None)


def test_records_arrive_in_order_each_once(
    valkey: EmbeddedValkey, make_outbox: Callable[..., Outbox], told: Told, detection_record: MakeRecord
) -> None:
    outbox = make_outbox(valkey.url)
    for seq in range(1000):
        outbox.put(detection_record(seq, "pistol"))
    assert outbox.flush(10)
    assert in_stream(valkey) == told.published == list(range(1000))
    stats = outbox.stats()
    assert (stats.published, stats.held, stats.shed, stats.reconnects) == (1000, 0, 0, 0)


def test_a_lone_record_is_on_its_way_at_once(
    valkey: EmbeddedValkey, make_outbox: Callable[..., Outbox], told: Told, detection_record: MakeRecord
) -> None:
    outbox = make_outbox(valkey.url)
    outbox.put(detection_record(0))
    assert outbox.flush(5)
    took_ms = []
    for seq in range(1, 101):
        begun = time.perf_counter()
        outbox.put(detection_record(seq))
        assert outbox.flush(5)
        took_ms.append((time.perf_counter() - begun) * 1e3)
    # There, answered and told: well under 1 ms on an idle machine; a poll or a timer would show as tens.
    assert statistics.median(took_ms) < 5


def test_a_frame_sent_by_two_workers_appears_once_and_both_are_told_so(
    valkey: EmbeddedValkey, make_outbox: Callable[..., Outbox], told: Told, detection_record: MakeRecord
) -> None:
    one, two = make_outbox(valkey.url), make_outbox(valkey.url)
    for seq in range(200):
        one.put(detection_record(seq))
        two.put(detection_record(seq))
    assert one.flush(10) and two.flush(10)
    assert sorted(in_stream(valkey)) == list(range(200))
    assert len(told.published) == 400
    assert one.stats().repeated + two.stats().repeated == 200


def test_a_server_killed_in_the_middle_loses_and_repeats_nothing(
    own_valkey: EmbeddedValkey,
    make_outbox: Callable[..., Outbox],
    told: Told,
    detection_record: MakeRecord,
    wait_until: WaitUntil,
) -> None:
    outbox = make_outbox(own_valkey.url)
    feeding = threading.Event()

    def feed() -> None:
        for seq in range(3000):
            outbox.put(detection_record(seq))
            if seq % 10 == 0:
                time.sleep(0.001)
        feeding.set()

    feeder = threading.Thread(target=feed)
    feeder.start()
    for published in (100, 800):
        wait_until(lambda goal=published: outbox.stats().published > goal)
        kill(own_valkey, wait_until)
        own_valkey.start()
    feeder.join()
    assert outbox.flush(10)
    assert in_stream(own_valkey) == list(range(3000))
    assert told.published == list(range(3000))
    assert outbox.stats().reconnects >= 2


def test_a_server_that_comes_back_empty_gets_what_was_not_published_yet(
    valkey: EmbeddedValkey,
    own_valkey: EmbeddedValkey,
    make_outbox: Callable[..., Outbox],
    told: Told,
    detection_record: MakeRecord,
    wait_until: WaitUntil,
) -> None:
    outbox = make_outbox(own_valkey.url)
    for seq in range(50):
        outbox.put(detection_record(seq))
    assert outbox.flush(5)
    kill(own_valkey, wait_until)
    for file in (own_valkey.data_dir / "appendonlydir").iterdir():
        file.unlink()
    for seq in range(50, 100):
        outbox.put(detection_record(seq))
    own_valkey.start()
    assert outbox.flush(10)
    assert in_stream(own_valkey) == list(range(50, 100))
    assert told.published == list(range(100))


def test_a_frozen_server_blocks_no_put_and_sees_no_frame_twice(
    own_valkey: EmbeddedValkey, make_outbox: Callable[..., Outbox], told: Told, detection_record: MakeRecord
) -> None:
    outbox = make_outbox(own_valkey.url, timeout_s=0.2)
    outbox.put(detection_record(0))
    assert outbox.flush(5)
    assert own_valkey.pid is not None
    os.kill(own_valkey.pid, signal.SIGSTOP)
    try:
        longest_ms = 0.0
        for seq in range(1, 300):
            begun = time.perf_counter()
            outbox.put(detection_record(seq))
            longest_ms = max(longest_ms, (time.perf_counter() - begun) * 1e3)
        assert longest_ms < 150  # less than any socket time limit here
        # The commands lie in the frozen server's socket, the answer is overdue: they are sent again later.
        assert not outbox.flush(0.7)
        assert outbox.stats().held == 299
    finally:
        os.kill(own_valkey.pid, signal.SIGCONT)
    assert outbox.flush(10)
    assert in_stream(own_valkey) == told.published == list(range(300))
    assert outbox.stats().repeated > 0, "the test did not cause a repeat"


def test_what_does_not_fit_is_shed_oldest_first_and_counted(
    own_valkey: EmbeddedValkey, make_outbox: Callable[..., Outbox], told: Told, detection_record: MakeRecord
) -> None:
    own_valkey.stop()
    outbox = make_outbox(own_valkey.url, capacity=10)
    for seq in range(100):
        outbox.put(detection_record(seq))
    stats = outbox.stats()
    assert (stats.published, stats.shed, stats.held) == (0, 90, 10)
    own_valkey.start()
    assert outbox.flush(10)
    stats = outbox.stats()
    assert stats.published + stats.shed == 100
    assert sorted(told.published + told.shed) == list(range(100)), "each record is told of exactly once"
    assert in_stream(own_valkey)[-5:] == [95, 96, 97, 98, 99]


def test_close_publishes_what_it_can_and_counts_the_rest(
    own_valkey: EmbeddedValkey, make_outbox: Callable[..., Outbox], told: Told, detection_record: MakeRecord
) -> None:
    outbox = make_outbox(own_valkey.url)
    for seq in range(500):
        outbox.put(detection_record(seq))
    assert outbox.close(5).published == 500
    outbox.put(detection_record(500))
    assert told.shed == [500]
    own_valkey.stop()
    away = make_outbox(own_valkey.url)
    for seq in range(20):
        away.put(detection_record(seq))
    begun = time.monotonic()
    stats = away.close(0.2)
    assert time.monotonic() - begun < 2
    assert (stats.published, stats.shed, stats.held) == (0, 20, 0)
    assert told.shed == [500, *range(20)]


def test_a_server_that_forgot_the_script_is_given_it_again(
    valkey: EmbeddedValkey, make_outbox: Callable[..., Outbox], told: Told, detection_record: MakeRecord
) -> None:
    outbox = make_outbox(valkey.url)
    outbox.put(detection_record(0))
    assert outbox.flush(5)
    with redis.Redis.from_url(valkey.url) as client:
        client.script_flush()
    outbox.put(detection_record(1))
    assert outbox.flush(5)
    assert in_stream(valkey) == [0, 1]


def test_a_full_server_makes_records_wait_and_not_vanish(
    own_valkey: EmbeddedValkey, make_outbox: Callable[..., Outbox], told: Told, detection_record: MakeRecord
) -> None:
    with redis.Redis.from_url(own_valkey.url) as client:
        client.config_set("maxmemory", 1)
        outbox = make_outbox(own_valkey.url)
        outbox.put(detection_record(0))
        assert not outbox.flush(0.3)
        assert outbox.stats().held == 1
        # A lost connection would be looked for in the wrong place.
        assert outbox.stats().trouble.startswith("redis refuses writes: command not allowed when used memory")
        client.config_set("maxmemory", 0)
    assert outbox.flush(10)
    assert outbox.stats().trouble == ""
    assert in_stream(own_valkey) == [0]


def test_a_server_full_of_detections_goes_on_with_new_ones(
    own_valkey: EmbeddedValkey,
    make_outbox: Callable[..., Outbox],
    told: Told,
    detection_record: MakeRecord,
    fill_with_detections: Callable[..., int],
) -> None:
    before = fill_with_detections(own_valkey.url, "door", "yard")
    outbox = make_outbox(own_valkey.url)
    for seq in range(2000):
        outbox.put(detection_record(seq, *["pistol"] * 10, camera="yard" if seq % 2 else "door"))
    assert outbox.flush(20)
    stats = outbox.stats()
    assert (stats.published, stats.shed) == (2000, 0)
    with redis.Redis.from_url(own_valkey.url) as client:
        kept = [client.xlen(detections_key(camera)) for camera in ("door", "yard")]
        newest = [client.xrevrange(detections_key(camera), count=1)[0][1] for camera in ("door", "yard")]
    assert stats.cut == before + 2000 - sum(kept)
    assert min(kept) >= LEAST_KEPT
    assert [decode(decoder(DetectionRecord), fields[b"d"]).seq for fields in newest] == [1998, 1999]


def test_a_memory_that_others_fill_for_a_moment_does_not_cost_all_detections(
    own_valkey: EmbeddedValkey, make_outbox: Callable[..., Outbox], detection_record: MakeRecord
) -> None:
    with redis.Redis.from_url(own_valkey.url) as client:
        with client.pipeline(transaction=False) as pipe:
            for _ in range(10_000):
                pipe.xadd(detections_key("door"), {"v": "0"})
            pipe.execute()
        client.config_set("maxmemory", 1)
        outbox = make_outbox(own_valkey.url)
        outbox.put(detection_record(0))
        assert not outbox.flush(0.2)
        client.config_set("maxmemory", 0)
        assert outbox.flush(10)
        assert 1000 < client.xlen(detections_key("door")) < 10_000


def test_a_camera_whose_key_is_no_stream_does_not_hold_up_the_others(
    valkey: EmbeddedValkey, make_outbox: Callable[..., Outbox], told: Told, detection_record: MakeRecord
) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        client.set(detections_key("bad"), "x")
    outbox = make_outbox(valkey.url)
    for seq in range(10):
        outbox.put(detection_record(seq, camera="bad" if seq % 2 else "door"))
    assert outbox.flush(5)
    assert told.published == in_stream(valkey) == [0, 2, 4, 6, 8]
    assert told.shed == [1, 3, 5, 7, 9]
    assert outbox.stats().refused == 5


def test_a_failing_callback_does_not_stop_publishing(valkey: EmbeddedValkey, detection_record: MakeRecord) -> None:
    def fail(record: DetectionRecord) -> None:
        raise RuntimeError("a fault in the worker")

    outbox = Outbox(lambda: connect(RedisSettings(), valkey.url), 10, maxlen=100, on_published=fail)
    outbox.put(detection_record(0))
    outbox.put(detection_record(1))
    assert outbox.close(5).published == 2
    assert in_stream(valkey) == [0, 1]


def test_an_impossible_record_is_refused_at_put(
    valkey: EmbeddedValkey, make_outbox: Callable[..., Outbox], detection_record: MakeRecord
) -> None:
    outbox = make_outbox(valkey.url)
    with pytest.raises(WireError):
        outbox.put(detection_record(-1))
    with pytest.raises(WireError):
        outbox.put(detection_record(0, camera="a{b"))
    with pytest.raises(WireError):
        outbox.put(detection_record(0, captured_ns=2**64))
    assert outbox.stats().held == 0
