"""The sink process: detections in, alerts out."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

from services.config import Config
from services.outputs import start_outputs
from sink.camera import Plan
from sink.messages import Links
from sink.settings import SinkSettings
from sink.sink import Sink
from sink.snapshot import SinkSnapshot
from wire import metrics
from wire.clocks import on_this_host
from wire.eviction import MEND
from wire.health import Health
from wire.media import media_links
from wire.redis_link import REFUSES


def run(config: Config, stop: threading.Event, health: Health) -> None:
    """Follow the detections of all cameras until `stop`."""
    sink = Sink(sink_settings(config), sink_plan(config), config.cameras, config.redis, config.redis_url)
    unexport = metrics.export_counts(lambda: _counts(sink.snapshot()))
    try:
        with start_outputs(config, stop) as unreached:
            sink.run(stop, lambda: set_health(sink.snapshot(), health, unreached()))
    finally:
        unexport()
        set_health(sink.snapshot(), health)


def sink_settings(config: Config) -> SinkSettings:
    """The sink's settings, `same_host` decided: stamps are of the workers' clock (wire.clocks)."""
    if config.sink.same_host is not None:
        return config.sink
    return config.sink.model_copy(update={"same_host": on_this_host(config.workers_endpoint)})


def sink_plan(config: Config) -> Plan:
    """What the configuration wants done with every camera."""
    return Plan(config.rules, config.scenes, config.tracker, config.incidents, _links(config))


def _links(config: Config) -> Links | None:
    """How alerts are linked to the pictures that ingest makes of them."""
    media = config.media
    if not media.enabled:
        return None

    def links(camera: str, incident: str, opened_us: int) -> tuple[str | None, str | None]:
        snapshot, clip = media_links(media.base_url, camera, incident, opened_us)
        return snapshot if media.snapshots else None, clip if media.clips else None

    return links


def set_health(now: SinkSnapshot, health: Health, unreached: Mapping[str, int] | None = None) -> None:
    """Say how the sink is: degraded while Redis is away, refuses or may evict alerts, or alerts wait for outputs, so
    many for each of `unreached`."""
    away = "refuses writes" if now.trouble.startswith(REFUSES) else "away"
    health.set(
        "ok" if now.connected and not (now.trouble or now.evicts or unreached) else "degraded",
        redis="connected" if now.connected else away,
        **({"redis_error": now.trouble} if now.trouble else {}),
        **({"redis_evicts": f"{now.evicts}: alerts can be lost; {MEND}"} if now.evicts else {}),
        **({"outputs_unreachable": dict(unreached)} if unreached else {}),
        read=now.read,
        malformed=now.malformed,
        duplicates=now.duplicates,
        gaps=now.gaps,
        alerts=sum(count for (_, event), count in now.alerts.items() if event == "opened"),
        cameras=now.cameras,
        disarmed=now.disarmed,
        sinks=now.sinks,
        alerts_waiting=now.alerts_waiting,
        detections_cut=now.cut,
    )


def _counts(now: SinkSnapshot) -> Iterable[metrics.Count]:
    yield metrics.Count("sparsecam_sink_read", "Entries read.", now.read)
    yield metrics.Count("sparsecam_sink_malformed", "Entries unreadable or of another version.", now.malformed)
    yield metrics.Count("sparsecam_sink_trimmed", "Entries cut off before they were read.", now.trimmed)
    yield metrics.Count("sparsecam_sink_duplicates", "Frames that came twice and were used once.", now.duplicates)
    yield metrics.Count("sparsecam_sink_gaps", "Frames that did not come in time.", now.gaps)
    yield metrics.Count("sparsecam_sink_alerts_repeated", "Alerts found again after a restart.", now.alerts_repeated)
    yield metrics.Count("sparsecam_sink_alerts_waiting", "Alerts waiting for Redis.", now.alerts_waiting, gauge=True)
    yield metrics.Count("sparsecam_sink_reconnects", "Connections to Redis made anew.", now.reconnects)
    yield metrics.Count("sparsecam_sink_detections_cut", "Detections removed early: the memory was full.", now.cut)
    yield metrics.Count("sparsecam_sink_cameras", "Cameras whose lease is held.", now.cameras, gauge=True)
    yield metrics.Count("sparsecam_sink_sinks", "Sinks that share the cameras.", now.sinks, gauge=True)
    yield metrics.Count("sparsecam_sink_disarmed", "Rules disarmed at run time.", now.disarmed, gauge=True)
    yield metrics.Count("sparsecam_sink_cameras_taken", "Times a camera was taken over.", now.taken_over)
    yield metrics.Count("sparsecam_sink_cameras_lost", "Times a camera was lost to another sink.", now.lost)
    yield metrics.Count("sparsecam_sink_reread", "Times entries read without the lease were found.", now.reread)
    yield metrics.Count("sparsecam_sink_time_went_back", "Times a camera's time went back.", now.time_went_back)
    yield metrics.Count("sparsecam_sink_bad_boxes", "Boxes that are none: left out.", now.bad_boxes)
    for cause, count in (("cooldown", now.cooled_down), ("budget", now.suppressed)):
        labels = {"cause": cause}
        yield metrics.Count("sparsecam_incidents_kept_back", "Incidents that were not told.", count, labels)
    yield metrics.Count("sparsecam_findings_overflowed", "Findings beyond 500 incidents at once.", now.overflowed)
    for (rule, event), count in now.alerts.items():
        yield metrics.Count("sparsecam_alerts", "Alerts delivered.", count, {"rule": rule, "event": event})
