"""A camera as the sink has it: the order of its frames, the work on them, and the watch over the camera itself."""

from __future__ import annotations

import time

from msgspec.structs import replace

from sink.budget import WINDOW_US
from sink.camera import CameraWork, Plan
from sink.delivery import CameraState
from sink.incidents import Incidents, Limits
from sink.messages import because
from sink.reorder import Reorder
from sink.settings import SinkSettings
from sink.system import CAMERA_DOWN, PICTURE_FROZEN, RULES, SystemWatch
from wire.alerts import Alert
from wire.cameras import CameraStatus
from wire.messages import DetectionRecord
from wire.streams import Entry

BUDGET_S = WINDOW_US / 1e6


class WatchedCamera:
    """All that the sink knows of one camera."""

    COUNTS = ("duplicates", "gaps", "late", "cooled_down", "suppressed", "overflowed", "time_went_back", "bad_boxes")

    def __init__(self, name: str, plan: Plan, settings: SinkSettings, state: CameraState) -> None:
        self.name = name
        self.reorder: Reorder[Entry] = Reorder(settings.reorder_timeout_s, settings.reorder_frames, state.next_orders)
        self.work = CameraWork(name, plan, state.work)
        self.heard_s = 0.0  # when its last frame came, by the sink's clock
        self._same_host = settings.same_host is not False
        self._idle_s = plan.incidents.idle_s
        system = plan.incidents.system
        self._own_rules = RULES if system.enabled else ()
        self._watch = SystemWatch(system, state.system)
        self._about_camera = Incidents(
            name,
            Limits(system.merge_s, plan.incidents.update_s, max_per_hour=None),
            dict.fromkeys(RULES, system.cooldown_s),
            state.system_incidents,
        )

    def state(self, writer: str) -> CameraState:
        """To be kept for the next run."""
        return CameraState(
            self.reorder.next_orders, self.work.state(), self._watch.state, self._about_camera.state, writer
        )

    def counts(self) -> dict[str, int]:
        """What became of its frames and findings since it became ours: COUNTS."""
        order, found = self.reorder.counts, self.work.incidents.counts
        values = (
            *(order.duplicates, order.gaps, order.late),
            *(found.cooled_down, found.suppressed, found.overflowed, found.restarts),
            self.work.tracker.counts.bad_boxes,
        )
        return dict(zip(self.COUNTS, values, strict=True))

    def step(self, record: DetectionRecord) -> list[Alert]:
        """The alerts of its next frame."""
        self._watch.observe(record)
        alerts = self.work.step(record)
        if not alerts or not self._same_host:
            return alerts
        latency_ms = round((time.monotonic_ns() - record.captured_ns) / 1e6, 3)
        return [replace(alert, latency_ms=latency_ms) if alert.seq is not None else alert for alert in alerts]

    def look(self, now_us: int, status: CameraStatus | None, listening_us: int) -> list[Alert]:
        """The alerts about the camera itself, at the server's time `now_us`; `listening_us` as for SystemWatch."""
        if self._about_camera.is_open(CAMERA_DOWN, PICTURE_FROZEN):
            listening_us = 0  # people know of it: it goes on until a newer report says that it is over
        return self._about_camera.step(now_us, self._watch.findings(now_us, status, listening_us))

    def close_idle(self, now_s: float) -> list[Alert]:
        """Without frames no time passes; what was open is over all the same, and some day the budget's hour too."""
        quiet_s, incidents = now_s - self.heard_s, self.work.incidents
        if incidents.any_open:
            return self.work.close_all() if quiet_s >= self._idle_s else []
        return self.work.end() if quiet_s >= BUDGET_S and incidents.open_ids else []

    def close_removed_rules(self) -> list[Alert]:
        """Close what rules found that watch the camera no more, since the configuration is another one."""
        alerts = self.work.incidents.close_others(self.work.rules) + self._about_camera.close_others(self._own_rules)
        return [because(alert, "rule_removed") for alert in alerts]

    def end(self) -> list[Alert]:
        """Close everything: nobody watches the camera any more."""
        return [because(alert, "camera_removed") for alert in self.work.end() + self._about_camera.end()]

    @property
    def open_ids(self) -> set[str]:
        """The incidents that it will close."""
        return self.work.incidents.open_ids | self._about_camera.open_ids

    @property
    def troubled(self) -> bool:
        """Whether something is wrong with it: then its state changes without frames."""
        return self._about_camera.any_open
