"""Incidents that nobody goes on with, on a real Valkey: closed once, with a reason; those of others are left alone."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from sink.budget import SUPPRESSED
from sink.camera import Plan
from sink.delivery import CameraState, load_state
from sink.fence import Fence
from sink.incident_settings import IncidentSettings, SystemSettings
from sink.leases import Leases
from sink.orphans import Orphans, Standing, read_standing
from sink.settings import PresenceRule, SinkSettings
from sink.sink import Sink
from sink.system import CAMERA_DOWN
from sink.tracking import TrackerSettings
from sink.watched import BUDGET_S, WatchedCamera
from sink.watchers import WATCHED, Watcher, watchers_of, write_watchers
from wire.alerts import ALERTS, OPEN_INCIDENTS, Alert, alert_schema, from_json, to_json
from wire.cameras import CameraStatus, write_status
from wire.messages import DetectionRecord
from wire.open_incidents import names_of
from wire.redis_link import Link, connect
from wire.settings import RedisSettings
from wire.streams import PUBLISH_ONCE, camera_key, lease_key, publish_once, sink_key
from wire.valkey import EmbeddedValkey

MakeRecord = Callable[..., DetectionRecord]
WaitUntil = Callable[..., None]

RULE = PresenceRule(confirm_frames=1, window_frames=1, cooldown_s=0)
# Nothing ends by itself within a test: neither by frames nor, but for what is nobody's, without.
INCIDENTS = IncidentSettings(merge_s=1000, idle_s=1, system=SystemSettings(ingest_silent_s=2, camera_down_s=1))
PLAN = Plan({"armed": RULE}, tracker=TrackerSettings(confirm_frames=1), incidents=INCIDENTS)
LASTING = replace(PLAN, incidents=INCIDENTS.model_copy(update={"idle_s": 1000}))


@contextmanager
def sink(url: str, *cameras: str, plan: Plan = PLAN, name: str = "one") -> Iterator[Sink]:
    """A sink on a thread."""
    one, stop = Sink(SinkSettings(name=name, lease_s=1), plan, cameras, RedisSettings(url=url)), threading.Event()
    thread = threading.Thread(target=one.run, args=(stop,))
    thread.start()
    try:
        yield one
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def link(valkey: EmbeddedValkey) -> Iterator[Link]:
    link = Link(connect(RedisSettings(), valkey.url))
    link.send(("SCRIPT", "LOAD", PUBLISH_ONCE.source))
    yield link
    link.close()


def alerts(link: Link, event: str, camera: str | None = None) -> list[Alert]:
    (entries,) = link.send(("XRANGE", ALERTS, "-", "+"))
    told = [from_json(fields[3]) for _, fields in entries]
    return [one for one in told if one.event == event and camera in (None, one.camera)]


def open_incidents(link: Link) -> dict[str, set[str]]:
    return names_of(link.send(("HKEYS", OPEN_INCIDENTS))[0])


@pytest.fixture
def leave_open(
    valkey: EmbeddedValkey, link: Link, detection_record: MakeRecord, wait_until: WaitUntil
) -> Callable[..., list[Alert]]:
    """`leave_open(*cameras, name="one", plan=LASTING)`: a sink opens an incident on each and stops; their alerts."""

    def leave(*cameras: str, name: str = "one", plan: Plan = LASTING) -> list[Alert]:
        records = [
            detection_record(seq, "pistol", camera=camera, session=camera) for camera in cameras for seq in (0, 1, 2)
        ]
        with sink(valkey.url, *cameras, plan=plan, name=name) as running:
            link.send(*(publish_once(one, 1000) for one in records))
            wait_until(lambda: {one.camera for one in alerts(link, "opened")} >= set(cameras))
            wait_until(lambda: running.snapshot().read == len(records) and running.snapshot().unacknowledged == 0)
            wait_until(lambda: watchers_of(link.send(("HGETALL", WATCHED))[0]).keys() >= set(cameras))
        return [one for one in alerts(link, "opened") if one.camera in cameras]

    return leave


def test_a_removed_or_renamed_cameras_incident_is_closed_once_with_its_reason(
    valkey: EmbeddedValkey,
    link: Link,
    leave_open: Callable[..., list[Alert]],
    detection_record: MakeRecord,
    wait_until: WaitUntil,
) -> None:
    opened = {one.camera: one for one in leave_open("door", "yard")}
    assert open_incidents(link) == {camera: {one.incident} for camera, one in opened.items()}
    with sink(valkey.url, "porch", "yard", plan=replace(LASTING, incidents=INCIDENTS)) as running:
        wait_until(lambda: alerts(link, "closed", "door"))
        wait_until(lambda: running.snapshot().alerts.get(("armed", "closed"), 0) >= 1)
    (closed,) = alerts(link, "closed", "door")
    jsonschema.validate(json.loads(to_json(closed)), alert_schema())
    assert (closed.incident, closed.rule, closed.label) == (opened["door"].incident, "armed", "pistol")
    assert closed.id != opened["door"].id
    assert closed.detail == {"duration_s": 0.2, "reason": "camera_removed"}
    assert closed.text == "pistol seen at door: over after 0.2 s; nobody watches the camera any more"
    assert "door" not in open_incidents(link)
    assert "door" not in watchers_of(link.send(("HGETALL", WATCHED))[0])
    assert link.send(("TTL", sink_key("door")))[0] > 0

    with sink(valkey.url, "door", "yard", plan=LASTING) as running:  # it comes back: a new incident, no second end
        link.send(publish_once(detection_record(3, "pistol", session="door"), 1000))
        wait_until(lambda: len(alerts(link, "opened", "door")) == 2)
        assert running.snapshot().alerts_repeated == 0
    assert len(alerts(link, "closed", "door")) == 1


def test_what_the_system_says_of_a_removed_camera_is_closed_too(
    valkey: EmbeddedValkey,
    link: Link,
    leave_open: Callable[..., list[Alert]],
    detection_record: MakeRecord,
    wait_until: WaitUntil,
) -> None:
    link.send(write_status("door", CameraStatus("backing_off", False, "refused"), "ingest"))
    strict = replace(LASTING, rules={"armed": RULE, "again": RULE})
    strict = replace(strict, incidents=LASTING.incidents.model_copy(update={"max_per_hour": 1}))
    with sink(valkey.url, "door", plan=strict):
        link.send(publish_once(detection_record(0, "pistol"), 1000))
        wait_until(lambda: {one.rule for one in alerts(link, "opened")} == {"armed", SUPPRESSED, CAMERA_DOWN})
    with sink(valkey.url):  # without any camera of its own
        wait_until(lambda: len(alerts(link, "closed", "door")) == 3)
    closed = {one.rule: one for one in alerts(link, "closed", "door")}
    assert closed.keys() == {"armed", SUPPRESSED, CAMERA_DOWN}
    assert {one.detail["reason"] for one in closed.values()} == {"camera_removed"}
    assert closed[SUPPRESSED].suppressed == 1
    assert not open_incidents(link)


def test_an_incident_of_a_quiet_camera_is_open_for_idle_s_also_where_that_is_longer_than_the_budgets_hour(
    detection_record: MakeRecord,
) -> None:
    lasting = INCIDENTS.model_copy(update={"idle_s": 2 * BUDGET_S})
    camera = WatchedCamera("door", replace(PLAN, incidents=lasting), SinkSettings(), CameraState())
    (opened,) = camera.step(detection_record(0, "pistol"))
    assert camera.close_idle(1.9 * BUDGET_S) == []
    (closed,) = camera.close_idle(2 * BUDGET_S)
    assert (opened.event, closed.event, closed.incident) == ("opened", "closed", opened.incident)


def test_a_camera_in_the_hands_of_others_is_left_alone(
    valkey: EmbeddedValkey, link: Link, leave_open: Callable[..., list[Alert]], wait_until: WaitUntil
) -> None:
    leave_open("watched", "told-of", "gone")
    leave_open("away", name="two")
    with sink(valkey.url, "watched", plan=LASTING, name="three"), sink(valkey.url, "yard"):

        def is_closed(camera: str) -> bool:
            link.send(write_status("told-of", CameraStatus("streaming", True), "ingest"))  # its ingest runs
            return bool(alerts(link, "closed", camera))

        wait_until(lambda: is_closed("gone"))
        assert [one.camera for one in alerts(link, "closed")] == ["gone"]
        assert open_incidents(link).keys() == {"watched", "told-of", "away"}
        # Nobody has heard of the other's sink for longer than that.
        now_us = read_standing(link).now_us
        link.send(write_watchers([("away", Watcher("two", now_us - 3_601_000_000, ("armed",)))]))
        wait_until(lambda: is_closed("away"))
        assert open_incidents(link).keys() == {"watched", "told-of"}


def test_a_camera_must_be_alone_for_the_whole_of_idle_s(link: Link, leave_open: Callable[..., list[Alert]]) -> None:
    leave_open("door")
    leases = Leases(["yard"], "one", 5.0)
    orphans = Orphans(PLAN, SinkSettings(), leases, Fence(leases.owner), 1000)

    def found(now_s: float) -> list[str]:
        return orphans.find(link, read_standing(link), now_s)

    assert (found(0.0), found(0.9), found(1.0)) == ([], [], ["door"])
    orphans.reset()  # Redis was away meanwhile
    assert (found(1.1), found(2.1)) == ([], ["door"])
    link.send(("SET", lease_key("door"), "another", "PX", 60_000))
    assert found(2.2) == []
    link.send(("DEL", lease_key("door")))
    assert (found(2.3), found(3.3)) == ([], ["door"])
    link.send(("HSET", camera_key("door"), "v", "1", "state", "rubbish"))
    assert found(3.4) == []


def test_names_that_no_camera_can_have_are_left_alone(link: Link) -> None:
    leases = Leases(["yard"], "one", 5.0)
    orphans = Orphans(PLAN, SinkSettings(), leases, Fence(leases.owner), 1000)
    link.send(("HSET", OPEN_INCIDENTS, "rubbish", "x", '["{a}","i"]', "x"), ("HSET", WATCHED, "", "x", "b", "{"))
    standing = read_standing(link)
    assert standing == Standing(standing.now_us, {"{a}": {"i"}}, {})
    assert (orphans.find(link, standing, 0.0), orphans.find(link, standing, 10.0)) == ([], [])


class Sleepy(Leases):
    """Of a sink that sleeps through its lease right after it got it."""

    def borrow(self, link: Link, camera: str) -> bool:
        got = super().borrow(link, camera)
        link.send(("SET", lease_key(camera), "another", "PX", 60_000))
        return got


def test_a_sink_that_lost_the_lease_or_never_got_it_closes_nothing(
    link: Link, leave_open: Callable[..., list[Alert]]
) -> None:
    (opened,) = leave_open("door")
    for kind in (Sleepy, Leases):  # at the second the other has the lease from the beginning
        leases = kind(["yard"], "one", 5.0)
        orphans = Orphans(PLAN, SinkSettings(), leases, Fence(leases.owner), 1000)
        assert orphans.end(link, "door", {opened.incident}) == ([], [])
        assert link.send(("GET", lease_key("door"))) == [b"another"]
    assert not alerts(link, "closed")
    assert load_state(link, "door").work.incidents.ongoing
    link.send(("DEL", lease_key("door")))
    told, new = orphans.end(link, "door", {opened.incident})
    assert ([one.incident for one in told], new) == ([opened.incident], [True])
    assert link.send(("EXISTS", lease_key("door"))) == [0]
    assert orphans.end(link, "door", {opened.incident})[1] == []


PROGRAM = f"""
import sys, threading
from sink.camera import Plan
from sink.incident_settings import IncidentSettings
from sink.settings import SinkSettings
from sink.sink import run_sink
from wire.settings import RedisSettings
plan = Plan(incidents=IncidentSettings.model_validate({INCIDENTS.model_dump()!r}))
run_sink(SinkSettings(name=sys.argv[2], lease_s=1), plan, ["yard"], RedisSettings(url=sys.argv[1]), threading.Event())
"""


def test_sinks_killed_while_they_close_many_close_each_once(
    valkey: EmbeddedValkey, link: Link, leave_open: Callable[..., list[Alert]], wait_until: WaitUntil
) -> None:
    cameras = [f"camera-{number:02}" for number in range(60)]
    opened = leave_open(*cameras)
    assert len(opened) == len(cameras)
    # "one" had them before; for "two" nobody else is left who could have them.
    old = [(camera, Watcher()) for camera in cameras]
    link.send(write_watchers(old))
    running = []

    def start(name: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", PROGRAM, valkey.url, name]
        running.append(subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL))
        return running[-1]

    try:
        for goal in (1, 30):
            victim, _ = start("one"), start("two")
            wait_until(lambda goal=goal: len(alerts(link, "closed")) >= goal, timeout_s=20)
            for one in running:
                one.kill()
        start("one")
        start("two")
        wait_until(lambda: not open_incidents(link), timeout_s=20)
    finally:
        for one in running:
            one.kill()
            one.wait()
    assert victim.returncode == -9
    assert sorted(one.incident for one in alerts(link, "closed")) == sorted(one.incident for one in opened)


def test_a_removed_rules_incident_is_closed_at_once_and_the_others_go_on(
    valkey: EmbeddedValkey, link: Link, leave_open: Callable[..., list[Alert]], wait_until: WaitUntil
) -> None:
    opened = {one.rule: one for one in leave_open("door", plan=replace(LASTING, rules={"armed": RULE, "old": RULE}))}
    assert opened.keys() == {"armed", "old"}
    for _ in range(2):  # once is enough
        with sink(valkey.url, "door", plan=replace(LASTING, rules={"armed": RULE, "new": RULE})) as running:
            wait_until(lambda: alerts(link, "closed"))
            wait_until(lambda running=running: running.snapshot().unacknowledged == 0)
    (closed,) = alerts(link, "closed")
    assert (closed.incident, closed.rule) == (opened["old"].incident, "old")
    assert closed.detail == {"duration_s": 0.2, "reason": "rule_removed"}
    assert closed.text == "pistol seen at door: over after 0.2 s; its rule watches the camera no more"
    assert open_incidents(link) == {"door": {opened["armed"].incident}}
    assert watchers_of(link.send(("HGETALL", WATCHED))[0])["door"].rules == ("armed", "new")


def test_a_rule_that_no_longer_watches_the_camera_is_closed_too(
    valkey: EmbeddedValkey, link: Link, leave_open: Callable[..., list[Alert]], wait_until: WaitUntil
) -> None:
    leave_open("door", "yard")
    elsewhere = replace(LASTING, rules={"armed": RULE.model_copy(update={"cameras": ["yard"]})})
    with sink(valkey.url, "door", "yard", plan=elsewhere):
        wait_until(lambda: alerts(link, "closed"))
    assert [(one.camera, one.detail["reason"]) for one in alerts(link, "closed")] == [("door", "rule_removed")]


def test_the_systems_own_incidents_are_closed_when_they_are_switched_off(
    valkey: EmbeddedValkey, link: Link, wait_until: WaitUntil
) -> None:
    link.send(write_status("door", CameraStatus("streaming", True, same_s=1000), "ingest"))
    with sink(valkey.url, "door", plan=LASTING):
        wait_until(lambda: alerts(link, "opened", "door"))
    silent = INCIDENTS.model_copy(update={"system": SystemSettings(enabled=False)})
    with sink(valkey.url, "door", plan=replace(PLAN, incidents=silent)):
        wait_until(lambda: alerts(link, "closed", "door"))
    assert alerts(link, "closed")[0].detail["reason"] == "rule_removed"
    assert not open_incidents(link)


@pytest.mark.parametrize("state", ["gone", "unreadable"])
def test_an_incident_whose_state_is_lost_is_closed(
    valkey: EmbeddedValkey, link: Link, leave_open: Callable[..., list[Alert]], wait_until: WaitUntil, state: str
) -> None:
    (opened,) = leave_open("door")
    link.send(("DEL", sink_key("door")) if state == "gone" else ("SET", sink_key("door"), b"rubbish"))
    with sink(valkey.url, "door", plan=LASTING):
        wait_until(lambda: alerts(link, "closed"))
        wait_until(lambda: not open_incidents(link))
    (closed,) = alerts(link, "closed")
    jsonschema.validate(json.loads(to_json(closed)), alert_schema())
    assert (closed.incident, closed.event_time) == (opened.incident, opened.event_time)
    assert closed.detail == {"reason": "state_lost"}
    assert closed.text == "pistol seen at door: over; what was known of it is lost"


def test_an_entry_of_which_nothing_can_be_read_is_forgotten(
    valkey: EmbeddedValkey, link: Link, wait_until: WaitUntil
) -> None:
    link.send(("HSET", OPEN_INCIDENTS, '["door","a"]', b'{"id":"\xff"}'))
    with sink(valkey.url, "door", plan=LASTING):
        wait_until(lambda: not link.send(("HKEYS", OPEN_INCIDENTS))[0])
    assert not alerts(link, "closed")


def test_what_goes_on_is_never_taken_for_lost(
    valkey: EmbeddedValkey, link: Link, detection_record: MakeRecord, wait_until: WaitUntil
) -> None:
    brief = replace(PLAN, incidents=INCIDENTS.model_copy(update={"merge_s": 0.1, "update_s": 0.1, "idle_s": 1000}))
    with sink(valkey.url, "door", plan=brief) as running:
        begun_s = time.monotonic()
        seq = 0
        # Several looks at what is open, amid openings and ends.
        while time.monotonic() - begun_s < 4 or len(alerts(link, "closed")) <= 20:
            batch = [detection_record(one, *["pistol"] * (one % 5 < 2)) for one in range(seq, seq + 20)]
            link.send(*(publish_once(one, 100_000) for one in batch))
            seq += 20
            wait_until(lambda read=seq: running.snapshot().read == read)
        wait_until(lambda: running.snapshot().unacknowledged == 0)
    closed = alerts(link, "closed")
    assert all("reason" not in one.detail for one in closed)
    assert running.snapshot().alerts_repeated == 0


def test_a_silent_cameras_budget_is_told_in_the_end(
    valkey: EmbeddedValkey,
    link: Link,
    detection_record: MakeRecord,
    wait_until: WaitUntil,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sink.watched.BUDGET_S", 2.0)
    strict = INCIDENTS.model_copy(update={"max_per_hour": 1, "idle_s": 1})
    with sink(valkey.url, "door", plan=replace(PLAN, rules={"armed": RULE, "again": RULE}, incidents=strict)):
        link.send(publish_once(detection_record(0, "pistol"), 1000))
        wait_until(lambda: [one.rule for one in alerts(link, "closed")] == ["armed", SUPPRESSED])
    assert alerts(link, "closed")[1].suppressed == 1
