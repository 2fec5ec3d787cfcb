"""The sink: reads detections, puts them in order, runs the rules, delivers the alerts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import redis
import structlog

from sink.delivery import CameraState, Commit, load_state, send_commit
from sink.reorder import Reorder
from sink.rules import KINDS
from sink.settings import RuleSettings, SceneSettings, SinkSettings
from sink.tracks import Finding, Track, TrackedFrame
from wire.alerts import LAST_EVENT_US, Alert, Box, Evidence, FrameSize, alert_id, rfc3339
from wire.logs import redact
from wire.messages import DetectionRecord
from wire.settings import RedisSettings
from wire.streams import Entry, Link, Reader, RedisAway, connect

log = structlog.get_logger()

GROUP = "sink"
# Entries of a camera in one read: after an outage the reading is done in few round trips, and beats go on between them.
READ_COUNT = 512
# The longest wait for a frame: how soon `stop` is heard.
IDLE_WAIT_S = 0.2
# While a missing frame is waited for: how exactly its time limit is kept.
HELD_WAIT_S = 0.02
RETRY_S = 0.25
# Between two readings: a busy stream then brings several entries at once. Reading one by one cost four times the CPU;
# an alert is at most this much later.
GATHER_S = 0.01
# After `stop` what lies in the streams is still worked through, for at most this long.
DRAIN_S = 1.0
# Acknowledge at the latest after as many, so that neither memory nor a commit grows without bound.
COMMIT_FRAMES = 5000


@dataclass(frozen=True)
class SinkSnapshot:
    """The sink's counts since it started."""

    connected: bool = False
    read: int = 0  # entries, those below included
    malformed: int = 0  # unreadable, or of a version this build does not know
    trimmed: int = 0  # cut off by the stream's length before they were worked through
    duplicates: int = 0
    gaps: int = 0  # frames that did not come in time, or at all
    late: int = 0  # of these: came after all, and were used out of order
    held: int = 0  # waiting for a missing frame now
    unacknowledged: int = 0  # done, and not yet said so to Redis
    alerts: dict[str, int] = field(default_factory=dict)  # rule: alerts delivered
    alerts_repeated: int = 0  # found again after a restart; were there already
    alerts_waiting: int = 0  # found, and not yet in Redis
    reconnects: int = 0


class _Camera:
    """What the sink knows of one camera."""

    def __init__(
        self, name: str, state: CameraState, settings: SinkSettings, rules: Mapping[str, RuleSettings]
    ) -> None:
        self.name = name
        self.rules = {rule: one for rule, one in rules.items() if one.watches(name)}
        self.reorder: Reorder[Entry] = Reorder(settings.reorder_timeout_s, settings.reorder_frames, state.next_orders)
        self._scene = SceneSettings()
        self._alerted_us = state.alerted_us
        self._states = {rule: KINDS[one.kind].resume(state.rules.get(rule)) for rule, one in self.rules.items()}

    def state(self) -> CameraState:
        """To be kept for the next run."""
        return CameraState(self.reorder.next_orders, self._states, self._alerted_us)

    def findings(self, record: DetectionRecord) -> Iterable[tuple[str, Finding]]:
        """What each rule finds in the camera's next frame."""
        frame = TrackedFrame(
            record,
            tuple(
                Track(place, one.label, one.score, one.box, (0.0, 0.0), record.event_us, 1, 0)
                for place, one in enumerate(record.detections)
            ),
        )
        for rule, one in self.rules.items():
            for finding in KINDS[one.kind].step(one, self._states[rule], frame, self._scene):
                if not self._cooling_down(rule, one.cooldown_s, finding.label, record.event_us):
                    yield rule, finding

    def _cooling_down(self, rule: str, cooldown_s: float, label: str, event_us: int) -> bool:
        alerted_us = self._alerted_us.setdefault(rule, {})
        last_us = alerted_us.get(label)
        if last_us is not None and abs(event_us - last_us) < cooldown_s * 1e6:
            return True
        alerted_us[label] = event_us
        return False


class Sink:
    """Call `run` on one thread; `snapshot` from any."""

    def __init__(
        self,
        settings: SinkSettings,
        rules: Mapping[str, RuleSettings],
        cameras: Iterable[str],
        redis_settings: RedisSettings,
        default_url: str = "",
    ) -> None:
        self._settings = settings
        self._rules = rules
        self._names = list(cameras)
        self._redis = redis_settings
        self._default_url = default_url
        self._reader = Reader(self._names, group=GROUP, consumer=settings.name)
        self._cameras: dict[str, _Camera] = {}
        self._link: Link | None = None
        self._commit = Commit()
        self._uncommitted_since_s = 0.0
        self._last_good_s = time.monotonic()
        self._away_s = 0.0
        self._lock = threading.Lock()  # over all counts, for `snapshot`
        self._alerts = dict.fromkeys(rules, 0)
        self._bad = self._repeated = self._connects = 0

    def run(self, stop: threading.Event, beat: Callable[[], None] = lambda: None) -> None:
        """Work until `stop`; `beat` is called several times a second, also while Redis is away.

        Raises RedisUrlError for a redis.url that cannot be used.
        """
        told = False
        while not stop.is_set():
            beat()
            try:
                entries = self._round(self._link or self._connect())
                told = False
                if entries:
                    stop.wait(GATHER_S)
            except (redis.RedisError, RedisAway, OSError) as error:
                if not told:
                    log.warning("redis away", reason=redact(str(error)), alerts_waiting=len(self._commit.alerts))
                    told = True
                self._drop_link()
                stop.wait(RETRY_S)
        self._finish()

    def snapshot(self) -> SinkSnapshot:
        """The counts now."""
        with self._lock:
            reorders = [camera.reorder for camera in self._cameras.values()]
            return SinkSnapshot(
                connected=self._link is not None,
                read=self._reader.counts.read,
                malformed=self._reader.counts.malformed + self._bad,
                trimmed=self._reader.counts.trimmed,
                duplicates=sum(reorder.counts.duplicates for reorder in reorders),
                gaps=sum(reorder.counts.gaps for reorder in reorders),
                late=sum(reorder.counts.late for reorder in reorders),
                held=sum(reorder.held for reorder in reorders),
                unacknowledged=self._commit.frames,
                alerts=dict(self._alerts),
                alerts_repeated=self._repeated,
                alerts_waiting=len(self._commit.alerts),
                reconnects=max(0, self._connects - 1),
            )

    def _connect(self) -> Link:
        link = Link(connect(self._redis, self._default_url))
        try:
            self._reader.resume(link)
            if not self._cameras:  # later what we know is newer than what Redis holds
                states = {name: load_state(link, name) for name in self._names}
                with self._lock:
                    self._cameras = {
                        name: _Camera(name, state, self._settings, self._rules) for name, state in states.items()
                    }
        except BaseException:
            link.close()
            raise
        # While Redis is away no frame can come, so that time does not count for those that are waited for.
        self._away_s += time.monotonic() - self._last_good_s
        with self._lock:
            self._link = link
            self._connects += 1
        log.info("redis connected", cameras=len(self._cameras))
        return link

    def _round(self, link: Link) -> int:
        """Read, work, deliver; returns how many entries there were."""
        if self._commit.alerts:  # a commit that failed goes first, as it was
            self._send(link)
        entries = self._reader.read(link, count=READ_COUNT, block_s=self._wait_s())
        now_s = time.monotonic() - self._away_s
        with self._lock:
            for entry in entries:
                self._take(entry, now_s)
            for camera in self._cameras.values():
                # As long as there is more to read, a missing frame may be in it.
                if camera.name not in self._reader.behind:
                    self._work(camera, camera.reorder.expire(now_s))
        done = self._commit
        due = time.monotonic() - self._uncommitted_since_s >= self._settings.commit_s
        if done.alerts or (done.frames and due) or done.frames >= COMMIT_FRAMES:
            self._send(link)
        self._last_good_s = time.monotonic()
        return len(entries)

    def _wait_s(self) -> float:
        wait_s = IDLE_WAIT_S
        if any(camera.reorder.held for camera in self._cameras.values()):
            wait_s = HELD_WAIT_S
        if self._commit.frames:
            until_commit_s = self._uncommitted_since_s + self._settings.commit_s - time.monotonic()
            wait_s = min(wait_s, max(0.0, until_commit_s))
        return wait_s

    def _take(self, entry: Entry, now_s: float) -> None:
        camera, record = self._cameras[entry.camera], entry.record
        if record is not None and not _plausible(record):
            self._bad += 1
            record = None
        if record is None or camera.reorder.is_duplicate(record):
            self._ack(entry)
        else:
            self._work(camera, camera.reorder.push(record, entry, now_s))

    def _work(self, camera: _Camera, entries: list[Entry]) -> None:
        for entry in entries:
            assert entry.record is not None  # only readable entries are put in order
            for rule, finding in camera.findings(entry.record):
                self._commit.alerts.append(self._alert(rule, finding, entry.record))
            self._ack(entry)

    def _ack(self, entry: Entry) -> None:
        if not self._commit.acks:
            self._uncommitted_since_s = time.monotonic()
        self._commit.acks.setdefault(entry.camera, []).append(entry.id)

    def _alert(self, rule: str, finding: Finding, record: DetectionRecord) -> Alert:
        best = finding.objects[0] if finding.objects else None
        latency_ms = None
        if self._settings.same_host:
            latency_ms = round((time.monotonic_ns() - record.captured_ns) / 1e6, 3)
        id_ = alert_id(record.camera, rule, finding.label, record.session, record.seq)
        return Alert(
            version=1,
            id=id_,
            incident=id_,
            event="opened",
            camera=record.camera,
            rule=rule,
            text=finding.text,
            event_time=rfc3339(record.event_us),
            opened_time=rfc3339(record.event_us),
            label=finding.label,
            score=best.score if best else None,
            box=Box(*best.box) if best else None,
            frame=FrameSize(record.source_width, record.source_height),
            evidence=Evidence(finding.frames_matched, finding.frames_seen),
            model=record.model,
            session=record.session,
            seq=record.seq,
            detection_ms=round((record.inference_end_ns - record.captured_ns) / 1e6, 3),
            latency_ms=latency_ms,
        )

    def _send(self, link: Link) -> None:
        states = {name: self._cameras[name].state() for name in self._commit.acks}
        new = send_commit(link, self._commit, states, group=GROUP, alerts_maxlen=self._redis.alerts_maxlen)
        with self._lock:
            for alert, is_new in zip(self._commit.alerts, new, strict=True):
                self._alerts[alert.rule] += is_new
                self._repeated += not is_new
            self._commit = Commit()

    def _finish(self) -> None:
        """Work through what is there, say how far we have come, and hang up."""
        until_s = time.monotonic() + DRAIN_S
        try:
            link = self._link or self._connect()
            while (self._round(link) or self._reader.behind) and time.monotonic() < until_s:
                pass
            if self._commit.acks:
                self._send(link)
        except (redis.RedisError, RedisAway, OSError) as error:
            log.warning(
                "stopped without redis: these frames are taken up at the next start",
                reason=redact(str(error)),
                frames=self._commit.frames,
                alerts=len(self._commit.alerts),
            )
        self._drop_link()

    def _drop_link(self) -> None:
        with self._lock:
            link, self._link = self._link, None
        if link is not None:
            link.close()


def _plausible(record: DetectionRecord) -> bool:
    """Whether an alert can be made of it; what a worker of ours writes always is."""
    return (
        0 <= record.event_us <= LAST_EVENT_US
        and record.seq >= 0
        and record.source_width > 0
        and record.source_height > 0
        and record.inference_end_ns >= record.captured_ns
    )


def run_sink(
    settings: SinkSettings,
    rules: Mapping[str, RuleSettings],
    cameras: Iterable[str],
    redis_settings: RedisSettings,
    stop: threading.Event,
    *,
    default_url: str = "",
    beat: Callable[[], None] = lambda: None,
) -> SinkSnapshot:
    """Run a sink until `stop`; returns its final counts."""
    sink = Sink(settings, rules, cameras, redis_settings, default_url)
    sink.run(stop, beat)
    return sink.snapshot()
