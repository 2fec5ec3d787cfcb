"""Incidents: one alert as something begins, updates now and then, one as it is over, and never a storm."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sink.budget import SUPPRESSED, WINDOW_US
from sink.incidents import LATE_US, MAX_ONGOING, Incidents, IncidentsState, Limits
from sink.tracks import Finding, Track
from wire.alerts import Alert, from_json, to_json
from wire.messages import DetectionRecord

MakeRecord = Callable[..., DetectionRecord]

LIMITS = Limits(merge_s=1.0, update_s=2.0, max_per_hour=100)


def finding(key: str = "track 1", label: str = "person", *, momentary: bool = False) -> Finding:
    track = Track(
        int(key[6:] or 0) if key.startswith("track ") else 0, label, 0.9, (0.0, 0.0, 9.0, 9.0), (0, 0), 0, 1, 0
    )
    return Finding(key, label, f"{label} seen", (track,), momentary=momentary)


def run(
    incidents: Incidents, records: Iterable[DetectionRecord], found: Callable[[int], list[Finding]]
) -> list[tuple[int | None, str]]:
    """(frame, event) of every alert; `found` says what the rule finds in a frame."""
    return [
        (record.seq, alert.event)
        for record in records
        for alert in incidents.step(record.event_us, [("armed", one) for one in found(record.seq)], record)
    ]


def test_an_incident_is_opened_updated_and_closed_once_under_one_id(detection_record: MakeRecord) -> None:
    incidents = Incidents("door", LIMITS, {})
    alerts = [
        alert
        for seq in range(60)
        for alert in incidents.step(
            detection_record(seq).event_us, [("armed", finding())] * (5 <= seq < 30), detection_record(seq)
        )
    ]
    assert [(alert.event, alert.seq) for alert in alerts] == [("opened", 5), ("updated", 25), ("closed", None)]
    assert len({alert.incident for alert in alerts}) == 1
    assert len({alert.id for alert in alerts}) == 3
    opened, updated, closed = alerts
    assert opened.event_time == opened.opened_time == updated.opened_time == closed.opened_time
    # It was over when it was last seen, not when that was noticed.
    assert closed.event_time == "2023-11-14T22:13:22.900000Z"
    assert closed.detail == {"duration_s": 2.4}
    assert [from_json(to_json(alert)) for alert in alerts] == alerts


def test_found_again_within_the_merge_window_it_is_the_same_incident(detection_record: MakeRecord) -> None:
    incidents = Incidents("door", LIMITS, {})
    records = [detection_record(seq) for seq in range(50)]
    # Gone for 1.0 s, the window, and then for 1.1 s.
    seen = {0, 10, 21}
    assert run(incidents, records, lambda seq: [finding()] * (seq in seen)) == [
        (0, "opened"),
        (21, "closed"),
        (21, "opened"),
        (32, "closed"),
    ]


def test_what_is_momentary_is_over_at_once_and_not_repeated_within_the_merge_window(
    detection_record: MakeRecord,
) -> None:
    incidents = Incidents("door", LIMITS, {})
    records = [detection_record(seq) for seq in range(40)]
    assert run(incidents, records, lambda seq: [finding(momentary=True)] * (seq in {3, 5, 30})) == [
        (3, "opened"),
        (3, "closed"),
        (30, "opened"),
        (30, "closed"),
    ]


def test_a_cooldown_keeps_back_the_same_class_and_no_other(detection_record: MakeRecord) -> None:
    incidents = Incidents("door", Limits(1.0, 100.0, 100), {"armed": 2.0})
    records = [detection_record(seq) for seq in range(60)]
    found = {
        0: [finding("track 1")],
        3: [finding("track 2"), finding("track 3", "dog")],  # the person is kept back, and gone before it may be told
        25: [finding("track 4")],
    }
    alerts = [
        (record.seq, alert.event, alert.track)
        for record in records
        for alert in incidents.step(record.event_us, [("armed", one) for one in found.get(record.seq, [])], record)
    ]
    assert [(seq, track) for seq, event, track in alerts if event == "opened"] == [(0, 1), (3, 3), (25, 4)]
    assert sum(event == "closed" for _, event, _ in alerts) == 3
    assert incidents.counts.cooled_down == 1


def test_what_still_goes_on_after_the_cooldown_is_told_then(detection_record: MakeRecord) -> None:
    incidents = Incidents("door", Limits(1.0, 100.0, 100), {"armed": 2.0})
    records = [detection_record(seq) for seq in range(30)]
    opened = run(incidents, records, lambda seq: [finding("track 1")] * (seq < 2) + [finding("track 2")] * (seq > 4))
    assert [one for one in opened if one[1] == "opened"] == [(0, "opened"), (20, "opened")]


def test_a_storm_is_a_budget_of_incidents_and_one_summary(detection_record: MakeRecord) -> None:
    incidents = Incidents("door", Limits(0.0, 100.0, 10), {})
    alerts: list[Alert] = []
    for seq in range(1000):
        record = detection_record(seq)
        alerts += incidents.step(record.event_us, [("armed", finding(f"track {seq}"))], record)
    opened = [alert for alert in alerts if alert.event == "opened"]
    assert [alert.rule for alert in opened] == ["armed"] * 10 + [SUPPRESSED]
    assert sum(alert.event == "closed" for alert in alerts) == 10
    assert opened[-1].suppressed == 1
    assert incidents.counts.suppressed == 990
    # The hour is over: its sum is told, and the budget is full again.
    record = detection_record(2000, event_us=detection_record(0).event_us + WINDOW_US)
    summary, *others = incidents.step(record.event_us, [("armed", finding("track 2000"))], record)
    assert (summary.event, summary.suppressed, summary.incident) == ("closed", 990, opened[-1].incident)
    assert [alert.event for alert in others] == ["opened"]


def test_what_outlasts_the_budgets_hour_is_told_after_it(detection_record: MakeRecord) -> None:
    incidents = Incidents("door", Limits(1e5, 1e5, 1), {})
    first, hour_later = detection_record(0), detection_record(1, event_us=detection_record(0).event_us + WINDOW_US)
    both = [("armed", finding("track 1")), ("armed", finding("track 2"))]
    assert [a.rule for a in incidents.step(first.event_us, both, first)] == ["armed", SUPPRESSED]
    events = [(a.event, a.rule, a.track) for a in incidents.step(hour_later.event_us, both, hour_later)]
    assert events == [("closed", SUPPRESSED, None), ("opened", "armed", 2)]


def test_more_incidents_at_once_than_anybody_could_mean_are_counted_and_left(detection_record: MakeRecord) -> None:
    incidents = Incidents("door", Limits(1.0, 1.0, 10_000), {})
    record = detection_record(0)
    found = [("armed", finding(f"track {number}")) for number in range(MAX_ONGOING + 7)]
    assert len(incidents.step(record.event_us, found, record)) == MAX_ONGOING
    assert incidents.counts.overflowed == 7


def test_the_same_material_again_gives_the_same_again(detection_record: MakeRecord) -> None:
    incidents = Incidents("door", LIMITS, {"armed": 30.0})
    first, again = (
        run(incidents, [detection_record(seq, session=session) for seq in range(30)], lambda seq: [finding()])
        for session in ("s1", "s2")
    )
    assert again == [(0, "closed"), *first]
    assert incidents.counts.restarts == 1


def test_a_live_camera_that_reconnects_goes_on_with_its_incidents(detection_record: MakeRecord) -> None:
    incidents = Incidents("door", LIMITS, {"armed": 30.0})
    records = [detection_record(seq, session=f"s{seq}") for seq in range(10)]
    assert run(incidents, records, lambda seq: [finding()]) == [(0, "opened")]


def test_a_clock_that_jumps_far_ahead_and_back_does_no_lasting_harm(detection_record: MakeRecord) -> None:
    incidents = Incidents("door", LIMITS, {"armed": 1.0})
    records = [detection_record(seq) for seq in range(60)]
    records[10] = detection_record(10, event_us=records[10].event_us + 10 * LATE_US)
    events = run(incidents, records, lambda seq: [finding()] * (seq < 5 or 30 <= seq < 40))
    assert events == [(0, "opened"), (10, "closed"), (30, "opened"), (50, "closed")]
    assert incidents.counts.restarts == 1


def test_a_late_frame_neither_ends_nor_repeats_an_incident(detection_record: MakeRecord) -> None:
    incidents = Incidents("door", Limits(0.3, 0.5, 100), {"armed": 5.0})
    records = [detection_record(seq) for seq in (0, 1, 2, 9, 3, 10)]
    assert run(incidents, records, lambda seq: [finding()] * (seq != 3)) == [
        (0, "opened"),
        (9, "closed"),
    ]


steps = st.lists(st.lists(st.integers(0, 4), max_size=3, unique=True), max_size=60)


@given(steps=steps, cut=st.integers(0, 60), cooldown_s=st.sampled_from([0.0, 0.5, 3.0]), budget=st.integers(1, 6))
def test_a_state_that_was_stored_and_loaded_tells_the_same(
    detection_record: MakeRecord, steps: list[list[int]], cut: int, cooldown_s: float, budget: int
) -> None:
    limits, cooldowns_s = Limits(0.4, 0.6, budget), {"armed": cooldown_s}

    def told(incidents: Incidents, begin: int, end: int) -> list[bytes]:
        return [
            to_json(alert)
            for seq, keys in list(enumerate(steps))[begin:end]
            for alert in incidents.step(
                detection_record(seq).event_us,
                [("armed", finding(f"track {key}", momentary=key == 4)) for key in keys],
                detection_record(seq),
            )
        ]

    whole = Incidents("door", limits, cooldowns_s)
    first = Incidents("door", limits, cooldowns_s)
    expected = told(whole, 0, 60)
    before = told(first, 0, cut)
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(first.state), type=IncidentsState)
    second = Incidents("door", limits, cooldowns_s, stored)
    assert before + told(second, cut, 60) == expected
    assert second.state == whole.state


@given(steps=steps)
def test_every_incident_opened_is_closed_exactly_once_and_no_id_comes_twice(
    detection_record: MakeRecord, steps: list[list[int]]
) -> None:
    incidents = Incidents("door", Limits(0.2, 0.3, 100), {"armed": 0.5})
    alerts: list[Alert] = []
    for seq, keys in enumerate(steps):
        record = detection_record(seq)
        found = [("armed", finding(f"track {key}", momentary=key == 4)) for key in keys]
        alerts += incidents.step(record.event_us, found, record)
    alerts += incidents.end()
    assert len({alert.id for alert in alerts}) == len(alerts)
    opened = [alert.incident for alert in alerts if alert.event == "opened"]
    closed = [alert.incident for alert in alerts if alert.event == "closed"]
    assert sorted(opened) == sorted(closed) == sorted(set(opened))
    assert not incidents.any_open


@pytest.mark.parametrize("event", ["opened", "closed"])
def test_an_incident_carries_the_links_of_its_pictures(detection_record: MakeRecord, event: str) -> None:
    def links(camera: str, incident: str, event_us: int) -> tuple[str, str]:
        return f"http://pictures/{camera}/{event_us}/{incident}.jpg", f"http://pictures/{camera}/{incident}.mp4"

    incidents = Incidents("door", LIMITS, {}, links=links)
    record = detection_record(7)
    alerts = incidents.step(record.event_us, [("armed", finding())], record) + incidents.end()
    (alert,) = (one for one in alerts if one.event == event)
    assert alert.snapshot == f"http://pictures/door/{record.event_us}/{alert.incident}.jpg"
    assert alert.clip == f"http://pictures/door/{alert.incident}.mp4"
