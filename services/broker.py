"""The broker process: hands frames from ingest to the workers."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from services.config import Config
from services.link import link_keys
from wire import metrics
from wire.broker import Broker, BrokerStats
from wire.health import Health

REPORT_S = 0.5  # well within the age at which a health report counts as stale


def run(config: Config, stop: threading.Event, health: Health) -> None:
    """Bind both endpoints and serve until `stop`."""
    broker = Broker(
        config.frames_endpoint, config.workers_endpoint, config.link.max_age_ms, link_keys(config, "broker")
    )
    unexport = metrics.export_counts(lambda: _counts(broker.stats))
    reporter = threading.Thread(target=_report, args=(broker.stats, stop, health), name="health", daemon=True)
    reporter.start()
    try:
        broker.run(stop)
    finally:
        stop.set()
        reporter.join()
        unexport()


def _report(stats: BrokerStats, stop: threading.Event, health: Health) -> None:
    while not stop.wait(REPORT_S):
        health.set(
            "ok" if stats.workers else "degraded",
            workers=stats.workers,
            waiting=stats.waiting,
            workers_lost=stats.workers_lost,
            redispatched=stats.redispatched,
            malformed=stats.malformed,
        )


def _counts(stats: BrokerStats) -> Iterable[metrics.Count]:
    yield metrics.Count("sparsecam_broker_workers", "Workers connected.", stats.workers, gauge=True)
    yield metrics.Count("sparsecam_broker_waiting", "Frames waiting for a worker.", stats.waiting, gauge=True)
    yield metrics.Count("sparsecam_broker_workers_lost", "Workers that died or fell silent.", stats.workers_lost)
    yield metrics.Count("sparsecam_broker_redispatched", "Frames given to another worker.", stats.redispatched)
    yield metrics.Count("sparsecam_broker_malformed", "Messages that made no sense.", stats.malformed)
    for camera, count in list(stats.dispatched.items()):
        yield metrics.Count("sparsecam_broker_dispatched", "Frames sent to workers.", count, {"camera": camera})
    for (camera, outcome), count in list(stats.ends.items()):
        labels = {"camera": camera, "outcome": outcome}
        yield metrics.Count("sparsecam_broker_ended", "Frames by outcome.", count, labels)
