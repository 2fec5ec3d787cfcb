"""The work on one camera: the same frames give the same alerts, whole or in parts, with everything switched on."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from sink.budget import SUPPRESSED
from sink.camera import CameraWork, Plan, WorkState
from sink.incident_settings import IncidentSettings
from sink.settings import CountRule, DwellRule, LineRule, PresenceRule, SceneSettings, ZoneRule
from wire.alerts import to_json
from wire.messages import Detection, DetectionRecord

MakeRecord = Callable[..., DetectionRecord]

PLAN = Plan(
    rules={
        "presence": PresenceRule(by="track", cooldown_s=0),
        "zone": ZoneRule(zone="porch", cooldown_s=2),
        "line": LineRule(line="gate", cooldown_s=0),
        "dwell": DwellRule(zone="porch", dwell_s=1, cooldown_s=0),
        "count": CountRule(over=2, cooldown_s=0),
        "elsewhere": PresenceRule(cameras=["yard"]),
    },
    scenes={
        "door": SceneSettings(
            zones={"porch": [(0.3, 0.0), (0.7, 0.0), (0.7, 1.0), (0.3, 1.0)]}, lines={"gate": [(0.5, 0.0), (0.5, 1.0)]}
        )
    },
    incidents=IncidentSettings(merge_s=1, update_s=1, max_per_hour=25),
)


@pytest.fixture(scope="module")
def walk(detection_record: MakeRecord) -> list[DetectionRecord]:
    """Five walkers through the picture, one after the other, again and again."""

    def seen(seq: int) -> list[Detection]:
        places = [(seq * 25 + number * 400) % 2600 - 300 for number in range(5)]
        return [
            Detection("person", 0, 0.9, (float(x), 200.0 + 120 * number, x + 60.0, 360.0 + 120 * number))
            for number, x in enumerate(places)
            if 0 <= x <= 1860
        ]

    return [detection_record(seq, detections=seen(seq)) for seq in range(600)]


def told(work: CameraWork, records: list[DetectionRecord]) -> list[bytes]:
    return [to_json(alert) for record in records for alert in work.step(record)]


def test_the_same_frames_give_the_same_alerts_byte_for_byte(walk: list[DetectionRecord]) -> None:
    first, again = CameraWork("door", PLAN), CameraWork("door", PLAN)
    alerts = told(first, walk)
    assert alerts == told(again, walk)
    assert {msgspec.json.decode(alert)["rule"] for alert in alerts} == {*PLAN.rules, SUPPRESSED} - {"elsewhere"}


@pytest.mark.parametrize("every", [1, 7, 100])
def test_work_handed_from_process_to_process_tells_the_same(walk: list[DetectionRecord], every: int) -> None:
    expected = told(CameraWork("door", PLAN), walk)
    state, alerts = WorkState(), []
    for begin in range(0, len(walk), every):
        work = CameraWork("door", PLAN, state)
        alerts += told(work, walk[begin : begin + every])
        state = msgspec.msgpack.decode(msgspec.msgpack.encode(work.state()), type=WorkState)
    assert alerts == expected


def test_a_storm_of_findings_is_the_budget_and_one_summary(walk: list[DetectionRecord]) -> None:
    work = CameraWork("door", PLAN)
    alerts = [alert for record in walk for alert in work.step(record)] + work.end()
    opened = [alert for alert in alerts if alert.event == "opened"]
    summaries = [alert for alert in alerts if alert.rule == SUPPRESSED]
    assert len(opened) == 25 + 1
    assert [alert.event for alert in summaries] == ["opened", "closed"]
    assert summaries[-1].suppressed == work.incidents.counts.suppressed > 25
    assert sorted(alert.incident for alert in opened) == sorted(
        alert.incident for alert in alerts if alert.event == "closed"
    )


def test_a_rule_that_is_gone_or_of_another_kind_ends_its_incidents_and_harms_no_other(
    walk: list[DetectionRecord],
) -> None:
    before = CameraWork("door", PLAN)
    ongoing = [alert for record in walk[:60] for alert in before.step(record)]
    left_open = {alert.incident for alert in ongoing if alert.rule == "count" and alert.event == "opened"} - {
        alert.incident for alert in ongoing if alert.event == "closed"
    }
    assert left_open
    rules = {name: rule for name, rule in PLAN.rules.items() if name != "count"}
    changed = Plan({**rules, "zone": PresenceRule()}, PLAN.scenes, incidents=PLAN.incidents)
    after = CameraWork("door", changed, before.state())
    alerts = [alert for record in walk[60:100] for alert in after.step(record)]
    assert left_open <= {alert.incident for alert in alerts if alert.event == "closed"}


def test_what_stays_before_a_sleeping_camera_is_told_of_once(detection_record: MakeRecord) -> None:
    """By default: a look every ten seconds and at the next keyframe, of which one finds nothing."""
    work = CameraWork("door", Plan({"parked": PresenceRule()}))
    looks = [detection_record(seq, "car", event_us=10**15 + seq * 100_000) for seq in range(30)]
    looks += [detection_record(30 + k, *["car"][: k != 4], event_us=10**15 + 12_000_000 * (k + 1)) for k in range(10)]
    alerts = [alert for record in looks for alert in work.step(record)]
    assert [alert.event for alert in alerts if alert.event != "updated"] == ["opened"]
