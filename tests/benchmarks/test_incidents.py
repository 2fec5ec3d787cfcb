"""The benchmark of incidents: what counts as true, and how alerts are set against it."""

from __future__ import annotations

import pytest

from benchmarks.incidents import DWELL_S, Played, Sight, dwells, entries, passings, scores, truths
from ingest.sim.scene_url import SceneSpec


def way(*legs: tuple[float, float, float, float]) -> list[Sight]:
    """Sights ten times a second: legs of (from second, to second, from x, to x), on the far pavement's height."""
    sights = []
    for begun_s, ended_s, start, end in legs:
        count = round((ended_s - begun_s) * 10)
        sights += [Sight(begun_s + i / 10, start + (end - start) * i / count, 0.55) for i in range(count)]
    return sights


def lowered(sights: list[Sight]) -> list[Sight]:
    return [Sight(one.at_s, one.x, 0.9) for one in sights]


def test_a_passing_is_clear_only_when_it_is_seen_from_both_sides() -> None:
    assert [one.clear for one in passings(way((0, 4, 0.1, 0.9)))] == [True]
    assert [one.clear for one in passings(way((1.8, 4, 0.48, 0.9)))] == [False]
    assert [one.clear for one in passings(way((0, 2.2, 0.1, 0.54)))] == [False]
    assert list(passings(way((0, 2, 0.1, 0.4), (6, 8, 0.6, 0.9)))) == [], "hidden for so long, it may be another"
    there_and_back = list(passings(way((0, 4, 0.3, 0.7), (4, 8, 0.7, 0.3))))
    assert [round(one.begun_s) for one in there_and_back] == [2, 6]


def test_an_entry_is_clear_only_when_the_object_was_seen_outside() -> None:
    assert [one.clear for one in entries(lowered(way((0, 5, 0.0, 0.5))))] == [True]
    assert [one.clear for one in entries(lowered(way((0, 5, 0.4, 0.5))))] == [False]
    assert [one.clear for one in entries(lowered(way((0, 5, 0.0, 0.205))))] == [False], "hardly inside"
    away = [*way((0, 4, 0.1, 0.5)), *way((5, 9, 0.5, 0.5))]
    assert len(list(entries(lowered(away)))) == 1, "out of view for a second is the same stay"


@pytest.mark.parametrize(("stay_s", "clear"), [(2, []), (DWELL_S, [False]), (DWELL_S + 3, [True])])
def test_a_dwell_near_its_limit_is_not_judged(stay_s: float, clear: list[bool]) -> None:
    assert [one.clear for one in dwells(way((0, stay_s, 0.5, 0.6)))] == clear


def test_every_alert_of_a_scene_is_counted_once() -> None:
    scene = Played(SceneSpec(seed=3, fps=10, objects=8), 25.0)
    assert len(scene.told) > 10
    rows = scores([scene])
    assert {row.rule for row in rows} == {"enter", "line", "dwell"}
    of_unclear = 0
    for row in rows:
        told = sum(alert.rule == row.rule for alert, _, _ in scene.told)
        assert row.alerts <= told
        of_unclear += told - row.alerts
        assert row.alerts - row.repeated - row.false == round(row.incidents * (1 - row.missed))
    unclear = sum(not one.clear for some in truths(scene.sights).values() for ones in some.values() for one in ones)
    assert of_unclear <= unclear
