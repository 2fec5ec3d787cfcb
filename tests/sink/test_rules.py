"""Every kind of rule: what it finds, on event time only, from late frames, from its stored state and in a replay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sink.rule_settings import rule_settings
from sink.rules import KINDS, RuleState
from sink.rules.course import LATE_US
from sink.rules.look import MOST_TRACKS
from sink.settings import BaseRule, RuleSettings, SceneSettings, SinkSettings
from sink.tracks import Finding, TrackedFrame

Tracked = Callable[..., TrackedFrame]

# The right half of the picture is a zone, the border between the halves a line (walked downwards: right of it is the
# left half, so that going left is `in`), and one tenth of the picture is a metre on the ground.
SCENE = SceneSettings.model_validate(
    {
        "zones": {"right": [[0.5, 0], [1, 0], [1, 1], [0.5, 1]]},
        "lines": {"middle": [[0.5, 0], [0.5, 1]]},
        "ground": {"points": [[0, 0], [1, 0], [1, 1], [0, 1]], "metres": [[0, 0], [10, 0], [10, 10], [0, 10]]},
    }
)
RULES: dict[str, dict[str, Any]] = {
    "presence": {"by": "track"},
    "zone": {"zone": "right", "confirm_frames": 2},
    "line": {"line": "middle"},
    "dwell": {"zone": "right", "dwell_s": 0.5, "grace_s": 0.2},
    "count": {"zone": "right", "over": 1, "under": 1, "confirm_frames": 2},
    "absent": {"zone": "right", "absent_s": 0.5},
    "speed": {"over_kmh": 5, "measure_s": 0.4},
}


def rule_of(kind: str, **changes: Any) -> Any:
    return rule_settings({"kind": kind, **RULES[kind], **changes})


def findings(rule: RuleSettings, frames: Iterable[TrackedFrame], state: Any = None) -> list[tuple[int, Finding]]:
    """(frame, finding) of every finding."""
    kind = KINDS[rule.kind]
    kept = kind.new_state() if state is None else state
    return [(frame.record.seq, one) for frame in frames for one in kind.step(rule, kept, frame, SCENE)]


def seqs(rule: RuleSettings, frames: Iterable[TrackedFrame]) -> list[int]:
    return [seq for seq, _ in findings(rule, frames)]


def walk(tracked: Tracked, xs: Iterable[float | None], **changes: Any) -> list[TrackedFrame]:
    """One object, track 1, that is at x in each frame; None: it is not seen."""
    return [tracked(seq, *([(1, x, 0.5)] if x is not None else []), **changes) for seq, x in enumerate(xs)]


# Frames of up to three objects anywhere; some tracks end.
streets = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(1, 3), st.integers(0, 20)), max_size=3, unique_by=lambda one: one[0]),
        st.sets(st.integers(1, 3), max_size=1),
    ),
    min_size=2,
    max_size=40,
)


def street(tracked: Tracked, frames: list[Any], **changes: Any) -> list[TrackedFrame]:
    return [
        tracked(seq, *((number, x / 20, 0.5) for number, x in objects), ended=tuple(ended), **changes)
        for seq, (objects, ended) in enumerate(frames)
    ]


class TestAllKinds:
    @pytest.mark.parametrize("kind", KINDS)
    @given(frames=streets, cut=st.integers(0, 40))
    @settings(max_examples=40)
    def test_a_state_that_was_stored_and_loaded_finds_the_same(
        self, tracked: Tracked, kind: str, frames: list[Any], cut: int
    ) -> None:
        rule, seen = rule_of(kind, ignore_stationary_s=5), street(tracked, frames)
        state = KINDS[kind].new_state()
        before = findings(rule, seen[:cut], state)
        stored = msgspec.msgpack.encode({"rule": state})
        restored = msgspec.msgpack.decode(stored, type=dict[str, RuleState])["rule"]
        assert type(restored) is type(state)
        assert KINDS[kind].resume(restored) is restored
        assert before + findings(rule, seen[cut:], restored) == findings(rule, seen)

    @pytest.mark.parametrize("kind", KINDS)
    @given(frames=streets)
    @settings(max_examples=40)
    def test_a_replay_finds_the_same(self, tracked: Tracked, kind: str, frames: list[Any]) -> None:
        rule, state = rule_of(kind, ignore_stationary_s=5), KINDS[kind].new_state()
        first = findings(rule, street(tracked, frames), state)
        again = findings(rule, street(tracked, frames, session="s2"), state)
        assert [(seq, one.key, one.detail) for seq, one in first] == [(seq, one.key, one.detail) for seq, one in again]

    @pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if not kind.takes_late])
    @given(frames=streets, late=st.integers(0, 40), by=st.integers(1, 40))
    @settings(max_examples=40)
    def test_a_frame_that_was_overtaken_changes_nothing(
        self, tracked: Tracked, kind: str, frames: list[Any], late: int, by: int
    ) -> None:
        rule, seen = rule_of(kind), street(tracked, frames)
        late %= len(seen) - 1  # the last one cannot be overtaken
        straggler = seen.pop(late)
        expected = findings(rule, seen)
        at = min(len(seen), late + by)
        seen.insert(at, straggler)
        assert findings(rule, seen) == expected

    @pytest.mark.parametrize("kind", KINDS)
    @given(frames=streets)
    @settings(max_examples=20)
    def test_unarmed_it_finds_nothing(self, tracked: Tracked, kind: str, frames: list[Any]) -> None:
        seen = street(tracked, frames)
        assert findings(rule_of(kind, armed=False), seen) == []
        # The frames are of Tuesday, 2023-11-14, 22:13 UTC; in Berlin it is 23:13.
        never = {"time_zone": "Europe/Berlin", "arm": [{"days": ["tue"], "hours": "22:00-23:00"}]}
        assert findings(rule_of(kind, schedule=never), seen) == []
        now = {"time_zone": "Europe/Berlin", "arm": [{"days": ["tue"], "hours": "23:00-01:00"}]}
        assert findings(rule_of(kind, schedule=now), seen) == findings(rule_of(kind), seen)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_clock_set_back_begins_anew_and_is_not_waited_for(self, tracked: Tracked, kind: str) -> None:
        rule, state = rule_of(kind), KINDS[kind].new_state()
        xs = [0.1, 0.2, 0.3, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99] + [0.2] * 10
        fresh = findings(rule, walk(tracked, xs))
        assert fresh
        ahead = tracked(0, event_us=walk(tracked, [0.1])[0].record.event_us + 2 * LATE_US)
        findings(rule, [ahead], state)
        assert findings(rule, walk(tracked, xs), state) == fresh

    @pytest.mark.parametrize("kind", KINDS)
    def test_what_is_remembered_of_tracks_is_bounded(self, tracked: Tracked, kind: str) -> None:
        rule, state = rule_of(kind), KINDS[kind].new_state()
        # Their ends are never told.
        findings(rule, (tracked(seq, *((10 * seq + n, 0.7, 0.5) for n in range(10))) for seq in range(300)), state)
        assert len(getattr(state, "tracks", ())) <= MOST_TRACKS + 10

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("bad", [{"score": math.nan}, {"box": (0.0, math.nan, 9.0, 9.0)}, {"label": "cat"}])
    def test_what_does_not_count_is_not_there(self, tracked: Tracked, kind: str, bad: dict[str, Any]) -> None:
        rule = rule_of(kind, labels=["person"])
        with_bad = [tracked(seq, (1, 0.1 * seq, 0.5, bad)) for seq in range(11)]
        without = [tracked(seq) for seq in range(11)]
        assert findings(rule, with_bad) == findings(rule, without)

    def test_a_mask_hides_what_stands_in_it(self, tracked: Tracked) -> None:
        rule = rule_of("presence", confirm_frames=1)
        scene = SceneSettings.model_validate({"masks": {"m": [[0.4, 0.4], [0.6, 0.4], [0.6, 0.6], [0.4, 0.6]]}})
        frame = tracked(0, (1, 0.5, 0.5), (2, 0.5, 0.7), (3, 0.5, 0.65))  # 3's box reaches into the mask
        found = KINDS["presence"].step(rule, KINDS["presence"].new_state(), frame, scene)
        assert [one.key for one in found] == ["track 2", "track 3"]

    @pytest.mark.parametrize(
        ("anchor", "box"),
        [
            ("bottom_centre", (0.4, 0.6, 0.6, 1.0)),
            ("top_centre", (0.4, 0.0, 0.6, 0.3)),
            ("centre", (0.98, 0.4, 1.0, 0.6)),
            ("centre", (0.0, 0.4, 0.02, 0.6)),
        ],
    )
    def test_a_mask_over_the_whole_picture_hides_who_is_cut_off_by_its_edge(
        self, tracked: Tracked, anchor: str, box: tuple[float, ...]
    ) -> None:
        rule = rule_of("presence", confirm_frames=1, anchor=anchor)
        scene = SceneSettings.model_validate({"masks": {"m": [[0, 0], [1, 0], [1, 1], [0, 1]]}})
        record = tracked(0).record
        pixels = tuple(
            part * side for part, side in zip(box, 2 * (record.source_width, record.source_height), strict=True)
        )
        frame = tracked(0, (1, 0.5, 0.5, {"box": pixels}))
        assert not KINDS["presence"].step(rule, KINDS["presence"].new_state(), frame, scene)
        assert KINDS["presence"].step(rule, KINDS["presence"].new_state(), frame, SceneSettings())

    @pytest.mark.parametrize(("anchor", "hit"), [("bottom_centre", True), ("centre", False), ("top_centre", False)])
    def test_the_anchor_decides_what_is_in_a_zone(self, tracked: Tracked, anchor: str, hit: bool) -> None:
        scene = SceneSettings.model_validate({"zones": {"low": [[0, 0.5], [1, 0.5], [1, 1], [0, 1]]}})
        rule = rule_of("presence", zone="low", anchor=anchor, confirm_frames=1)
        frame = tracked(0, (1, 0.5, 0.54))  # its box is a tenth of the picture high
        assert bool(KINDS["presence"].step(rule, KINDS["presence"].new_state(), frame, scene)) == hit

    def test_a_state_of_another_kind_is_not_gone_on_with(self) -> None:
        state = KINDS["zone"].new_state()
        assert KINDS["zone"].resume(state) is state
        assert type(KINDS["line"].resume(state)) is type(KINDS["line"].new_state())
        assert KINDS["line"].resume(None) is not None

    @pytest.mark.parametrize(
        ("kind", "lacks"), [("zone", "zone 'right'"), ("line", "line 'middle'"), ("speed", "grou")]
    )
    def test_a_scene_without_what_is_named_is_said_in_words(self, tracked: Tracked, kind: str, lacks: str) -> None:
        with pytest.raises(ValueError, match=lacks):
            KINDS[kind].step(rule_of(kind), KINDS[kind].new_state(), tracked(0), SceneSettings())


class TestZone:
    def test_inside_is_found_in_every_frame_once_confirmed(self, tracked: Tracked) -> None:
        frames = walk(tracked, [0.3, 0.6, 0.6, 0.6, 0.3, 0.6])
        found = findings(rule_of("zone"), frames)
        assert [(seq, one.frames_matched, one.frames_seen) for seq, one in found] == [(2, 2, 3), (3, 3, 4), (5, 4, 5)]
        assert (found[0][1].key, found[0][1].text, found[0][1].detail) == (
            "track 1",
            "person in right",
            {"zone": "right"},
        )

    def test_enter_is_a_moment_and_needs_an_outside_before(self, tracked: Tracked) -> None:
        rule = rule_of("zone", when="enter")
        ((seq, one),) = findings(rule, walk(tracked, [0.3, 0.4, 0.6, 0.6, 0.6, 0.7]))
        assert (seq, one.momentary, one.text) == (3, True, "person came into right")
        assert seqs(rule, walk(tracked, [0.6, 0.6, 0.6, 0.7])) == []

    @given(st.lists(st.sampled_from([0.49, 0.51]), min_size=20, max_size=60))
    def test_an_object_on_the_edge_comes_in_once_a_window_at_most(self, tracked: Tracked, xs: list[float]) -> None:
        rule = rule_of("zone", when="enter", window_frames=6)
        entries = seqs(rule, walk(tracked, xs))
        assert all(after - before > 6 for before, after in pairwise(entries))

    def test_who_is_cut_off_by_the_edge_of_the_picture_is_in_a_zone_that_ends_there(self, tracked: Tracked) -> None:
        frames = [tracked(seq, (1, 0.7, y)) for y in (1.0, 1.02) for seq in range(3)]
        assert seqs(rule_of("zone"), frames[:3]) == seqs(rule_of("zone"), frames[3:]) == [1, 2]

    def test_who_leaves_and_comes_back_comes_in_again(self, tracked: Tracked) -> None:
        rule = rule_of("zone", when="enter")
        assert seqs(rule, walk(tracked, [0.3, 0.6, 0.6] + [0.3] * 5 + [0.6, 0.6])) == [2, 9]

    def test_who_came_in_while_unarmed_has_not_just_come_in(self, tracked: Tracked) -> None:
        # Armed from 22:13:21 on is not to be written; so: one state, unarmed first.
        state = KINDS["zone"].new_state()
        frames = walk(tracked, [0.3, 0.6, 0.6, 0.6, 0.6])
        assert findings(rule_of("zone", when="enter", armed=False), frames[:3], state) == []
        assert findings(rule_of("zone", when="enter"), frames[3:], state) == []


class TestLine:
    @pytest.mark.parametrize(
        ("xs", "expected"),
        [
            ([0.3, 0.4, 0.6, 0.7, 0.8], [(3, "out")]),
            ([0.7, 0.6, 0.4, 0.3], [(3, "in")]),
            ([0.4, 0.6, 0.4, 0.6, 0.4], []),  # jitters
            ([0.4, 0.6, 0.7, 0.4, 0.3], [(2, "out"), (4, "in")]),
            ([0.4, None, None, 0.6, None, 0.7], [(5, "out")]),  # hidden while it crossed
            ([0.6, 0.7, 0.8], []),  # was there all the time
        ],
    )
    def test_crossings(self, tracked: Tracked, xs: list[float | None], expected: list[tuple[int, str]]) -> None:
        found = findings(rule_of("line"), walk(tracked, xs))
        assert [(seq, one.detail["direction"]) for seq, one in found] == expected
        assert all(one.momentary and one.detail["line"] == "middle" for _, one in found)
        for direction in ("in", "out"):
            one_way = findings(rule_of("line", direction=direction), walk(tracked, xs))
            assert [seq for seq, _ in one_way] == [seq for seq, way in expected if way == direction]

    def test_coming_back_is_another_incident(self, tracked: Tracked) -> None:
        there, back = findings(rule_of("line"), walk(tracked, [0.4, 0.6, 0.7, 0.4, 0.3]))
        assert there[1].key != back[1].key

    def test_two_objects_on_two_sides_do_not_cross(self, tracked: Tracked) -> None:
        frames = [tracked(seq, (1 + seq % 2, 0.2 + 0.6 * (seq % 2), 0.5)) for seq in range(10)]
        assert seqs(rule_of("line"), frames) == []

    def test_an_ended_track_is_forgotten(self, tracked: Tracked) -> None:
        frames = [
            tracked(0, (1, 0.4, 0.5)),
            tracked(1, ended=(1,)),
            tracked(2, (1, 0.6, 0.5)),
            tracked(3, (1, 0.7, 0.5)),
        ]
        assert seqs(rule_of("line"), frames) == []

    @given(st.lists(st.integers(0, 20), min_size=2, max_size=40))
    def test_what_is_told_adds_up_to_the_side_it_is_on(self, tracked: Tracked, places: list[int]) -> None:
        found = findings(rule_of("line", confirm_frames=1), walk(tracked, [x / 20 for x in places]))
        net = sum(1 if one.detail["direction"] == "in" else -1 for _, one in found)
        assert net == (places[-1] <= 10) - (places[0] <= 10)


class TestDwell:
    def test_it_is_found_while_it_lasts(self, tracked: Tracked) -> None:
        found = findings(rule_of("dwell"), walk(tracked, [0.3] + [0.6] * 8))
        assert [(seq, one.detail["dwell_s"]) for seq, one in found] == [(6, 0.5), (7, 0.6), (8, 0.7)]
        assert found[0][1].text == "person in right for 0 s"

    def test_a_step_outside_within_the_grace_is_no_leaving(self, tracked: Tracked) -> None:
        assert seqs(rule_of("dwell"), walk(tracked, [0.6, 0.6, 0.6, 0.4, 0.4, 0.6, 0.6])) == [5, 6]
        assert seqs(rule_of("dwell"), walk(tracked, [0.6, 0.6, 0.6, 0.4, 0.4, 0.4, 0.6, 0.6])) == []

    def test_time_hidden_counts_while_the_track_lives(self, tracked: Tracked) -> None:
        xs = [0.6, 0.6, None, None, None, 0.6, 0.6]
        assert seqs(rule_of("dwell", window_frames=7), walk(tracked, xs)) == [5, 6]
        frames = [*walk(tracked, xs)[:4], tracked(4, ended=(1,)), *walk(tracked, xs)[5:]]
        assert seqs(rule_of("dwell", window_frames=7), frames) == []

    def test_time_is_the_frames_own(self, tracked: Tracked) -> None:
        start_us = tracked(0).record.event_us
        frames = [tracked(seq, (1, 0.6, 0.5), event_us=start_us + seq * 10_000_000) for seq in range(4)]
        rule = rule_of("dwell", dwell_s=25, confirm_frames=1)
        assert [one.text for _, one in findings(rule, frames)] == ["person in right for 30 s"]

    def test_without_a_zone_a_stay_begins_with_the_track(self, tracked: Tracked) -> None:
        before_us = tracked(0).record.event_us - 90_000_000
        rule = rule_of("dwell", zone="", dwell_s=60, confirm_frames=1)
        ((_, one),) = findings(rule, [tracked(0, (1, 0.1, 0.5, {"first_us": before_us}))])
        assert (one.text, one.detail) == ("person for 1 min 30 s", {"dwell_s": 90.0})


class TestCount:
    @given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 3), st.integers(0, 3))
    def test_k_of_n_frames_over_or_under(self, tracked: Tracked, counts: list[int], k: int, more: int) -> None:
        frames = [tracked(seq, *((n, 0.7, 0.5) for n in range(count))) for seq, count in enumerate(counts)]
        rule = rule_of("count", confirm_frames=k, window_frames=k + more)
        expected = []
        for now, count in enumerate(counts):
            newest = counts[max(0, now - k - more + 1) : now + 1]
            if count > 1 and sum(one > 1 for one in newest) >= k:
                expected.append((now, "over"))
            if count < 1 and sum(one < 1 for one in newest) >= k:
                expected.append((now, "under"))
        assert [(seq, one.key) for seq, one in findings(rule, frames)] == expected

    def test_only_the_zone_is_counted(self, tracked: Tracked) -> None:
        rule = rule_of("count", over=1, under=None, confirm_frames=1, labels=["person"])
        ((_, one),) = findings(rule, [tracked(0, (1, 0.6, 0.5), (2, 0.7, 0.5), (3, 0.4, 0.5))])
        assert (one.text, one.detail["count"], one.label) == ("2 x person in right, more than 1", 2, "person")
        assert [track.id for track in one.objects] == [1, 2]

    @pytest.mark.parametrize("bounds", [{}, {"over": 1, "under": 3}])
    def test_bounds_that_mean_nothing_are_refused(self, bounds: dict[str, int]) -> None:
        with pytest.raises(ValidationError, match=r"neither|every count"):
            rule_settings({"kind": "count", **bounds})


class TestAbsent:
    def test_it_is_found_until_somebody_comes(self, tracked: Tracked) -> None:
        found = findings(rule_of("absent"), walk(tracked, [0.6, 0.6, *[None] * 6, 0.3, 0.6, None]))
        assert [(seq, one.detail["absent_s"]) for seq, one in found] == [(6, 0.5), (7, 0.6), (8, 0.7)]
        assert (found[0][1].objects, found[0][1].text) == ((), "no object in right for 0 s")

    def test_it_counts_from_the_first_frame(self, tracked: Tracked) -> None:
        assert seqs(rule_of("absent"), walk(tracked, [None] * 7)) == [5, 6]

    def test_time_without_frames_does_not_count(self, tracked: Tracked) -> None:
        start_us = tracked(0).record.event_us
        times_s = [0, 1, 3600, 3601, 3650, 3671]
        frames = [tracked(seq, event_us=start_us + time_s * 1_000_000) for seq, time_s in enumerate(times_s)]
        assert seqs(rule_of("absent", absent_s=60), frames) == [5]

    def test_time_unarmed_does_not_count(self, tracked: Tracked) -> None:
        state, frames = KINDS["absent"].new_state(), walk(tracked, [None] * 20)
        assert findings(rule_of("absent", armed=False), frames[:10], state) == []
        assert [seq for seq, _ in findings(rule_of("absent"), frames[10:], state)] == [14, 15, 16, 17, 18, 19]

    def test_a_single_sighting_can_be_disbelieved(self, tracked: Tracked) -> None:
        frames = walk(tracked, [None, None, None, 0.6, None, None, None])
        assert seqs(rule_of("absent"), frames) == []
        assert seqs(rule_of("absent", confirm_frames=2), frames) == [5, 6]


class TestSpeed:
    @given(kmh=st.floats(1, 60), fps=st.sampled_from([5, 10, 25]))
    def test_a_steady_walk_has_its_speed(self, tracked: Tracked, kmh: float, fps: int) -> None:
        start_us = tracked(0).record.event_us
        metres_a_frame = kmh / 3.6 / fps
        frames = [
            tracked(seq, (1, metres_a_frame * seq / 10, 0.5), event_us=start_us + round(seq * 1e6 / fps))
            for seq in range(12)
        ]
        found = findings(rule_of("speed", over_kmh=0.5, confirm_frames=1), frames)
        assert found
        assert all(abs(one.detail["speed_kmh"] - kmh) < 0.06 for _, one in found)
        assert seqs(rule_of("speed", over_kmh=kmh * 1.001 + 0.01), frames) == []

    def test_the_jitter_of_a_standing_box_is_no_speed(self, tracked: Tracked) -> None:
        # 5 pixels to and fro in every frame: 0.5 m/s and more from frame to frame.
        frames = walk(tracked, [0.5 + 0.0025 * (-1) ** seq for seq in range(30)])
        assert seqs(rule_of("speed", over_kmh=0.7, measure_s=1), frames) == []

    def test_it_says_how_fast_and_where(self, tracked: Tracked) -> None:
        frames = walk(tracked, [0.5 + 0.04 * seq for seq in range(11)])
        seq, one = findings(rule_of("speed", zone="right", labels=["person"], confirm_frames=1), frames)[0]
        assert (seq, one.key, one.text) == (2, "track 1", "person in right at 14.4 km/h, over 5")
        assert one.detail == {"speed_kmh": 14.4, "zone": "right"}


def test_every_setting_is_described_and_unknown_ones_are_refused() -> None:
    for kind in KINDS:
        model = type(rule_of(kind))
        assert all(field.description for field in model.model_fields.values()), kind
        with pytest.raises(ValidationError, match="extra"):
            rule_settings({"kind": kind, **RULES[kind], "surprise": 1})
    for other in (SinkSettings, SceneSettings):
        assert all(field.description for field in other.model_fields.values())


def test_every_kind_of_the_settings_is_there() -> None:
    union = get_args(RuleSettings)[0]
    models = [get_args(member)[0] for member in get_args(union)]
    assert set(KINDS) == {model.model_fields["kind"].default for model in models}
    assert all(issubclass(model, BaseRule) for model in models)


def test_a_rule_without_a_kind_is_presence() -> None:
    old = {"labels": ["person"], "min_score": 0.4, "confirm_frames": 3, "window_frames": 5, "cooldown_s": 5}
    rule = rule_settings(old)
    assert (rule.kind, rule.by, rule.zone, rule.cooldown_s) == ("presence", "label", "", 5)


def test_a_confirmation_that_can_never_come_is_refused() -> None:
    with pytest.raises(ValidationError, match="no alert would ever be raised"):
        rule_settings({"confirm_frames": 6, "window_frames": 5})


def test_a_rule_watches_the_cameras_it_names() -> None:
    assert rule_settings({}).watches("any")
    assert rule_settings({"cameras": ["a"]}).watches("a")
    assert not rule_settings({"cameras": ["a"]}).watches("b")
