"""The work on one camera's frames, from detections to alerts: tracker, rules, incidents.

It has no clock and does no input or output, so a replay of the same frames gives the same alerts. Used by the sink,
which keeps its state in Redis, and by `sparsecam replay`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
from msgspec import Struct

from sink.incident_settings import IncidentSettings
from sink.incidents import Incidents, IncidentsState, Limits
from sink.messages import Links
from sink.rules import KINDS, RuleState
from sink.rules.look import Sights
from sink.settings import RuleSettings, SceneSettings
from sink.tracking import Tracker, TrackerSettings, TrackerState
from sink.tracks import Finding
from wire.alerts import LAST_EVENT_US, Alert
from wire.messages import DetectionRecord


class WorkState(Struct):
    """All that another process needs to go on; kept in Redis."""

    tracker: TrackerState = msgspec.field(default_factory=TrackerState)
    rules: dict[str, RuleState] = msgspec.field(default_factory=dict)  # rule: its state
    incidents: IncidentsState = msgspec.field(default_factory=IncidentsState)


@dataclass(frozen=True)
class Plan:
    """What is to be done with every camera: the settings of rules, scenes, tracker and incidents."""

    rules: Mapping[str, RuleSettings] = field(default_factory=dict)
    scenes: Mapping[str, SceneSettings] = field(default_factory=dict)  # camera: its scene
    tracker: TrackerSettings = field(default_factory=lambda: TrackerSettings.model_validate({}))
    incidents: IncidentSettings = field(default_factory=lambda: IncidentSettings.model_validate({}))
    links: Links | None = None  # of snapshots and clips; None: there are none


class CameraWork:
    """One camera's tracker, rules and incidents."""

    def __init__(self, camera: str, plan: Plan, state: WorkState | None = None) -> None:
        state = state or WorkState()
        self._rules = {rule: one for rule, one in plan.rules.items() if one.watches(camera)}
        self._scene = plan.scenes.get(camera) or SceneSettings.model_validate({})
        self.tracker = Tracker(plan.tracker, state.tracker)
        self._states = {rule: KINDS[one.kind].resume(state.rules.get(rule)) for rule, one in self._rules.items()}
        self.disarmed: frozenset[str] = frozenset()  # rules that somebody switched off at run time
        settings = plan.incidents
        self.incidents = Incidents(
            camera,
            Limits(settings.merge_s, settings.update_s, settings.max_per_hour),
            {rule: one.cooldown_s for rule, one in self._rules.items()},
            state.incidents,
            plan.links,
        )

    def state(self) -> WorkState:
        """To go on from, once it is encoded: the work itself goes on changing it."""
        return WorkState(self.tracker.state, self._states, self.incidents.state)

    def step(self, record: DetectionRecord) -> list[Alert]:
        """The alerts of the camera's next frame; their `latency_ms` is for whoever delivers them."""
        frame = self.tracker.step(record)
        sights = Sights(frame, self._scene)
        found: list[tuple[str, Finding]] = []
        for rule, one in self._rules.items():
            state, disarmed = self._states[rule], rule in self.disarmed
            findings = KINDS[one.kind].step(one, state, frame, self._scene, sights, disarmed=disarmed)
            found += [(rule, finding) for finding in findings]
        return self.incidents.step(record.event_us, found, frame.record)

    def close_all(self) -> list[Alert]:
        """Close every incident: no frame comes any more, at least for long."""
        return self.incidents.close_all()

    @property
    def rules(self) -> tuple[str, ...]:
        """Names of the rules that watch the camera."""
        return tuple(self._rules)

    def end(self) -> list[Alert]:
        """Close every incident and tell what the budget kept back: the material is at its end."""
        return self.incidents.end()


def plausible(record: DetectionRecord) -> bool:
    """Whether an alert can be made of it; what a worker of ours writes always is."""
    return (
        0 <= record.event_us <= LAST_EVENT_US
        and record.seq >= 0
        and record.source_width > 0
        and record.source_height > 0
        and record.inference_end_ns >= record.captured_ns
    )
