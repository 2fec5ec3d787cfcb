"""The public alert: the schema tells the truth, and followers miss and repeat nothing."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import jsonschema
import msgspec
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from wire.alerts import (
    ALERTS,
    LAST_EVENT_US,
    Alert,
    Box,
    Evidence,
    FrameSize,
    alert_id,
    alert_once,
    alert_schema,
    follow_alerts,
    from_json,
    rfc3339,
    schema_text,
    to_json,
)
from wire.messages import WireError
from wire.redis_link import Link, RedisAway, connect
from wire.settings import RedisSettings
from wire.valkey import EmbeddedValkey

SCHEMA = Path(__file__).parents[2] / "docs" / "alert.schema.json"


def make_alert(seq: int, latency_ms: float | None = 12.5) -> Alert:
    return Alert(
        version=1,
        id=alert_id("door", "armed", "pistol", "s1", seq),
        incident="4f",
        event="opened",
        camera="door",
        rule="armed",
        text="pistol at door",
        label="pistol",
        score=0.93,
        event_time=rfc3339(1_700_000_000_000_000 + seq),
        opened_time=rfc3339(1_700_000_000_000_000),
        box=Box(1.0, 2.0, 30.5, 40.0),
        frame=FrameSize(1920, 1080),
        evidence=Evidence(3, 5),
        model="m",
        session="s1",
        seq=seq,
        detection_ms=11.0,
        latency_ms=latency_ms,
    )


class Follower:
    """Follows in a thread until closed."""

    def __init__(self, url: str, since_id: str | None) -> None:
        self.seen: list[tuple[str, Alert]] = []
        self._stop = threading.Event()
        settings = RedisSettings(url=url, timeout_s=0.5)
        self._alerts = follow_alerts(lambda: connect(settings), since_id, self._stop)
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def _follow(self) -> None:
        for seen in self._alerts:
            self.seen.append(seen)

    @property
    def seqs(self) -> list[int]:
        return [alert.seq for _, alert in list(self.seen)]

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)
        assert not self._thread.is_alive()


@pytest.fixture
def follow() -> Iterator[Callable[[str, str | None], Follower]]:
    followers: list[Follower] = []

    def begin(url: str, since_id: str | None) -> Follower:
        followers.append(Follower(url, since_id))
        return followers[-1]

    yield begin
    for follower in followers:
        follower.close()


def send(url: str, *alerts: Alert) -> list[bytes | None]:
    link = Link(connect(RedisSettings(url=url)))
    try:
        return link.send(*(alert_once(alert, 1000) for alert in alerts))
    finally:
        link.close()


def test_the_published_schema_is_that_of_the_type() -> None:
    assert SCHEMA.read_text() == schema_text(), "run `python -m wire.alerts > docs/alert.schema.json`"


@pytest.mark.parametrize("latency_ms", [12.5, None])
def test_real_alerts_keep_the_schema(latency_ms: float | None) -> None:
    schema = alert_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    text = to_json(make_alert(3, latency_ms))
    validator.validate(json.loads(text))
    assert from_json(text) == make_alert(3, latency_ms)


@pytest.mark.parametrize(
    ("field", "value"),
    [("version", 2), ("score", 1.5), ("event_time", "yesterday"), ("seq", -1), ("box", {}), ("id", None)],
)
def test_the_schema_and_the_decoder_refuse_the_same(field: str, value: object) -> None:
    wrong = {**json.loads(to_json(make_alert(1))), field: value}
    assert not jsonschema.Draft202012Validator(alert_schema()).is_valid(wrong)
    with pytest.raises(WireError):
        from_json(json.dumps(wrong).encode())


def test_a_reader_of_today_reads_an_alert_with_fields_of_tomorrow() -> None:
    newer = {**json.loads(to_json(make_alert(1))), "zone": "gate"}
    jsonschema.validate(newer, alert_schema())
    assert from_json(json.dumps(newer).encode()) == make_alert(1)


def test_every_field_is_described() -> None:
    for definition in alert_schema()["$defs"].values():
        for name, of_field in definition["properties"].items():
            assert "$ref" in of_field or of_field.get("description"), name


@given(st.integers(0, LAST_EVENT_US))
def test_event_times_are_exact_to_the_microsecond(event_us: int) -> None:
    text = rfc3339(event_us)
    since = datetime.fromisoformat(text.replace("Z", "+00:00")) - datetime(1970, 1, 1, tzinfo=timezone.utc)
    assert since == timedelta(microseconds=event_us)
    msgspec.convert(msgspec.to_builtins(msgspec.structs.replace(make_alert(1), event_time=text)), Alert)


@pytest.mark.parametrize("event_us", [-1, LAST_EVENT_US + 1])
def test_an_impossible_event_time_is_refused(event_us: int) -> None:
    with pytest.raises(WireError, match="event time"):
        rfc3339(event_us)


names = st.text(max_size=5)


@given(
    st.tuples(names, names, names, names, st.integers(0, 9)), st.tuples(names, names, names, names, st.integers(0, 9))
)
def test_different_findings_have_different_ids(
    one: tuple[str, str, str, str, int], other: tuple[str, str, str, str, int]
) -> None:
    assert (alert_id(*one) == alert_id(*other)) == (one == other)


def test_an_alert_sent_twice_is_delivered_once_on_stream_and_channel(valkey: EmbeddedValkey) -> None:
    with redis.Redis.from_url(valkey.url) as client, client.pubsub() as channel:
        channel.subscribe(ALERTS)
        channel.get_message(timeout=5)  # the answer to subscribe
        first = send(valkey.url, make_alert(1))[0]
        assert isinstance(first, bytes)
        assert send(valkey.url, make_alert(1), make_alert(2))[0] is None
        heard = [channel.get_message(timeout=5), channel.get_message(timeout=5)]
        assert [from_json(message["data"]).seq for message in heard if message] == [1, 2]
        assert channel.get_message(timeout=0.05) is None
        entries = client.xrange(ALERTS)
        assert [from_json(fields[b"d"]).seq for _, fields in entries] == [1, 2]
        assert entries[0][0] == first
        assert entries[0][1][b"v"] == b"1"


def test_following_begins_where_it_is_told(
    valkey: EmbeddedValkey, follow: Callable[[str, str | None], Follower], wait_until: Callable[..., None]
) -> None:
    ids = send(valkey.url, *(make_alert(seq) for seq in range(5)))
    assert ids[2] is not None
    all_kept, after = follow(valkey.url, "0"), follow(valkey.url, ids[2].decode())
    wait_until(lambda: len(all_kept.seen) == 5 and len(after.seen) == 2)
    new = follow(valkey.url, None)
    seq = itertools.count(5)
    # "From now on" begins somewhere in these; from there on it has every one.
    wait_until(lambda: send(valkey.url, make_alert(next(seq))) and len(new.seen) >= 3)
    last = next(seq)
    send(valkey.url, make_alert(last))
    wait_until(lambda: all(follower.seqs[-1:] == [last] for follower in (all_kept, after, new)))
    assert all_kept.seqs == list(range(last + 1))
    assert after.seqs == list(range(3, last + 1))
    assert new.seqs == list(range(new.seqs[0], last + 1))
    assert new.seqs[0] >= 5


def test_a_follower_has_no_gap_and_no_repeat_across_a_kill_and_restart(
    own_valkey: EmbeddedValkey, follow: Callable[[str, str | None], Follower], wait_until: Callable[..., None]
) -> None:
    send(own_valkey.url, *(make_alert(seq) for seq in range(3)))
    follower = follow(own_valkey.url, "0")
    wait_until(lambda: len(follower.seen) == 3)
    resume_from = follower.seen[1][0]
    assert own_valkey.pid is not None
    os.kill(own_valkey.pid, signal.SIGKILL)
    wait_until(lambda: own_valkey.pid is None)
    own_valkey.start()
    send(own_valkey.url, *(make_alert(seq) for seq in range(3, 6)))
    wait_until(lambda: len(follower.seen) >= 6)
    assert follower.seqs == list(range(6))
    resumed = follow(own_valkey.url, resume_from)
    wait_until(lambda: len(resumed.seen) >= 4)
    assert resumed.seqs == [2, 3, 4, 5]


def test_a_follower_goes_on_when_redis_comes_back_empty(
    own_valkey: EmbeddedValkey, follow: Callable[[str, str | None], Follower], wait_until: Callable[..., None]
) -> None:
    send(own_valkey.url, make_alert(0))
    follower = follow(own_valkey.url, "0")
    wait_until(lambda: len(follower.seen) == 1)
    own_valkey.stop()
    for file in (own_valkey.data_dir / "appendonlydir").iterdir():
        file.unlink()
    own_valkey.start()
    send(own_valkey.url, make_alert(1))
    wait_until(lambda: len(follower.seen) >= 2)
    assert follower.seqs == [0, 1]


def test_alerts_of_another_version_are_skipped(
    valkey: EmbeddedValkey, follow: Callable[[str, str | None], Follower], wait_until: Callable[..., None]
) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        client.xadd(ALERTS, {"v": "2", "d": b"future"})
        client.xadd(ALERTS, {"v": "1", "d": b'{"version": 1'})
        client.xadd(ALERTS, {"x": "y"})
    send(valkey.url, make_alert(7))
    follower = follow(valkey.url, "0")
    wait_until(lambda: follower.seqs == [7])


@pytest.mark.parametrize("since_id", ["yesterday", "1-", "-1", "1-2-3", "99999999999999999999-0"])
def test_a_bad_id_is_refused(valkey: EmbeddedValkey, since_id: str) -> None:
    with pytest.raises(WireError, match="alert id"):
        next(follow_alerts(lambda: connect(RedisSettings(url=valkey.url)), since_id, threading.Event()))


def test_following_an_absent_redis_says_so() -> None:
    away = RedisSettings(url="redis://127.0.0.1:1")
    with pytest.raises(RedisAway):
        next(follow_alerts(lambda: connect(away), None, threading.Event()))
