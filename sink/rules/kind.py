"""What all kinds of rules have in common: event time, what counts, schedules. A kind adds its own `find`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from msgspec import Struct, field

from sink.rule_settings import BaseRule
from sink.rules.course import Course, Order
from sink.rules.look import Look, Sights
from sink.rules.stationary import Place, moving
from sink.rules.window import Window
from sink.scene import SceneSettings
from sink.schedule import is_armed
from sink.tracks import Finding, TrackedFrame


class Watch(Struct, array_like=True):
    """What a rule of any kind remembers of a camera."""

    course: Course = field(default_factory=Course)
    window: Window = field(default_factory=Window)
    places: list[Place] = field(default_factory=list)


class State(Struct):
    """A rule's state; each kind has its own, tagged, which can be made without arguments and round-trips."""

    watch: Watch = field(default_factory=Watch)


R = TypeVar("R", bound=BaseRule)
S = TypeVar("S", bound=State)


@dataclass(frozen=True)
class Kind(Generic[R, S]):
    """A kind of rule."""

    new_state: Callable[[], S]
    find: Callable[[R, S, Look], list[Finding]]
    takes_late: bool = False  # whether a frame that was overtaken is still of use

    def resume(self, kept: object) -> S:
        """The state to go on with: the one kept, unless it is None or of another kind (the rule was changed)."""
        fresh = self.new_state()
        return kept if isinstance(kept, type(fresh)) else fresh

    def step(
        self,
        rule: R,
        state: S,
        frame: TrackedFrame,
        scene: SceneSettings,
        sights: Sights | None = None,
        *,
        disarmed: bool = False,
    ) -> list[Finding]:
        """What the rule finds in a frame; `state` is changed. `sights` are those of the frame, for all rules on it.

        Frames come in order of event time but for late ones. When time goes back, everything is forgotten, so that the
        same material finds the same again. Raises ValueError where the scene lacks what the rule names.
        """
        order = state.watch.course.take(frame.record)
        if order is Order.LATE and not self.takes_late:
            return []
        if order is Order.BACK:
            self._forget_all(state)
        elif order is Order.NEW_RUN:
            # Frames before and after it do not confirm each other.
            state.watch.window.frames.clear()
        gap_us = 0 if order is Order.LATE else state.watch.course.gap_us
        seen = (sights or Sights(frame, scene)).of(rule)
        if rule.ignore_stationary_s:
            tracks = (one.track for one in seen[0])
            counting = moving(tracks, state.watch.places, int(rule.ignore_stationary_s * 1e6), gap_us)
            seen = [one for one in seen[0] if one.track.id in counting], {}
        armed = rule.armed and not disarmed and is_armed(rule.schedule, frame.record.event_us)
        findings = self.find(rule, state, Look(frame, scene, seen, armed, gap_us))
        # The state goes on while disarmed: who is inside then has not just come in when it is armed.
        return findings if armed else []

    def _forget_all(self, state: S) -> None:
        fresh = self.new_state()
        fresh.watch.course = state.watch.course
        for name in fresh.__struct_fields__:
            setattr(state, name, getattr(fresh, name))
