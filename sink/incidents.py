"""Incidents: from what rules find in each frame to what people are told, once.

The same (rule, key) found again is the same incident: it is opened with the first finding, updated now and then, and
closed when it was not found for the merge window. A rule's cooldown and the camera's budget may keep an incident back;
it is then opened late, if it still goes on when it may be. All time is the frames' own; nothing here reads a clock.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

from msgspec import Struct, field
from msgspec.structs import replace

from sink.budget import Budget, BudgetState
from sink.messages import Incident, Links, over, told
from sink.tracks import Finding
from wire.alerts import Alert, alert_id
from wire.messages import DetectionRecord

# Incidents of a camera at once. A picture with more objects than that is no longer about objects; each costs about
# 100 bytes of the state that is written with every commit.
MAX_ONGOING = 500
# A frame older than the newest by more is no late frame (those come within seconds): the clock was set back, or the
# material begins anew.
LATE_US = 60_000_000


class IncidentsState(Struct, array_like=True):
    """Of one camera; kept in Redis."""

    ongoing: list[Incident] = field(default_factory=list)
    opened_us: dict[str, dict[str, int]] = field(default_factory=dict)  # rule: label: event time of its last opening
    budget: BudgetState = field(default_factory=BudgetState)
    session: str = ""
    session_first_us: int = -1
    newest_us: int = -1


@dataclass(frozen=True)
class Limits:
    """When incidents end and how many may be opened; seconds of the frames' time."""

    merge_s: float
    update_s: float
    max_per_hour: int | None  # None: as many as there are


@dataclass
class IncidentCounts:
    """What was found and not told."""

    cooled_down: int = 0  # incidents kept back by their rule's cooldown
    suppressed: int = 0  # ... by the camera's budget
    overflowed: int = 0  # findings beyond MAX_ONGOING incidents
    restarts: int = 0  # times the frames' time went back to before what was known


class Incidents:
    """The incidents of one camera. Same state and input, same alerts."""

    def __init__(
        self,
        camera: str,
        limits: Limits,
        cooldowns_s: Mapping[str, float],
        state: IncidentsState | None = None,
        links: Links | None = None,
    ) -> None:
        self._camera = camera
        self._limits = limits
        self._merge_us = limits.merge_s * 1e6
        self._cooldowns_s = cooldowns_s
        self._links = links
        state = state or IncidentsState()
        self._ongoing = {(one.rule, one.key): one for one in state.ongoing}
        self._opened_us = state.opened_us
        self._budget = Budget(camera, limits.max_per_hour or 0, state.budget)
        self._session, self._session_first_us = state.session, state.session_first_us
        self._newest_us = state.newest_us
        self.counts = IncidentCounts()

    @property
    def state(self) -> IncidentsState:
        """To go on from."""
        return IncidentsState(
            list(self._ongoing.values()),
            self._opened_us,
            self._budget.state,
            self._session,
            self._session_first_us,
            self._newest_us,
        )

    @property
    def any_open(self) -> bool:
        """Whether there is an incident that must be closed some day."""
        return bool(self._ongoing)

    @property
    def open_ids(self) -> set[str]:
        """The incidents that were told of and are to be closed some day, the budget's summary among them."""
        told_of = [one for one in self._ongoing.values() if one.id and not one.closed]
        summary = self._budget.state.summary
        return {one.id for one in (*told_of, *([summary] if summary else []))}

    def is_open(self, *rules: str) -> bool:
        """Whether people were told of an incident of these rules that is not over."""
        return any(one.rule in rules and one.id and not one.closed for one in self._ongoing.values())

    def step(
        self, event_us: int, found: Iterable[tuple[str, Finding]], record: DetectionRecord | None = None
    ) -> list[Alert]:
        """The alerts of one frame: `found` are (rule, finding). Without `record` it is no frame but a point in time."""
        alerts = self._begin_anew(event_us, record)
        self._newest_us = max(self._newest_us, event_us)
        alerts += self._budget.roll(self._newest_us)
        for rule, finding in found:
            incident = self._ongoing.get((rule, finding.key))
            # Between two points in time nobody looked, so it went on; between two frames it was looked for.
            if incident is not None and record is not None and self._gone(incident):
                alerts += self._close(incident)
                incident = None
            if incident is None:
                incident = Incident(rule, finding.key, finding.label, finding.text, event_us, event_us)
                if len(self._ongoing) >= MAX_ONGOING:
                    self.counts.overflowed += 1
                    continue
                self._ongoing[rule, finding.key] = incident
                alerts += self._try_to_open(incident, finding, event_us, record, new=True)
            else:
                incident.seen_us = max(incident.seen_us, event_us)
                alerts += self._go_on(incident, finding, event_us, record)
        last_us = self._newest_us - self._merge_us
        for incident in [one for one in self._ongoing.values() if one.seen_us < last_us]:
            alerts += self._close(incident)
        return alerts

    def close_all(self) -> list[Alert]:
        """Close what is open: no more frames come, at least for long."""
        return [alert for incident in list(self._ongoing.values()) for alert in self._close(incident)]

    def close_others(self, rules: Container[str]) -> list[Alert]:
        """Close what was found by rules that are none of these."""
        others = [one for one in self._ongoing.values() if one.rule not in rules]
        return [alert for incident in others for alert in self._close(incident)]

    def end(self) -> list[Alert]:
        """Close what is open, and the budget's hour: the material is at its end."""
        return self.close_all() + self._budget.end()

    def _gone(self, incident: Incident) -> bool:
        return self._newest_us - incident.seen_us > self._merge_us

    def _begin_anew(self, event_us: int, record: DetectionRecord | None) -> list[Alert]:
        """Another run of the reader that begins no later than the last did is the same material again."""
        again = self._newest_us - event_us > LATE_US
        if record is not None and record.session != self._session:
            again |= event_us <= self._session_first_us
            self._session, self._session_first_us = record.session, event_us
        if not again:
            return []
        self.counts.restarts += 1
        alerts = self.end()
        self._opened_us.clear()
        self._newest_us = -1
        return alerts

    def _go_on(
        self, incident: Incident, finding: Finding, event_us: int, record: DetectionRecord | None
    ) -> list[Alert]:
        incident.text = finding.text
        if not incident.id:
            return self._try_to_open(incident, finding, event_us, record, new=False)
        if incident.closed or event_us - incident.told_us < self._limits.update_s * 1e6:
            return []
        incident.updates += 1
        incident.told_us = event_us
        return [self._linked(told(self._camera, incident, finding, event_us, record), incident)]

    def _try_to_open(
        self, incident: Incident, finding: Finding, event_us: int, record: DetectionRecord | None, *, new: bool
    ) -> list[Alert]:
        if self._cooling_down(incident, event_us):
            self.counts.cooled_down += new
            return []
        if self._limits.max_per_hour is not None and not self._budget.spend(event_us):
            if incident.over_budget:
                return []
            incident.over_budget = True
            self.counts.suppressed += 1
            return self._budget.suppress(event_us, record)
        self._opened_us.setdefault(incident.rule, {})[incident.label] = event_us
        session, seq = (record.session, record.seq) if record else ("", event_us)
        incident.id = alert_id(self._camera, incident.rule, incident.key, session, seq)
        incident.opened_us = incident.told_us = event_us
        incident.track = finding.objects[0].id if finding.objects else None
        alerts = [self._linked(told(self._camera, incident, finding, event_us, record), incident)]
        if finding.momentary:
            alerts.append(self._linked(over(self._camera, incident), incident))
            incident.closed = True
        return alerts

    def _cooling_down(self, incident: Incident, event_us: int) -> bool:
        last_us = self._opened_us.get(incident.rule, {}).get(incident.label)
        # Both ways in time: a frame that comes late must not open an incident just before another.
        return last_us is not None and abs(event_us - last_us) < self._cooldowns_s.get(incident.rule, 0) * 1e6

    def _close(self, incident: Incident) -> list[Alert]:
        del self._ongoing[incident.rule, incident.key]
        if not incident.id or incident.closed:
            return []
        return [self._linked(over(self._camera, incident), incident)]

    def _linked(self, alert: Alert, incident: Incident) -> Alert:
        if self._links is None:
            return alert
        snapshot, clip = self._links(self._camera, incident.id, incident.opened_us)
        return replace(alert, snapshot=snapshot, clip=clip)
