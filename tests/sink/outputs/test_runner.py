"""Every alert reaches every output at least once under one key, or is put aside; no output waits for another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sink.outputs.deadletters import count_deadletters, deadletters, deadletters_key, drop_deadletters
from sink.outputs.delivery import DeliveryError, Failed, Output, Refused, Unreachable
from sink.outputs.lease import Lease
from sink.outputs.runner import HELD_MOST, OutputRunner
from sink.outputs.settings import WebhookSettings
from sink.outputs.webhook import Webhook
from wire.alerts import ALERTS, Alert, to_json
from wire.redis_link import Link, connect
from wire.settings import RedisSettings
from wire.valkey import EmbeddedValkey

ROOT = Path(__file__).resolve().parents[3]
QUICK = {"retry_first_s": 0.02, "retry_most_s": 0.1}


def webhook(url: str, **changes: Any) -> WebhookSettings:
    return WebhookSettings(**{"kind": "webhook", "url": url, "allow_private": True, **QUICK, **changes})


class Scripted(Output):
    """An output that fails as it is told: `answers(alert, attempt)` gives an error or None."""

    def __init__(self, answers: Callable[[Alert, int], DeliveryError | None] = lambda *_: None) -> None:
        self.taken: list[Alert] = []
        self.tries: dict[str, int] = {}
        self._answers = answers
        self.ends: list[str] = []

    def deliver(self, alert: Alert, text: bytes) -> None:
        self.tries[alert.id] = self.tries.get(alert.id, 0) + 1
        if error := self._answers(alert, self.tries[alert.id]):
            raise error
        self.taken.append(alert)

    def release(self) -> None:
        self.ends.append("released")

    def close(self) -> None:
        self.ends.append("closed")

    @property
    def seqs(self) -> list[int | None]:
        return [alert.seq for alert in list(self.taken)]


class Switched(Lease):
    """A lease that is held, and that another has, as it is told."""

    def __init__(self) -> None:
        super().__init__("a", redis.Redis)
        self.is_ours, self.is_taken, self.is_silent = True, False, False

    def held(self) -> bool:
        return self.is_ours

    def taken(self) -> bool:
        return self.is_taken

    def silent(self) -> bool:
        return self.is_silent


def pending(url: str, name: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.xpending(ALERTS, f"output:{name}")["pending"])


def group_names(url: str) -> list[bytes]:
    with redis.Redis.from_url(url) as client:
        return [one["name"] for one in client.xinfo_groups(ALERTS)] if client.exists(ALERTS) else []


def publish_of_the_past(url: str, *alerts: Alert) -> None:
    """With ids of two days ago."""
    with redis.Redis.from_url(url) as client:
        newest = client.xinfo_stream(ALERTS)["last-generated-id"]
        at_ms = max(int(time.time() - 2 * 86_400) * 1000, int(newest.partition(b"-")[0]) + 1)
        for number, one in enumerate(alerts):
            client.xadd(ALERTS, {"v": "1", "d": to_json(one)}, id=f"{at_ms}-{number}")


def letters(url: str, name: str) -> list[Any]:
    link = Link(connect(RedisSettings(url=url)))
    try:
        return list(deadletters(link, name))
    finally:
        link.close()


def test_alerts_come_in_order_and_are_acknowledged(
    valkey: EmbeddedValkey, start: Any, publish: Any, make_alert: Any, wait_until: Any
) -> None:
    output = Scripted()
    running = start("a", webhook("http://h"), output, valkey.url)
    for begin in range(0, 300, 50):
        publish(valkey.url, *(make_alert(seq) for seq in range(begin, begin + 50)))
    wait_until(lambda: len(output.taken) >= 300)
    assert output.seqs == list(range(300))
    wait_until(lambda: pending(valkey.url, "a") == 0)
    assert running.runner.counts().delivered == 300
    assert running.runner.counts().failures == 0


def test_a_new_output_is_not_told_of_the_past(
    valkey: EmbeddedValkey, start: Any, publish: Any, make_alert: Any, wait_until: Any
) -> None:
    publish(valkey.url, make_alert(1))
    output = Scripted()
    start("a", webhook("http://h"), output, valkey.url)
    publish(valkey.url, make_alert(2))
    wait_until(lambda: output.taken)
    assert output.seqs == [2]


def test_an_output_gets_what_its_settings_want(
    valkey: EmbeddedValkey, start: Any, publish: Any, make_alert: Any, wait_until: Any
) -> None:
    outputs = {
        "default": Scripted(),
        "door": Scripted(),
        "rule": Scripted(),
        "label": Scripted(),
        "all": Scripted(),
    }
    wants: dict[str, dict[str, Any]] = {
        "default": {},
        "door": {"cameras": ["yard"]},
        "rule": {"rules": ["system.camera_down"]},
        "label": {"labels": ["pistol"]},
        "all": {"events": ["opened", "updated", "closed"]},
    }
    running = [start(name, webhook("http://h", **wants[name]), one, valkey.url) for name, one in outputs.items()]
    publish(
        valkey.url,
        make_alert(0),
        make_alert(1, "closed"),
        make_alert(2, camera="yard"),
        make_alert(3, rule="system.camera_down", label=None),
    )
    wait_until(lambda: all(one.runner.counts().delivered + one.runner.counts().unwanted == 4 for one in running))
    assert {name: one.seqs for name, one in outputs.items()} == {
        "default": [0, 2, 3],
        "door": [2],
        "rule": [3],
        "label": [0, 2],
        "all": [0, 1, 2, 3],
    }
    assert [pending(valkey.url, name) for name in outputs] == [0] * 5


def test_a_receiver_that_was_down_gets_everything_in_order(
    valkey: EmbeddedValkey, receiver: Any, start: Any, publish: Any, make_alert: Any, wait_until: Any
) -> None:
    one = webhook(receiver.url)
    running = start("hook", one, Webhook(one), valkey.url)
    publish(valkey.url, *(make_alert(seq) for seq in range(5)))
    wait_until(lambda: len(receiver.requests) == 5)
    receiver.stop()
    publish(valkey.url, *(make_alert(seq) for seq in range(5, 400)))  # more than are held at once
    wait_until(lambda: running.runner.counts().failures >= 3)
    assert not running.runner.counts().reachable
    wait_until(lambda: running.runner.counts().waiting == 395)
    receiver.start()
    wait_until(lambda: len(receiver.requests) == 400)
    assert receiver.ids == [make_alert(seq).id for seq in range(400)]
    wait_until(lambda: running.runner.counts().waiting == 0 and pending(valkey.url, "hook") == 0)
    assert running.runner.counts().reachable
    assert letters(valkey.url, "hook") == []


def test_a_slow_output_holds_up_no_other(
    valkey: EmbeddedValkey, receiver: Any, start: Any, publish: Any, make_alert: Any, wait_until: Any
) -> None:
    gone = threading.Event()
    receiver.habit = lambda _: gone.wait(10)
    slow, quick = webhook(receiver.url, timeout_s=3), Scripted()
    start("slow", slow, Webhook(slow), valkey.url)
    start("quick", webhook("http://h"), quick, valkey.url)
    begun = time.monotonic()
    publish(valkey.url, *(make_alert(seq) for seq in range(100)))
    wait_until(lambda: len(quick.taken) == 100)
    assert time.monotonic() - begun < 2
    assert len(receiver.requests) == 1
    gone.set()


def test_one_alert_that_fails_holds_up_its_own_incident_only(
    valkey: EmbeddedValkey, start: Any, publish: Any, make_alert: Any, wait_until: Any
) -> None:
    output = Scripted(lambda alert, attempt: Failed("not now") if alert.seq == 0 and attempt < 4 else None)
    start("a", webhook("http://h", events=["opened", "closed"]), output, valkey.url)
    publish(
        valkey.url,
        make_alert(0, incident="bad"),
        make_alert(1),
        make_alert(2, "closed", incident="bad"),
        make_alert(3),
    )
    wait_until(lambda: len(output.taken) == 4)
    assert output.seqs == [1, 3, 0, 2]


class TestDeadLetters:
    def test_hold_what_failed_too_often_or_was_refused(
        self,
        valkey: EmbeddedValkey,
        receiver: Any,
        answers: Any,
        start: Any,
        publish: Any,
        make_alert: Any,
        wait_until: Any,
    ) -> None:
        one = webhook(receiver.url, max_attempts=3)
        running = start("hook", one, Webhook(one), valkey.url)
        receiver.habit = answers(500, b"broken")
        publish(valkey.url, make_alert(1))
        wait_until(lambda: running.runner.counts().buried == 1)
        assert receiver.ids == [make_alert(1).id] * 3
        receiver.habit = answers(422, b"no such camera")
        publish(valkey.url, make_alert(2))
        wait_until(lambda: running.runner.counts().buried == 2)
        receiver.habit = None
        publish(valkey.url, make_alert(3))
        wait_until(lambda: running.runner.counts().delivered == 1)
        found = letters(valkey.url, "hook")
        assert [(one.alert, one.reason, one.attempts) for one in found] == [
            (make_alert(1), "HTTP 500: broken", 3),
            (make_alert(2), "HTTP 422: no such camera", 1),
        ]
        wait_until(lambda: pending(valkey.url, "hook") == 0)

    def test_hold_what_is_too_old(
        self, valkey: EmbeddedValkey, start: Any, publish: Any, make_alert: Any, wait_until: Any
    ) -> None:
        output = Scripted(lambda *_: Unreachable("away"))
        running = start("a", webhook("http://h", max_age_s=0.3), output, valkey.url)
        publish(valkey.url, *(make_alert(seq) for seq in range(3)))
        wait_until(lambda: running.runner.counts().buried == 3)
        assert "max_age_s" in letters(valkey.url, "a")[0].reason

    def test_hold_what_was_old_when_it_was_read_without_an_attempt(
        self, valkey: EmbeddedValkey, start: Any, make_alert: Any, wait_until: Any
    ) -> None:
        """A siren must not sound for each alert of an outage."""
        output = Scripted()
        running = start("a", webhook("http://h"), output, valkey.url)
        publish_of_the_past(valkey.url, *(make_alert(seq) for seq in range(3)))
        wait_until(lambda: running.runner.counts().buried == 3)
        assert output.tries == {}

    def test_hold_nothing_because_a_clock_was_set(
        self,
        valkey: EmbeddedValkey,
        start: Any,
        publish: Any,
        make_alert: Any,
        wait_until: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A unit without a battery clock: the network comes, the clock is set, and what waited is delivered."""
        away = threading.Event()
        away.set()
        output = Scripted(lambda *_: Unreachable("away") if away.is_set() else None)
        running = start("a", webhook("http://h"), output, valkey.url)
        publish(valkey.url, *(make_alert(seq) for seq in range(3)))
        wait_until(lambda: running.runner.counts().failures >= 2)
        true_time = time.time
        monkeypatch.setattr("time.time", lambda: true_time() + 2 * 86_400)
        time.sleep(0.2)
        away.clear()
        publish(valkey.url, make_alert(3))
        wait_until(lambda: output.seqs == [0, 1, 2, 3])
        assert letters(valkey.url, "a") == []

    def test_are_shed_as_the_oldest_and_counted(
        self, valkey: EmbeddedValkey, start: Any, publish: Any, make_alert: Any, wait_until: Any
    ) -> None:
        output = Scripted(lambda *_: Refused("never"))
        running = start("a", webhook("http://h", deadletters_maxlen=3), output, valkey.url)
        publish(valkey.url, *(make_alert(seq) for seq in range(10)))
        wait_until(lambda: running.runner.counts().buried == 10)
        assert running.runner.counts().shed == 7
        assert [one.alert.seq for one in letters(valkey.url, "a")] == [7, 8, 9]

    def test_are_read_page_by_page_and_dropped(self, valkey: EmbeddedValkey, make_alert: Any) -> None:
        from sink.outputs.deadletters import put_aside

        link = Link(connect(RedisSettings(url=valkey.url)))
        for seq in range(450):
            link.send(put_aside("a", to_json(make_alert(seq)), "r" * 1000, 1, 1000))
        link.send(("XADD", deadletters_key("a"), "*", "v", "9"))
        found = list(deadletters(link, "a"))
        assert [one.alert.seq for one in found] == list(range(450))
        assert max(len(one.reason) for one in found) == 300
        assert count_deadletters(link, "a") == 451
        assert drop_deadletters(link, "a", [one.id for one in found[:10]]) == 10
        assert count_deadletters(link, "a") == 441
        assert list(deadletters(link, "none")) == []
        link.close()


class TestRedis:
    def test_killed_and_restarted_loses_nothing(
        self, own_valkey: EmbeddedValkey, start: Any, publish: Any, make_alert: Any, wait_until: Any
    ) -> None:
        output = Scripted(lambda *_: time.sleep(0.002))
        running = start("a", webhook("http://h"), output, own_valkey.url)
        for turn in range(5):
            publish(own_valkey.url, *(make_alert(seq) for seq in range(turn * 100, turn * 100 + 100)))
            wait_until(lambda turn=turn: len(output.taken) >= turn * 100 + 30)
            assert own_valkey.pid is not None
            os.kill(own_valkey.pid, signal.SIGKILL)
            wait_until(lambda: own_valkey.pid is None)
            own_valkey.start()
        wait_until(lambda: len(set(output.seqs)) == 500, 20)
        wait_until(lambda: pending(own_valkey.url, "a") == 0)
        assert running.runner.counts().trimmed == 0
        # What was delivered while Redis was away is known, and not delivered again.
        assert output.seqs == list(range(500))

    def test_that_lost_all_its_data_is_followed_from_its_new_beginning(
        self, own_valkey: EmbeddedValkey, start: Any, publish: Any, make_alert: Any, wait_until: Any
    ) -> None:
        output = Scripted()
        start("a", webhook("http://h"), output, own_valkey.url)
        publish(own_valkey.url, make_alert(1))
        wait_until(lambda: output.seqs == [1])
        with redis.Redis.from_url(own_valkey.url) as client:
            client.flushall()
            publish(own_valkey.url, make_alert(2))
        wait_until(lambda: output.seqs == [1, 2])

    def test_what_the_stream_cut_off_is_counted(
        self, valkey: EmbeddedValkey, start: Any, publish: Any, make_alert: Any, wait_until: Any
    ) -> None:
        """Neither what was handed out and waits, nor what waits in the stream, goes without a word."""
        output = Scripted(lambda *_: Unreachable("away"))
        running = start("a", webhook("http://h"), output, valkey.url)
        publish(valkey.url, *(make_alert(seq) for seq in range(HELD_MOST)))
        wait_until(lambda: pending(valkey.url, "a") == HELD_MOST)
        publish(valkey.url, *(make_alert(seq) for seq in range(1000, 1100)))
        running.stop()
        with redis.Redis.from_url(valkey.url) as client:
            client.xtrim(ALERTS, maxlen=40, approximate=False)
        output = Scripted()
        running = start("a", webhook("http://h"), output, valkey.url)
        wait_until(lambda: len(output.taken) == 40)
        assert output.seqs == list(range(1060, 1100))
        assert running.runner.counts().trimmed == HELD_MOST + 60
        running.stop()
        running = start("a", webhook("http://h"), Scripted(), valkey.url)
        assert running.runner.counts().trimmed == 0  # counted once


def test_an_alert_of_another_version_is_skipped_and_counted(
    valkey: EmbeddedValkey, start: Any, publish: Any, make_alert: Any, wait_until: Any
) -> None:
    output = Scripted()
    running = start("a", webhook("http://h"), output, valkey.url)
    with redis.Redis.from_url(valkey.url) as client:
        client.xadd(ALERTS, {"v": "2", "d": "{}"})
        client.xadd(ALERTS, {"v": "1", "d": "rubbish"})
    publish(valkey.url, make_alert(1))
    wait_until(lambda: output.seqs == [1])
    assert running.runner.counts().malformed == 2
    wait_until(lambda: pending(valkey.url, "a") == 0)


def test_an_output_with_a_bug_loses_no_alert(
    valkey: EmbeddedValkey, start: Any, publish: Any, make_alert: Any, wait_until: Any
) -> None:
    def buggy(alert: Alert, attempt: int) -> None:
        if attempt < 3:
            raise KeyError("nobody foresaw this")

    output = Scripted(buggy)
    start("a", webhook("http://h"), output, valkey.url)
    publish(valkey.url, make_alert(1))
    wait_until(lambda: output.seqs == [1])


PROGRAM = """
import os, signal, sys, threading
from sink.outputs.runner import OutputRunner
from sink.outputs.settings import WebhookSettings
from sink.outputs.webhook import Webhook
from wire.settings import RedisSettings
from wire.redis_link import connect

class Deadly(Webhook):
    def deliver(self, alert, text):
        super().deliver(alert, text)
        if alert.seq % 10 == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)  # after the delivery, before the acknowledgement

settings = WebhookSettings(kind="webhook", url=sys.argv[2], allow_private=True)
runner = OutputRunner("hook", settings, Deadly(settings), lambda: connect(RedisSettings(url=sys.argv[1])))
runner.run(threading.Event())
"""


def test_a_process_killed_between_delivery_and_acknowledgement_delivers_again_under_the_same_key(
    valkey: EmbeddedValkey, receiver: Any, start: Any, publish: Any, make_alert: Any, wait_until: Any
) -> None:
    one = webhook(receiver.url)
    start("hook", one, Webhook(one), valkey.url).stop()  # the group is there now
    publish(valkey.url, *(make_alert(seq) for seq in range(50)))
    for turn in (3, 7, 9):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, valkey.url, receiver.url, str(turn)], cwd=ROOT, timeout=30, check=False
        )
        assert done.returncode == -signal.SIGKILL
    running = start("hook", one, Webhook(one), valkey.url)
    wait_until(lambda: pending(valkey.url, "hook") == 0 and running.runner.counts().waiting == 0)
    expected = [make_alert(seq).id for seq in range(50)]
    assert set(receiver.ids) == set(expected)
    assert len(receiver.ids) == 53  # each death repeats one alert
    assert list(dict.fromkeys(receiver.ids)) == expected
    bodies = {request.headers["webhook-id"]: request.body for request in receiver.requests}
    assert all(bodies[request.headers["webhook-id"]] == request.body for request in receiver.requests)


def test_an_alert_that_kills_the_process_comes_to_its_end(
    valkey: EmbeddedValkey, receiver: Any, start: Any, publish: Any, make_alert: Any, wait_until: Any
) -> None:
    one = webhook(receiver.url, max_attempts=3)
    start("hook", one, Webhook(one), valkey.url).stop()
    publish(valkey.url, make_alert(3))
    for _ in range(3):
        subprocess.run(
            [sys.executable, "-c", PROGRAM, valkey.url, receiver.url, "3"], cwd=ROOT, timeout=30, check=False
        )
    running = start("hook", one, Scripted(lambda *_: Failed("no")), valkey.url)
    wait_until(lambda: running.runner.counts().buried == 1)


@given(st.lists(st.sampled_from(["ok", "failed", "unreachable", "refused"]), max_size=12), st.integers(1, 4))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_fails_each_alert_is_delivered_or_put_aside(
    valkey: EmbeddedValkey, publish: Any, make_alert: Any, wait_until: Any, troubles: list[str], max_attempts: int
) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    kinds = {"failed": Failed, "unreachable": Unreachable, "refused": Refused}
    script = iter(troubles)
    output = Scripted(lambda *_: kinds[now]("x") if (now := next(script, "ok")) in kinds else None)
    one = webhook("http://h", max_attempts=max_attempts, retry_first_s=0.001, retry_most_s=0.002)
    runner = OutputRunner("a", one, output, lambda: connect(RedisSettings(url=valkey.url)))
    stop = threading.Event()
    thread = threading.Thread(target=runner.run, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: runner._link is not None)
        publish(valkey.url, *(make_alert(seq) for seq in range(4)))
        wait_until(lambda: runner.counts().delivered + runner.counts().buried == 4)
    finally:
        stop.set()
        thread.join(5)
    assert sorted([*output.seqs, *(one.alert.seq for one in letters(valkey.url, "a"))]) == [0, 1, 2, 3]
    assert pending(valkey.url, "a") == 0


def test_without_the_lease_nothing_is_delivered_and_with_it_what_waited_is(
    valkey: EmbeddedValkey, publish: Any, make_alert: Any, wait_until: Any
) -> None:
    lease, output = Switched(), Scripted()
    runner = OutputRunner("a", webhook("http://h"), output, lambda: connect(RedisSettings(url=valkey.url)), lease)
    stop = threading.Event()
    thread = threading.Thread(target=runner.run, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: runner._link is not None)
        lease.is_ours = False
        wait_until(lambda: runner._link is None)
        publish(valkey.url, make_alert(1))
        time.sleep(0.3)
        assert output.taken == []
        lease.is_ours = True
        wait_until(lambda: output.seqs == [1])
    finally:
        stop.set()
        thread.join(5)


def test_what_comes_before_anybody_has_the_lease_is_kept(
    valkey: EmbeddedValkey, publish: Any, make_alert: Any, wait_until: Any
) -> None:
    lease, output = Switched(), Scripted()
    lease.is_ours = False
    runner = OutputRunner("a", webhook("http://h"), output, lambda: connect(RedisSettings(url=valkey.url)), lease)
    stop = threading.Event()
    thread = threading.Thread(target=runner.run, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: group_names(valkey.url) == [b"output:a"])
        publish(valkey.url, make_alert(1))
        time.sleep(0.3)
        assert output.taken == []
        lease.is_ours = True
        wait_until(lambda: output.seqs == [1])
    finally:
        stop.set()
        thread.join(5)


@pytest.mark.parametrize("then", ["replaced", "stopped"])
def test_an_output_cut_off_from_redis_speaks_for_this_process_until_another_has_taken_over(
    valkey: EmbeddedValkey, wait_until: Any, then: str
) -> None:
    """It keeps its connection (and so MQTT's will) and says goodbye; replaced, it leaves without a word."""
    lease, output = Switched(), Scripted()
    stop = threading.Event()
    runner = OutputRunner("a", webhook("http://h"), output, lambda: connect(RedisSettings(url=valkey.url)), lease)
    thread = threading.Thread(target=runner.run, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: runner._link is not None)
        lease.is_silent, lease.is_ours = True, False
        wait_until(lambda: runner._link is None)
        time.sleep(0.3)  # three looks at the lease
        assert output.ends == []
        if then == "replaced":
            lease.is_silent, lease.is_taken = False, True
            wait_until(lambda: "released" in output.ends)
    finally:
        stop.set()
        thread.join(5)
    assert output.ends[-2:] == (["released", "closed"] if then == "replaced" else ["closed"])
