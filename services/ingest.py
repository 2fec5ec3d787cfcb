"""The ingest process: reads all cameras, sends their frames to the broker, keeps the books."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable

from ingest.errors import SourceError
from ingest.fleet import Fleet
from ingest.status import CameraSnapshot
from ingest.wakefulness import WakefulnessSnapshot
from services.camera_status import SHARED_MEND, StatusWriter, camera_status
from services.config import Config
from services.link import link_keys, shared_rings
from services.media import Media, camera_rings
from services.media import counts as media_counts
from wire import metrics
from wire.cameras import CameraStatus
from wire.health import Health, State
from wire.ledger import LedgerSnapshot
from wire.producer import FrameLink

REPORT_S = 0.5  # well within the age at which a health report counts as stale
MEDIA_STOP_S = 0.5  # completing a clip is writing its index
STOP_S = 2.5  # of the three seconds that a supervisor which stops everything in five can leave us


def run(config: Config, stop: threading.Event, health: Health) -> None:
    """Run all cameras until `stop`. Raises SourceError when so many readers hang that only a new process helps."""
    link = FrameLink(
        config.frames_endpoint,
        lossless_window=config.link.lossless_window,
        rings=shared_rings(config),
        curve=link_keys(config, "client"),
    )
    rings = camera_rings(config)
    fleet = Fleet(config.cameras, link, config.ingest, rings=rings)
    media = Media(config, rings)
    unexport = [
        metrics.export_ledgers(lambda: [port.ledger.snapshot() for port in link.ports]),
        metrics.export_counts(lambda: _counts(fleet.snapshots(), link)),
        metrics.export_counts(lambda: media_counts(media, rings)),
    ]
    statuses = StatusWriter(config.redis, config.redis_url, lambda: _statuses(fleet, link))
    link.start()
    fleet.start()
    statuses.start()
    media.start()
    try:
        while not stop.wait(REPORT_S) and fleet.fatal is None:
            _report(health, fleet, link, statuses.shared)
    finally:
        told_s = time.monotonic()
        media.close(MEDIA_STOP_S)
        fleet.stop()
        link.close(max(0.0, told_s + STOP_S - time.monotonic()))
        statuses.stop()
        _report(health, fleet, link, statuses.shared)
        for end in unexport:
            end()
    if fleet.fatal is not None:
        raise SourceError("hung", fleet.fatal)


def _report(health: Health, fleet: Fleet, link: FrameLink, shared: list[str]) -> None:
    ledgers = {port.name: port.ledger.snapshot() for port in link.ports}
    totals: Counter[str] = Counter(captured=0, detected=0, in_flight=0)
    cameras: dict[str, dict[str, object]] = {}
    for camera in fleet.snapshots():
        counts = _ledger_counts(ledgers[camera.camera])
        totals.update(counts)
        cameras[camera.camera] = {
            "state": camera.state,
            "error": camera.error_text,
            "fps": round(camera.fps, 2),
            "reconnects": camera.reconnects,
            "decoding": camera.decoding.decoding,
            "decoding_why": camera.decoding.why,
            "awake_share": round(camera.decoding.awake_share, 3),
            **{f"wakes_{reason}": count for reason, count in camera.decoding.wakes.items()},
            **counts,
        }
    troubled = any(camera.error is not None for camera in fleet.snapshots())
    state: State = "degraded" if troubled or shared or link.trouble or not link.broker_alive else "ok"
    astray: dict[str, str | dict[str, str]] = {"link_error": link.trouble} if link.trouble else {}
    if shared:
        astray["cameras_shared"] = dict.fromkeys(shared, SHARED_MEND)
    health.set(state, finished=fleet.finished, broker=link.broker_alive, **astray, **totals, cameras=cameras)


def _statuses(fleet: Fleet, link: FrameLink) -> dict[str, CameraStatus]:
    ledgers = {port.name: port.ledger.snapshot() for port in link.ports}
    return {one.camera: camera_status(one, ledgers[one.camera]) for one in fleet.snapshots()}


def _ledger_counts(ledger: LedgerSnapshot) -> dict[str, int]:
    dropped = {f"dropped_{cause}": count for cause, count in ledger.dropped.items()}
    return {"captured": ledger.captured, "detected": ledger.detected, "in_flight": ledger.in_flight, **dropped}


def _counts(cameras: Iterable[CameraSnapshot], link: FrameLink) -> Iterable[metrics.Count]:
    yield metrics.Count("sparsecam_link_malformed", "Messages that made no sense.", link.malformed)
    for one in cameras:
        labels = {"camera": one.camera}
        up = one.state == "streaming"
        yield metrics.Count("sparsecam_camera_up", "1 while frames arrive.", up, labels, gauge=True)
        yield metrics.Count("sparsecam_camera_fps", "Frames a second delivered.", one.fps, labels, gauge=True)
        yield metrics.Count("sparsecam_camera_lag_ms", "Arrival after event time.", one.lag_ms, labels, gauge=True)
        yield metrics.Count("sparsecam_camera_same_seconds", "Picture unchanged.", one.same_s, labels, gauge=True)
        yield metrics.Count("sparsecam_camera_reconnects", "Attempts after the first.", one.reconnects, labels)
        yield metrics.Count("sparsecam_camera_concealed", "Pictures partly guessed.", one.concealed, labels)
        yield metrics.Count("sparsecam_camera_clock_jumps", "Jumps of the source's clock.", one.clock_jumps, labels)
        yield metrics.Count("sparsecam_camera_abandoned", "Hung readers given up.", one.abandoned, labels)
        yield from _decoding_counts(one.decoding, labels)
        for kind, count in one.errors.items():
            yield metrics.Count("sparsecam_camera_errors", "Errors by kind.", count, {**labels, "kind": kind})


def _decoding_counts(one: WakefulnessSnapshot, labels: dict[str, str]) -> Iterable[metrics.Count]:
    state = {**labels, "decoding": one.decoding}
    yield metrics.Count("sparsecam_camera_decoding", "1 for what is decoded now.", 1, state, gauge=True)
    yield metrics.Count("sparsecam_camera_awake_seconds", "Stream time decoded whole.", one.awake_s, labels)
    yield metrics.Count("sparsecam_camera_asleep_seconds", "Stream time slept.", one.asleep_s, labels)
    yield metrics.Count("sparsecam_camera_false_alarms", "Alarms of packet sizes.", one.false_alarms, labels)
    for reason, count in one.wakes.items():
        yield metrics.Count("sparsecam_camera_wakes", "Wake-ups by reason.", count, {**labels, "reason": reason})
