"""Several sinks on a real Valkey share the cameras: whichever dies or sleeps, every alert once and in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from sink.camera import CameraWork, Plan
from sink.incident_settings import IncidentSettings
from sink.settings import PresenceRule
from sink.sink import GROUP
from sink.tracking import TrackerSettings
from wire.alerts import ALERTS, Alert, from_json
from wire.messages import DetectionRecord
from wire.redis_link import Link, connect
from wire.settings import RedisSettings
from wire.streams import PUBLISH_ONCE, detections_key, lease_key, publish_once
from wire.valkey import EmbeddedValkey

MakeRecord = Callable[..., DetectionRecord]
WaitUntil = Callable[..., None]

CAMERAS = [f"camera-{number}" for number in range(6)]
LEASE_S = 1.0
# Alerts of all kinds, many and soon.
PLAN = Plan(
    rules={"person": PresenceRule(confirm_frames=1, window_frames=1, cooldown_s=0)},
    tracker=TrackerSettings(confirm_frames=1),
    incidents=IncidentSettings(merge_s=0.5, update_s=1, max_per_hour=30),
)
PROGRAM = f"""
import sys, threading
from sink.camera import Plan
from sink.incident_settings import IncidentSettings
from sink.settings import PresenceRule, SinkSettings
from sink.sink import run_sink
from sink.tracking import TrackerSettings
from wire.settings import RedisSettings
plan = Plan(
    {{"person": PresenceRule.model_validate({PLAN.rules["person"].model_dump()!r})}},
    tracker=TrackerSettings.model_validate({PLAN.tracker.model_dump()!r}),
    incidents=IncidentSettings.model_validate({PLAN.incidents.model_dump()!r}),
)
settings = SinkSettings(name=sys.argv[2], lease_s={LEASE_S})
run_sink(settings, plan, {CAMERAS!r}, RedisSettings(url=sys.argv[1]), threading.Event())
"""


class Site:
    """Cameras whose detections come bit by bit, and sinks as processes."""

    def __init__(self, url: str, make: MakeRecord) -> None:
        self.url = url
        self.client = redis.Redis.from_url(url)
        self._make = make
        self._sinks: dict[str, subprocess.Popen[bytes]] = {}
        self._frames = 0
        self._stop = threading.Event()
        self._feeder = threading.Thread(target=self._feed)

    def start(self) -> None:
        self._feeder.start()

    def records(self, camera: str, begin: int, end: int) -> list[DetectionRecord]:
        # Every camera in a rhythm of its own.
        seen, rhythm = 6 + CAMERAS.index(camera), 24 + CAMERAS.index(camera)
        return [
            self._make(seq, *["person"] * (seq % rhythm < seen), camera=camera, session=f"of-{camera}")
            for seq in range(begin, end)
        ]

    def _feed(self) -> None:
        link = Link(connect(RedisSettings(url=self.url)))
        link.send(("SCRIPT", "LOAD", PUBLISH_ONCE.source))
        while not self._stop.is_set():
            for camera in CAMERAS:
                records = self.records(camera, self._frames, self._frames + 4)
                # Two workers, out of turn.
                link.send(*(publish_once(records[place], 100_000) for place in (1, 0, 3, 2)))
            self._frames += 4
            time.sleep(0.01)
        link.close()

    def end_of_frames(self) -> None:
        self._stop.set()
        self._feeder.join()

    def sink(self, name: str) -> subprocess.Popen[bytes]:
        sink = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, self.url, name],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._sinks[name] = sink
        return sink

    def owners(self) -> dict[str, list[str]]:
        """Sink: its cameras."""
        owners: dict[str, list[str]] = {}
        for camera in CAMERAS:
            holder = self.client.get(lease_key(camera))
            owners.setdefault(holder.decode().split(":")[0] if holder else "", []).append(camera)
        return owners

    def shares(self) -> list[int]:
        return sorted(len(cameras) for sink, cameras in self.owners().items() if sink)

    def alerts(self) -> list[Alert]:
        return [from_json(fields[b"d"]) for _, fields in self.client.xrange(ALERTS)]

    def acknowledged(self, camera: str) -> int:
        """Entries that sinks are done with."""
        (group,) = self.client.xinfo_groups(detections_key(camera))
        return int(group["entries-read"]) - int(group["pending"])

    def worked_through(self) -> bool:
        groups = [self.client.xinfo_groups(detections_key(camera)) for camera in CAMERAS]
        return all(group["pending"] == 0 and group["lag"] == 0 for (group,) in groups)

    def alerts_are_those_of_an_undisturbed_run(self) -> bool:
        told = self.alerts()
        for camera in CAMERAS:
            work = CameraWork(camera, PLAN)
            records = self.records(camera, 0, self._frames)
            expected = [alert.id for record in records for alert in work.step(record)]
            if [alert.id for alert in told if alert.camera == camera] != expected:
                return False
        return len(told) > 0

    def close(self) -> None:
        self.end_of_frames()
        for sink in self._sinks.values():
            sink.kill()
            sink.wait()
        self.client.close()


@pytest.fixture
def site(valkey: EmbeddedValkey, detection_record: MakeRecord) -> Iterator[Site]:
    site = Site(valkey.url, detection_record)
    site.start()
    yield site
    site.close()


def test_a_killed_sinks_cameras_go_on_with_the_other_within_the_lease(site: Site, wait_until: WaitUntil) -> None:
    first, _ = site.sink("first"), site.sink("second")
    wait_until(lambda: site.shares() == [3, 3], timeout_s=60)
    orphans = site.owners()["first"]
    first.kill()
    killed_s = time.monotonic()
    wait_until(lambda: site.owners() == {"second": CAMERAS}, timeout_s=30)
    # The lease runs out, and the other looks three times in one; the rest is for a machine that other tests keep busy.
    assert time.monotonic() - killed_s < LEASE_S * 4 / 3 + 3
    before = {camera: site.acknowledged(camera) for camera in orphans}
    wait_until(lambda: all(site.acknowledged(camera) > before[camera] for camera in orphans), timeout_s=30)
    site.end_of_frames()
    wait_until(site.worked_through, timeout_s=60)
    assert site.alerts_are_those_of_an_undisturbed_run()


def test_sinks_killed_in_turn_lose_and_repeat_nothing(site: Site, wait_until: WaitUntil) -> None:
    site.sink("a")
    for turn in range(3):
        old, new = ("a", "b") if turn % 2 == 0 else ("b", "a")
        site.sink(new)
        wait_until(lambda: site.shares() == [3, 3], timeout_s=60)
        site._sinks[old].kill()
        site._sinks[old].wait()
        wait_until(lambda new=new: site.owners() == {new: CAMERAS}, timeout_s=30)
    site.end_of_frames()
    wait_until(site.worked_through, timeout_s=60)
    assert site.alerts_are_those_of_an_undisturbed_run()


def test_a_sink_that_sleeps_through_its_lease_changes_nothing_when_it_wakes(site: Site, wait_until: WaitUntil) -> None:
    sleeper, _ = site.sink("sleeper"), site.sink("other")
    wait_until(lambda: site.shares() == [3, 3], timeout_s=60)
    for _ in range(2):
        os.kill(sleeper.pid, signal.SIGSTOP)
        wait_until(lambda: site.owners() == {"other": CAMERAS}, timeout_s=30)
        os.kill(sleeper.pid, signal.SIGCONT)
        wait_until(lambda: site.shares() == [3, 3], timeout_s=60)
    site.end_of_frames()
    wait_until(site.worked_through, timeout_s=60)
    assert site.alerts_are_those_of_an_undisturbed_run()


def test_entries_read_without_the_lease_are_found_and_worked_through(site: Site, wait_until: WaitUntil) -> None:
    site.sink("owner")
    wait_until(lambda: {alert.camera for alert in site.alerts()} == set(CAMERAS), timeout_s=60)
    taken = 0
    while not taken:  # as a sink does that does not know yet that its lease is over
        taken = sum(
            len(entries)
            for camera in CAMERAS
            for _, entries in site.client.xreadgroup(GROUP, "sink", {detections_key(camera): ">"}, count=10)
        )
    site.end_of_frames()
    wait_until(site.worked_through, timeout_s=60)
    assert site.alerts_are_those_of_an_undisturbed_run()
