"""The subscriber library: nothing is missed, and nothing is told twice to whoever handles what it is given."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
import redis

from sink.client import Delivered, StateError, alerts, async_alerts
from wire.alerts import ALERTS, Alert, alert_id, alert_once, rfc3339
from wire.messages import WireError
from wire.redis_link import Link, RedisAway, connect
from wire.redis_url import RedisUrlError
from wire.settings import RedisSettings
from wire.valkey import EmbeddedValkey


def make_alert(seq: int) -> Alert:
    return Alert(
        version=1,
        id=alert_id("door", "armed", "pistol", "s1", seq),
        incident=f"i{seq}",
        event="opened",
        camera="door",
        rule="armed",
        text="pistol at door",
        event_time=rfc3339(1_700_000_000_000_000 + seq),
        opened_time=rfc3339(1_700_000_000_000_000),
        seq=seq,
    )


def send(url: str, *seqs: int, maxlen: int = 1000) -> None:
    link = Link(connect(RedisSettings(url=url)))
    try:
        link.send(*(alert_once(make_alert(seq), maxlen) for seq in seqs))
    finally:
        link.close()


def handled(source: Iterator[Delivered], count: int) -> list[int | None]:
    """The numbers of the next alerts; the last of them counts as not handled."""
    return [alert.seq for _, alert in islice(source, count)]


class Subscriber:
    """A loop over alerts in a thread, until closed."""

    def __init__(self, url: str, **options: object) -> None:
        self.seqs: list[int | None] = []
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._source = alerts(url, stop=self._stop, **options)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            for _, alert in self._source:
                self.seqs.append(alert.seq)
        except Exception as error:
            self.error = error

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)
        assert not self._thread.is_alive()


@pytest.fixture
def subscribe() -> Iterator[Callable[..., Subscriber]]:
    begun: list[Subscriber] = []

    def begin(url: str, **options: object) -> Subscriber:
        begun.append(Subscriber(url, **options))
        return begun[-1]

    yield begin
    for subscriber in begun:
        subscriber.close()


def test_an_id_resumes_after_it(valkey: EmbeddedValkey) -> None:
    send(valkey.url, *range(5))
    with closing(alerts(valkey.url, "0")) as source:
        first = next(source)
        assert (first.alert, handled(source, 2)) == (make_alert(0), [1, 2])
    with closing(alerts(valkey.url, first.id)) as source:
        assert handled(source, 4) == [1, 2, 3, 4]


def test_a_state_file_resumes_after_the_last_alert_that_was_handled(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    send(valkey.url, *range(5))
    state = tmp_path / "s.id"
    with closing(alerts(valkey.url, "0", state=state)) as source:
        assert handled(source, 3) == [0, 1, 2]
    # The program died while it handled number 2, so that one comes again; `since` is for the first run only.
    with closing(alerts(valkey.url, "0", state=state)) as source:
        assert handled(source, 3) == [2, 3, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["s.id"]


def test_a_program_that_dies_before_its_first_alert_does_not_miss_it(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    send(valkey.url, 0)
    state = tmp_path / "s.id"
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    assert list(alerts(valkey.url, state=state, stop=stop)) == []  # begins with the next, and none comes
    send(valkey.url, 1)
    with closing(alerts(valkey.url, state=state)) as source:
        assert handled(source, 1) == [1]


def test_nothing_is_missed_when_redis_is_killed(
    own_valkey: EmbeddedValkey, subscribe: Callable[..., Subscriber], wait_until: Callable[..., None], tmp_path: Path
) -> None:
    send(own_valkey.url, 0, 1)
    subscriber = subscribe(own_valkey.url, since="0", state=tmp_path / "s.id", timeout_s=0.5)
    wait_until(lambda: len(subscriber.seqs) == 2)
    for round_ in range(3):
        assert own_valkey.pid is not None
        os.kill(own_valkey.pid, signal.SIGKILL)
        wait_until(lambda: own_valkey.pid is None)
        own_valkey.start()
        send(own_valkey.url, 2 + round_)
        wait_until(lambda count=3 + round_: len(subscriber.seqs) >= count)
    assert subscriber.seqs == [0, 1, 2, 3, 4]


def test_a_redis_that_lost_its_data_is_read_from_its_beginning(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    send(valkey.url, 7)
    state = tmp_path / "s.id"
    state.write_text("9999999999999-0")  # the year 2286: later than anything that this Redis has
    with closing(alerts(valkey.url, state=state)) as source:
        assert handled(source, 1) == [7]


def test_alerts_cut_off_unread_are_told(valkey: EmbeddedValkey, capfd: pytest.CaptureFixture[str]) -> None:
    send(valkey.url, 0)
    with closing(alerts(valkey.url, "0")) as source:
        first = next(source).id
    for seq in range(1, 4):
        send(valkey.url, seq)
    with redis.Redis.from_url(valkey.url) as client:
        client.xtrim(ALERTS, maxlen=1, approximate=False)
    with closing(alerts(valkey.url, first)) as source:
        assert handled(source, 1) == [3]
    assert "cut off unread" in capfd.readouterr().err


def test_redis_may_start_after_the_subscriber(
    own_valkey: EmbeddedValkey, subscribe: Callable[..., Subscriber], wait_until: Callable[..., None]
) -> None:
    own_valkey.stop()
    subscriber = subscribe(own_valkey.url, since="0", wait_s=30.0)
    own_valkey.start()
    send(own_valkey.url, 0)
    wait_until(lambda: subscriber.seqs == [0])


def test_a_redis_that_is_not_there_is_said_at_once_and_without_its_password() -> None:
    with pytest.raises(RedisAway) as told:
        next(alerts("redis://me:hunter22@127.0.0.1:1"))
    assert "hunter22" not in str(told.value)
    with pytest.raises(RedisUrlError):
        next(alerts("http://127.0.0.1"))


def test_a_bad_id_is_refused(valkey: EmbeddedValkey) -> None:
    with pytest.raises(WireError, match="alert id"):
        next(alerts(valkey.url, "yesterday"))


def test_a_file_that_holds_something_else_is_neither_used_nor_changed(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    state = tmp_path / "sparsecam.yaml"
    state.write_text("cameras: {}\n")
    with pytest.raises(StateError, match="something else"):
        next(alerts(valkey.url, state=state))
    assert state.read_text() == "cameras: {}\n"
    with pytest.raises(StateError, match="cannot be written"):
        next(alerts(valkey.url, state=tmp_path / "none" / "s.id"))


def test_an_emptied_state_file_repeats_and_does_not_miss(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    send(valkey.url, 0, 1)
    state = tmp_path / "s.id"
    state.touch()
    with closing(alerts(valkey.url, state=state)) as source:
        assert handled(source, 2) == [0, 1]


def test_asyncio_is_never_held_up_and_resumes_too(
    valkey: EmbeddedValkey, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    async def scenario() -> tuple[list[int | None], int]:
        seen: list[int | None] = []
        beats = 0

        async def subscriber() -> None:
            async for _, alert in async_alerts(valkey.url, "0", state=tmp_path / "s.id"):
                seen.append(alert.seq)

        task = asyncio.create_task(subscriber())
        for seq in range(3):
            await asyncio.to_thread(send, valkey.url, seq)
            while len(seen) <= seq:
                beats += 1
                await asyncio.sleep(0.005)
        # Waiting for an alert that does not come takes nothing from the loop.
        for _ in range(20):
            beats += 1
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return seen, beats

    seen, beats = asyncio.run(asyncio.wait_for(scenario(), 20))
    assert seen == [0, 1, 2]
    assert beats >= 20
    send(valkey.url, 3)
    with closing(alerts(valkey.url, state=tmp_path / "s.id")) as source:
        assert handled(source, 1) == [3]  # number 2 was handled: the loop had asked for the next
    # The thread ends after the read that was under way when the task was cancelled.
    wait_until(lambda: not [one for one in threading.enumerate() if one.name.startswith("alerts")])
