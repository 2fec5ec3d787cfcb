"""Redis streams: a frame appears once, a reader misses none, and no password shows."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import redis
from msgspec.structs import replace
from pydantic import ValidationError
from redis.crc import key_slot

from wire.messages import DetectionRecord, WireError, encode
from wire.redis_link import Link, RedisAway, connect
from wire.redis_url import TLS_OPTIONS, RedisUrlError
from wire.settings import RedisSettings
from wire.streams import (
    DETECTIONS_TTL_S,
    MAX_SEQ,
    PUBLISH_ONCE,
    SEEN_BLOCK_BITS,
    SEEN_TTL_S,
    Reader,
    detections_key,
    last_id,
    publish_once,
    seen_bit,
    sink_key,
)
from wire.valkey import EmbeddedValkey

MakeRecord = Callable[..., DetectionRecord]


@pytest.fixture
def client(valkey: EmbeddedValkey) -> Iterator[redis.Redis]:
    with connect(RedisSettings(), valkey.url) as client:
        yield client


@pytest.fixture
def link(client: redis.Redis) -> Iterator[Link]:
    link = Link(client)
    link.send(("SCRIPT", "LOAD", PUBLISH_ONCE.source))
    yield link
    link.close()


def reader_of(*cameras: str) -> Reader:
    return Reader(cameras, group="g", consumer="c")


def read(reader: Reader, link: Link, count: int = 100) -> list[int | None]:
    """All that is to be had: the frames' numbers, None for an unreadable entry."""
    seqs: list[int | None] = []
    for _ in range(20):
        entries = reader.read(link, count=count, block_s=0.001)
        if not entries and not reader.behind:
            return seqs
        seqs += [entry.record.seq if entry.record else None for entry in entries]
    raise AssertionError("the reader does not come to an end")


# ---- connect


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://user:s3cret@host:6379/0",
        "redis://user:s3cret@host:port/0",
        "redis://:s3cret@[::1/0",
        "redis://user:s3cret@host:6379/0?decode_responses=True",
        "redis://user:s3cret@host:99999999/0",
        "redis://user:s3cret@host:6379/0?db=x",
        "redis://user:s3cret@host:6379/0?dbx=1",
        "redis://user:s3cret@host:6379/sparse",
        "redis://user:s3cret@host:6379/1/2",
        "redis://user:12/s3cret@host:6379/0",
        "redis://user:s3cret@host:6379/0?ssl_cert_reqs=none",
        "rediss://user:s3cret@host:6379/0?ssl_bogus=1",
        "unix:///run/valkey.sock?password=s3cret&ssl_cert_reqs=none",
        "localhost:6379",
    ],
)
def test_a_bad_url_is_named_without_its_password(url: str) -> None:
    with pytest.raises(RedisUrlError, match=r"redis\.url") as raised:
        connect(RedisSettings(), url)
    assert "s3cret" not in str(raised.value)
    assert raised.value.__cause__ is None
    if url:
        with pytest.raises(ValidationError, match="expected redis://"):
            RedisSettings(url=url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:1/0/",
        "redis://127.0.0.1:1/%30",
        "redis://127.0.0.1:1?db=",
        "redis://[::1]:1/0",
        "redis://:p%40ss@127.0.0.1:1/15",
        "unix:///nowhere/valkey.sock?db=3&password=x",
    ],
)
def test_a_url_that_the_library_understands_is_tried(url: str) -> None:
    with pytest.raises(RedisAway):
        connect(RedisSettings(url=url))


@pytest.mark.parametrize("option", ["", *(f"?{name}=x" for name in TLS_OPTIONS)])
def test_the_options_of_tls_are_those_that_the_library_knows(option: str) -> None:
    # Nobody answers at port 1; a name that it does not know would be a TypeError here.
    with pytest.raises(RedisAway):
        connect(RedisSettings(url=f"rediss://127.0.0.1:1/0{option}"))


def test_an_absent_server_is_a_typed_error_without_the_password() -> None:
    with pytest.raises(RedisAway, match=r"127\.0\.0\.1:1.* does not answer") as raised:
        connect(RedisSettings(url="redis://user:s3cret@127.0.0.1:1/0"))
    assert "s3cret" not in str(raised.value)


def test_a_wrong_password_is_told_apart(own_valkey: EmbeddedValkey) -> None:
    connect(RedisSettings(), own_valkey.url).config_set("requirepass", "right")
    assert connect(RedisSettings(), f"{own_valkey.url}?password=right").ping()
    with pytest.raises(RedisAway, match="refused the user name or password") as raised:
        connect(RedisSettings(), f"{own_valkey.url}?password=s3cret")
    assert "s3cret" not in str(raised.value)
    with pytest.raises(RedisAway, match="refused"):
        connect(RedisSettings(), own_valkey.url)


def test_a_lost_answer_never_answers_the_next_command(own_valkey: EmbeddedValkey) -> None:
    link = Link(connect(RedisSettings(timeout_s=0.2), own_valkey.url))
    assert own_valkey.pid is not None
    os.kill(own_valkey.pid, signal.SIGSTOP)
    try:
        with pytest.raises(redis.TimeoutError):
            link.send(("ECHO", "first"))
    finally:
        os.kill(own_valkey.pid, signal.SIGCONT)
    assert link.send(("ECHO", "second")) == [b"second"]


def test_refused_commands_answer_in_their_place(link: Link) -> None:
    before, refused, after = link.send(("ECHO", "a"), ("NO-SUCH-COMMAND",), ("ECHO", "b"))
    assert (before, after) == (b"a", b"b")
    assert isinstance(refused, redis.ResponseError)


# ---- publish-once


def test_a_stream_that_must_not_be_asked_for_is_not_taken_for_an_empty_one(own_valkey: EmbeddedValkey) -> None:
    with redis.Redis.from_url(own_valkey.url) as client:
        client.execute_command("ACL", "SETUSER", "reader", "on", ">secret", "+ping", "+xread", "~*")
    link = Link(redis.Redis.from_url(own_valkey.url, protocol=2, username="reader", password="secret"))
    with pytest.raises(redis.ResponseError, match=r"NOPERM|no permissions"):
        last_id(link, "stream")
    link.close()


def test_a_stream_that_is_not_there_has_given_out_no_id(link: Link) -> None:
    assert last_id(link, "nothing") == b"0-0"


def test_two_senders_of_the_same_frames_leave_each_frame_once(
    valkey: EmbeddedValkey, client: redis.Redis, link: Link, detection_record: MakeRecord
) -> None:
    new: list[int] = []

    def send(worker: str) -> None:
        own = Link(connect(RedisSettings(), valkey.url))
        for begin in range(0, 500, 50):
            records = [detection_record(seq, worker=worker) for seq in range(begin, begin + 50)]
            replies = own.send(*(publish_once(record, 10_000) for record in records))
            new.append(sum(reply is not None for reply in replies))
        own.close()

    threads = [threading.Thread(target=send, args=(worker,)) for worker in ("w1", "w2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.xlen(detections_key("door")) == sum(new) == 500
    reader = reader_of("door")
    reader.resume(link)
    seqs = [seq for seq in read(reader, link) if seq is not None]
    assert sorted(seqs) == list(range(500))


def test_frames_of_other_sessions_cameras_and_blocks_are_other_frames(
    client: redis.Redis, link: Link, detection_record: MakeRecord
) -> None:
    block = 1 << SEEN_BLOCK_BITS
    records = [
        *(replace(detection_record(0), seq=seq) for seq in (0, block - 1, block, 2 * block, MAX_SEQ - 1)),
        detection_record(0, session="s2"),
        detection_record(0, camera="yard"),
    ]
    for expected in (len(records), 0):
        replies = link.send(*(publish_once(record, 100) for record in records))
        assert sum(reply is not None for reply in replies) == expected
    assert client.xlen(detections_key("door")) == 6


def test_what_marks_a_frame_goes_by_itself(client: redis.Redis, link: Link, detection_record: MakeRecord) -> None:
    seen, _ = seen_bit("door", "s1", 5)
    link.send(publish_once(detection_record(5), 100))
    assert SEEN_TTL_S - 5 <= client.ttl(seen) <= SEEN_TTL_S
    client.expire(seen, 60)
    link.send(publish_once(detection_record(6), 100))
    assert client.ttl(seen) > 60, "renewed while the session lives"


def test_a_cameras_detections_go_when_it_has_long_been_silent(
    client: redis.Redis, link: Link, detection_record: MakeRecord
) -> None:
    link.send(publish_once(detection_record(5), 100))
    assert DETECTIONS_TTL_S - 5 <= client.ttl(detections_key("door")) <= DETECTIONS_TTL_S
    client.expire(detections_key("door"), 60)
    link.send(publish_once(detection_record(6), 100))
    assert client.ttl(detections_key("door")) > 60, "renewed while it sends"


def test_a_frame_that_was_refused_is_not_marked(client: redis.Redis, link: Link, detection_record: MakeRecord) -> None:
    client.set(detections_key("door"), "not a stream")
    (refused,) = link.send(publish_once(detection_record(1), 100))
    assert isinstance(refused, redis.ResponseError)
    client.delete(detections_key("door"))
    (accepted,) = link.send(publish_once(detection_record(1), 100))
    assert isinstance(accepted, bytes)


def test_the_keys_of_one_script_are_in_one_cluster_slot() -> None:
    seen, _ = seen_bit("front-door", "{x}", 7)
    keys = [detections_key("front-door"), sink_key("front-door"), seen]
    assert len({key_slot(key.encode()) for key in keys}) == 1
    assert keys[0] == "sparsecam:detections:{front-door}"
    assert all(key.startswith("sparsecam:") for key in keys)


@pytest.mark.parametrize("seq", [-1, MAX_SEQ, 2**63])
def test_an_impossible_frame_number_is_refused(detection_record: MakeRecord, seq: int) -> None:
    with pytest.raises(WireError, match="frame number"):
        publish_once(detection_record(seq), 100)


@pytest.mark.parametrize("camera", ["", "a}b", "{a"])
def test_a_camera_name_that_breaks_the_hash_tag_is_refused(camera: str) -> None:
    with pytest.raises(WireError, match="camera name"):
        detections_key(camera)


# ---- the reader


def publish(link: Link, make: MakeRecord, *seqs: int, **changes: object) -> None:
    for reply in link.send(*(publish_once(make(seq, **changes), 10_000) for seq in seqs)):
        assert isinstance(reply, bytes)


def test_frames_written_before_and_after_the_first_reader_are_read_in_order(
    link: Link, detection_record: MakeRecord
) -> None:
    publish(link, detection_record, *range(5))
    reader = reader_of("door")
    reader.resume(link)
    assert read(reader, link, count=2) == [0, 1, 2, 3, 4]
    publish(link, detection_record, 5, 6)
    assert read(reader, link) == [5, 6]


def test_a_restarted_reader_gets_its_unacknowledged_frames_first(
    client: redis.Redis, link: Link, detection_record: MakeRecord
) -> None:
    publish(link, detection_record, *range(4))
    reader = reader_of("door")
    reader.resume(link)
    ids = [id_ for id_, _ in client.xrange(detections_key("door"))]
    assert read(reader, link) == [0, 1, 2, 3]
    client.xack(detections_key("door"), "g", ids[0], ids[2])
    publish(link, detection_record, 4)
    restarted = reader_of("door")
    restarted.resume(link)
    assert read(restarted, link, count=1) == [1, 3, 4]


def test_a_lost_reply_is_read_again_and_nothing_else_is(
    client: redis.Redis, link: Link, detection_record: MakeRecord
) -> None:
    publish(link, detection_record, 0, 1)
    reader = reader_of("door")
    reader.resume(link)
    assert read(reader, link) == [0, 1]  # not acknowledged
    publish(link, detection_record, 2, 3)
    # The server gives 2 to this consumer, and the answer never arrives.
    client.execute_command("XREADGROUP", "GROUP", "g", "c", "COUNT", 1, "STREAMS", detections_key("door"), ">")
    reader.resume(link)
    assert read(reader, link) == [2, 3]


def test_foreign_entries_are_counted_and_do_not_stop_the_reader(
    client: redis.Redis, link: Link, detection_record: MakeRecord
) -> None:
    stream = detections_key("door")
    publish(link, detection_record, 0)
    client.xadd(stream, {"v": "2", "d": encode(detection_record(1))})
    client.xadd(stream, {"v": "1", "d": b"\xc1 rubbish"})
    client.xadd(stream, {"v": "1"})
    client.xadd(stream, {"something": "else"})
    client.xadd(stream, {"v": "1", "d": encode(detection_record(1, camera="yard"))})
    publish(link, detection_record, 2)
    reader = reader_of("door")
    reader.resume(link)
    assert read(reader, link) == [0, None, None, None, None, None, 2]
    assert (reader.counts.read, reader.counts.malformed) == (7, 5)


def test_entries_cut_off_before_they_were_acknowledged_are_counted(
    client: redis.Redis, link: Link, detection_record: MakeRecord
) -> None:
    publish(link, detection_record, 0, 1, 2)
    reader = reader_of("door")
    reader.resume(link)
    assert read(reader, link) == [0, 1, 2]
    client.xtrim(detections_key("door"), maxlen=1, approximate=False)
    restarted = reader_of("door")
    restarted.resume(link)
    assert read(restarted, link) == [None, None, 2]
    assert restarted.counts.trimmed == 2


def test_a_lost_group_is_made_again_where_reading_stopped(
    client: redis.Redis, link: Link, detection_record: MakeRecord
) -> None:
    publish(link, detection_record, 0, 1)
    reader = reader_of("door")
    reader.resume(link)
    assert read(reader, link) == [0, 1]
    client.xgroup_destroy(detections_key("door"), "g")
    publish(link, detection_record, 2)
    assert reader.read(link, count=10, block_s=0.001) == []
    assert read(reader, link) == [2]


def test_data_lost_while_the_reader_waits_does_not_stop_it(
    valkey: EmbeddedValkey, link: Link, detection_record: MakeRecord
) -> None:
    publish(link, detection_record, 0)
    reader = reader_of("door")
    reader.resume(link)
    assert read(reader, link) == [0]
    other = Link(connect(RedisSettings(), valkey.url))
    lose = threading.Timer(0.1, lambda: other.send(("FLUSHALL",)))
    lose.start()
    begun = time.monotonic()
    assert reader.read(link, count=10, block_s=0.5) == []
    lose.join()
    other.close()
    assert time.monotonic() - begun < 5
    publish(link, detection_record, 1)
    assert read(reader, link) == [1]


def test_a_camera_whose_key_is_no_stream_does_not_stop_the_others(
    client: redis.Redis, link: Link, detection_record: MakeRecord
) -> None:
    client.set(detections_key("bad"), "x")
    publish(link, detection_record, 0)
    reader = reader_of("bad", "door")
    reader.resume(link)
    assert read(reader, link) == [0]
    # and not either when that happens later
    client.set(detections_key("worse"), "x")
    reader = reader_of("door", "worse")
    client.delete(detections_key("worse"))
    reader.resume(link)
    client.set(detections_key("worse"), "x")
    publish(link, detection_record, 1)
    reader.read(link, count=10, block_s=0.001)
    reader.resume(link)
    assert 1 in read(reader, link)
