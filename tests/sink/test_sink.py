"""The sink on a real Valkey: every alert once, whatever dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema
import pytest
import redis

from sink.camera import CameraWork, Plan
from sink.incident_settings import IncidentSettings
from sink.settings import PresenceRule, SinkSettings
from sink.sink import GROUP, Sink, run_sink
from sink.tracking import TrackerSettings
from wire.alerts import ALERTS, Alert, alert_schema, from_json
from wire.messages import DetectionRecord, encode
from wire.redis_link import Link, connect
from wire.settings import RedisSettings
from wire.streams import PUBLISH_ONCE, detections_key, publish_once, sink_key
from wire.valkey import EmbeddedValkey

MakeRecord = Callable[..., DetectionRecord]
WaitUntil = Callable[..., None]

# While pistols are seen in every frame there is an alert in every tenth: one that opens the incident, then updates.
PLAN = Plan(
    rules={"armed": PresenceRule(labels=["pistol"], confirm_frames=2, window_frames=3, cooldown_s=1)},
    tracker=TrackerSettings(confirm_frames=1),
    incidents=IncidentSettings(merge_s=10, update_s=1),
)


class Running:
    """A sink on a thread."""

    def __init__(self, url: str, cameras: list[str], settings: SinkSettings) -> None:
        self.sink = Sink(settings, PLAN, cameras, RedisSettings(url=url, timeout_s=0.3))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.sink.run, args=(self._stop,))
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture
def start_sink() -> Iterator[Callable[..., Running]]:
    running: list[Running] = []

    def start(url: str, cameras: tuple[str, ...] = ("door",), **settings: float) -> Running:
        running.append(
            Running(url, list(cameras), SinkSettings(reorder_timeout_s=settings.get("reorder_timeout_s", 0.3)))
        )
        return running[-1]

    yield start
    for one in running:
        one.stop()


def publish(url: str, *records: DetectionRecord) -> None:
    link = Link(connect(RedisSettings(url=url)))
    replies = link.send(("SCRIPT", "LOAD", PUBLISH_ONCE.source), *(publish_once(one, 10_000) for one in records))
    link.close()
    assert not any(isinstance(reply, Exception) for reply in replies)


def alerts_of(url: str) -> list[Alert]:
    with redis.Redis.from_url(url) as client:
        return [from_json(fields[b"d"]) for _, fields in client.xrange(ALERTS)]


def pending(url: str, camera: str = "door") -> int:
    """Entries read and not acknowledged; -1 while the sink has not made its group yet."""
    with redis.Redis.from_url(url) as client:
        try:
            return int(client.xpending(detections_key(camera), GROUP)["pending"])
        except redis.ResponseError:
            return -1


def kill(server: EmbeddedValkey, wait_until: WaitUntil) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: server.pid is None)


def test_a_connection_that_is_cut_while_cameras_are_taken_up_leaves_none_without_alerts(
    valkey: EmbeddedValkey, start_sink: Callable[..., Running], detection_record: MakeRecord, wait_until: WaitUntil
) -> None:
    cameras = tuple(f"camera-{number:02d}" for number in range(30))

    def cut_amid_them() -> None:
        with redis.Redis.from_url(valkey.url) as client:
            me = client.client_id()
            for number in (4, 9, 14, 19, 24):  # several: one cut may fall between two cameras, where it does no harm
                while not client.exists(detections_key(cameras[number])):  # its group is made when it is taken up
                    pass
                for one in client.client_list():
                    if int(one["id"]) != me:
                        client.client_kill_filter(_id=one["id"])

    cutter = threading.Thread(target=cut_amid_them, daemon=True)
    cutter.start()
    start_sink(valkey.url, cameras)
    cutter.join(20)
    publish(valkey.url, *(detection_record(seq, "pistol", camera=name) for name in cameras for seq in range(3)))
    wait_until(lambda: {alert.camera for alert in alerts_of(valkey.url)} == set(cameras), 20)


def test_detections_become_an_alert_that_keeps_the_schema(
    valkey: EmbeddedValkey, start_sink: Callable[..., Running], detection_record: MakeRecord, wait_until: WaitUntil
) -> None:
    running = start_sink(valkey.url)
    publish(valkey.url, *(detection_record(seq, "pistol", "cup") for seq in range(5)))
    wait_until(lambda: alerts_of(valkey.url))
    wait_until(lambda: pending(valkey.url) == 0 and running.sink.snapshot().unacknowledged == 0)
    with redis.Redis.from_url(valkey.url) as client:
        ((_, fields),) = client.xrange(ALERTS)
    jsonschema.validate(json.loads(fields[b"d"]), alert_schema())
    (alert,) = alerts_of(valkey.url)
    assert (alert.camera, alert.rule, alert.label, alert.session, alert.seq) == ("door", "armed", "pistol", "s1", 1)
    assert (alert.evidence.frames_matched, alert.evidence.frames_seen) == (2, 2)
    assert (alert.frame.width, alert.frame.height, alert.box.right) == (1920, 1080, 110.0)
    assert alert.event_time == "2023-11-14T22:13:20.100000Z"
    assert alert.detection_ms == 12.0
    snapshot = running.sink.snapshot()
    assert snapshot.alerts == {("armed", "opened"): 1}
    assert (snapshot.read, snapshot.gaps, snapshot.duplicates, snapshot.held) == (5, 0, 0, 0)
    assert snapshot.connected


def test_frames_of_several_workers_are_put_in_order(
    valkey: EmbeddedValkey, start_sink: Callable[..., Running], detection_record: MakeRecord, wait_until: WaitUntil
) -> None:
    running = start_sink(valkey.url)
    seqs = [1, 0, 3, 2, 5, 4, 7, 6]
    publish(valkey.url, *(detection_record(seq, *(["pistol"] if seq in {3, 4} else [])) for seq in seqs))
    wait_until(lambda: [alert.seq for alert in alerts_of(valkey.url)] == [4])
    wait_until(lambda: running.sink.snapshot().held == 0)
    assert running.sink.snapshot().gaps == running.sink.snapshot().late == 0


def test_foreign_and_implausible_entries_are_counted_and_acknowledged(
    valkey: EmbeddedValkey, start_sink: Callable[..., Running], detection_record: MakeRecord, wait_until: WaitUntil
) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        client.xadd(detections_key("door"), {"v": "2", "d": b"of the future"})
        client.xadd(detections_key("door"), {"v": "1", "d": encode(detection_record(9, "pistol", event_us=2**62))})
        client.xadd(detections_key("door"), {"v": "1", "d": encode(detection_record(9, "pistol", source_width=0))})
    running = start_sink(valkey.url)
    publish(valkey.url, *(detection_record(seq, "pistol") for seq in range(3)))
    wait_until(lambda: len(alerts_of(valkey.url)) == 1)
    wait_until(lambda: pending(valkey.url) == 0)
    assert running.sink.snapshot().malformed == 3


def test_a_missing_frame_delays_and_is_counted(
    valkey: EmbeddedValkey, start_sink: Callable[..., Running], detection_record: MakeRecord, wait_until: WaitUntil
) -> None:
    running = start_sink(valkey.url)
    publish(valkey.url, detection_record(0, "pistol"), detection_record(2, "pistol"))
    wait_until(lambda: running.sink.snapshot().held == 1)
    wait_until(lambda: [alert.seq for alert in alerts_of(valkey.url)] == [2])
    assert running.sink.snapshot().gaps == 1


def test_a_stopped_sink_goes_on_where_it_was(
    valkey: EmbeddedValkey, start_sink: Callable[..., Running], detection_record: MakeRecord, wait_until: WaitUntil
) -> None:
    first = start_sink(valkey.url, reorder_timeout_s=20)
    publish(valkey.url, detection_record(0, "pistol"), detection_record(2, "pistol"))
    wait_until(lambda: first.sink.snapshot().held == 1)
    first.stop()
    assert pending(valkey.url) == 1, "the frame that is held is not done"
    publish(valkey.url, detection_record(1))
    second = start_sink(valkey.url, reorder_timeout_s=20)
    # Frame 0 from the first run's state, 2 from its unacknowledged entries, 1 new.
    wait_until(lambda: [alert.seq for alert in alerts_of(valkey.url)] == [2])
    assert second.sink.snapshot().gaps == second.sink.snapshot().late == 0


def test_an_outage_of_redis_loses_no_alert(
    own_valkey: EmbeddedValkey, start_sink: Callable[..., Running], detection_record: MakeRecord, wait_until: WaitUntil
) -> None:
    running = start_sink(own_valkey.url)
    publish(own_valkey.url, *(detection_record(seq, "pistol") for seq in range(0, 11)))
    wait_until(lambda: len(alerts_of(own_valkey.url)) == 1)
    wait_until(lambda: running.sink.snapshot().alerts_waiting == 0)  # it has heard that the alert is stored
    kill(own_valkey, wait_until)
    own_valkey.start()
    publish(own_valkey.url, *(detection_record(seq, "pistol") for seq in range(11, 41)))
    wait_until(lambda: len(alerts_of(own_valkey.url)) == 4)
    assert [alert.seq for alert in alerts_of(own_valkey.url)] == [1, 11, 21, 31]
    wait_until(lambda: running.sink.snapshot().reconnects >= 1)
    assert running.sink.snapshot().alerts_repeated == 0


def test_redis_that_comes_back_empty_is_gone_on_with(
    own_valkey: EmbeddedValkey, start_sink: Callable[..., Running], detection_record: MakeRecord, wait_until: WaitUntil
) -> None:
    running = start_sink(own_valkey.url)
    publish(own_valkey.url, *(detection_record(seq, "pistol") for seq in range(5)))
    wait_until(lambda: pending(own_valkey.url) == 0 and len(alerts_of(own_valkey.url)) == 1)
    wait_until(lambda: running.sink.snapshot().alerts_waiting == 0)  # it has heard that the alert is stored
    kill(own_valkey, wait_until)
    for file in (own_valkey.data_dir / "appendonlydir").iterdir():
        file.unlink()
    own_valkey.start()
    publish(own_valkey.url, *(detection_record(seq, "pistol") for seq in range(5, 12)))
    # The incident of frame 1 is still remembered.
    wait_until(lambda: [alert.seq for alert in alerts_of(own_valkey.url)] == [11])


def test_a_frozen_redis_delays_alerts_and_repeats_none(
    own_valkey: EmbeddedValkey, start_sink: Callable[..., Running], detection_record: MakeRecord, wait_until: WaitUntil
) -> None:
    running = start_sink(own_valkey.url)
    wait_until(lambda: running.sink.snapshot().connected)
    assert own_valkey.pid is not None
    os.kill(own_valkey.pid, signal.SIGSTOP)
    wait_until(lambda: not running.sink.snapshot().connected)
    os.kill(own_valkey.pid, signal.SIGCONT)
    publish(own_valkey.url, *(detection_record(seq, "pistol") for seq in range(5)))
    wait_until(lambda: len(alerts_of(own_valkey.url)) == 1)


def test_a_frame_missing_over_an_outage_is_still_waited_for(
    own_valkey: EmbeddedValkey, start_sink: Callable[..., Running], detection_record: MakeRecord, wait_until: WaitUntil
) -> None:
    running = start_sink(own_valkey.url, reorder_timeout_s=0.6)
    publish(own_valkey.url, detection_record(0, "pistol"), detection_record(2))
    wait_until(lambda: running.sink.snapshot().held == 1)
    kill(own_valkey, wait_until)
    time.sleep(1.0)  # longer than it is waited for
    own_valkey.start()
    publish(own_valkey.url, detection_record(1, "pistol"))
    wait_until(lambda: [alert.seq for alert in alerts_of(own_valkey.url)] == [1])
    assert running.sink.snapshot().gaps == 0


def test_a_redis_full_of_detections_does_not_keep_alerts_back(
    own_valkey: EmbeddedValkey,
    start_sink: Callable[..., Running],
    detection_record: MakeRecord,
    wait_until: WaitUntil,
    fill_with_detections: Callable[..., int],
) -> None:
    running = start_sink(own_valkey.url, ("door", "yard"))
    wait_until(lambda: running.sink.snapshot().cameras == 2)
    publish(own_valkey.url, detection_record(0, "pistol"))
    wait_until(lambda: running.sink.snapshot().read == 1)
    before = fill_with_detections(own_valkey.url, "yard")
    wait_until(lambda: running.sink.snapshot().cut)
    assert running.sink.snapshot().cut < before / 2
    publish(own_valkey.url, detection_record(1, "pistol"))
    wait_until(lambda: [alert.seq for alert in alerts_of(own_valkey.url)] == [1])


def test_alerts_that_redis_refuses_wait_until_it_takes_them(
    own_valkey: EmbeddedValkey, start_sink: Callable[..., Running], detection_record: MakeRecord, wait_until: WaitUntil
) -> None:
    running = start_sink(own_valkey.url)
    wait_until(lambda: running.sink.snapshot().connected)
    with redis.Redis.from_url(own_valkey.url) as client:
        publish(own_valkey.url, detection_record(0, "pistol"))
        wait_until(lambda: client.exists(sink_key("door")))
        client.set(ALERTS, "not a stream")
        publish(own_valkey.url, detection_record(1, "pistol"))
        wait_until(lambda: running.sink.snapshot().alerts_waiting == 1)
        client.delete(ALERTS)
        wait_until(lambda: [alert.seq for alert in alerts_of(own_valkey.url)] == [1])
        client.set(sink_key("door"), b"rubbish")
    running.stop()
    start_sink(own_valkey.url).stop()  # an unreadable state is no reason to fail


def test_a_sink_killed_again_and_again_finds_every_alert_once(
    valkey: EmbeddedValkey, detection_record: MakeRecord, wait_until: WaitUntil
) -> None:
    program = (
        "import sys, threading\n"
        "from sink.camera import Plan\n"
        "from sink.incident_settings import IncidentSettings\n"
        "from sink.settings import PresenceRule, SinkSettings\n"
        "from sink.sink import run_sink\n"
        "from sink.tracking import TrackerSettings\n"
        "from wire.settings import RedisSettings\n"
        f"plan = Plan({{'armed': PresenceRule.model_validate({PLAN.rules['armed'].model_dump()!r})}},\n"
        f"  tracker=TrackerSettings.model_validate({PLAN.tracker.model_dump()!r}),\n"
        f"  incidents=IncidentSettings.model_validate({PLAN.incidents.model_dump()!r}))\n"
        "run_sink(SinkSettings(), plan, ['door'], RedisSettings(url=sys.argv[1]), threading.Event())\n"
    )
    # Seen for twenty seconds, gone for twelve: incidents that are opened, updated and closed.
    records = [detection_record(seq, *["pistol"] * (seq % 320 < 200)) for seq in range(3200)]
    expected = [alert.id for alert in _alerts_without_a_sink(records)]
    assert len(expected) > 200

    def feed() -> None:
        for begin in range(0, len(records), 20):
            # two workers, a little out of turn
            publish(valkey.url, *(records[seq ^ 1] for seq in range(begin, begin + 20)))
            time.sleep(0.01)

    feeder = threading.Thread(target=feed)
    feeder.start()
    for goal in (20, 100, 150, len(expected)):
        with subprocess.Popen(
            [sys.executable, "-c", program, valkey.url], cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL
        ) as sink:
            wait_until(lambda goal=goal: len(alerts_of(valkey.url)) >= goal, timeout_s=30)
            sink.kill()
    feeder.join()
    assert [alert.id for alert in alerts_of(valkey.url)] == expected


def _alerts_without_a_sink(records: list[DetectionRecord]) -> list[Alert]:
    work = CameraWork("door", PLAN)
    return [alert for record in records for alert in work.step(record)]


def test_run_sink_works_through_what_is_there_before_it_ends(
    valkey: EmbeddedValkey, detection_record: MakeRecord
) -> None:
    publish(valkey.url, *(detection_record(seq, "pistol") for seq in range(600)))  # more than one reading
    stop = threading.Event()
    stop.set()
    beats: list[int] = []
    snapshot = run_sink(
        SinkSettings(),
        PLAN,
        ["door"],
        RedisSettings(),
        stop,
        default_url=valkey.url,
        beat=lambda: beats.append(1),
    )
    assert snapshot.read == 600
    assert snapshot.alerts == {("armed", "opened"): 1, ("armed", "updated"): 59}
    assert pending(valkey.url) == 0
