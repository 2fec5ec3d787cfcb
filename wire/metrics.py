"""Prometheus metrics of one process: frames by ledger, time by stage, the process itself.

One registry of our own (nothing that another library registers leaks in) and one port a process, on loopback
unless the config says otherwise.
"""

from __future__ import annotations

import errno
import platform
import threading
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import structlog
from prometheus_client import CollectorRegistry, Gauge, Histogram, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from wire.settings import MetricsSettings

if TYPE_CHECKING:
    from wire.ledger import LedgerSnapshot

log = structlog.get_logger()

Stage = Literal["capture", "queue", "inference", "publish"]
Role = Literal["broker", "ingest", "detector", "sink", "trainer"]

# 0.5 ms (a loopback hop) to 5 s (ten times the default maximum age), dense where inference on one core lies
# (4-100 ms).
BUCKETS_S = (
    0.0005,
    0.001,
    0.002,
    0.004,
    0.006,
    0.008,
    0.012,
    0.02,
    0.035,
    0.06,
    0.1,
    0.2,
    0.5,
    1.0,
    2.0,
    5.0,
)

registry = CollectorRegistry(auto_describe=False)
ProcessCollector(registry=registry)

_stage_seconds = Histogram(
    "sparsecam_stage_seconds",
    "Time a frame spent in a stage: capture (decode to hand-over), queue (capture to dispatch), "
    "inference (start to end), publish (inference end to Redis).",
    ["stage"],
    buckets=BUCKETS_S,
    registry=registry,
)
# labels() takes a lock and hashes; a child kept at hand makes an observation about a microsecond.
_observe: dict[Stage, Callable[[float], None]] = {
    "capture": _stage_seconds.labels("capture").observe,
    "queue": _stage_seconds.labels("queue").observe,
    "inference": _stage_seconds.labels("inference").observe,
    "publish": _stage_seconds.labels("publish").observe,
}
_build = Gauge(
    "sparsecam_build_info",
    "Always 1; the labels say what runs.",
    ["version", "python", "role"],
    registry=registry,
)


class MetricsError(RuntimeError):
    """The metrics address cannot be listened on: says which setting and why."""


class MetricsServer(NamedTuple):
    """A running /metrics endpoint."""

    host: str
    port: int
    close: Callable[[], None]


class Count(NamedTuple):
    """One number to export; a counter unless it may fall."""

    name: str
    text: str
    value: float
    labels: dict[str, str] = {}  # noqa: RUF012  # a NamedTuple's default, never changed
    gauge: bool = False


class _CountCollector(Collector):
    """Exports what a process counts for itself, read when scraped."""

    def __init__(self, read: Callable[[], Iterable[Count]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for count in self._read():
            if count.name not in families:
                kind = GaugeMetricFamily if count.gauge else CounterMetricFamily
                families[count.name] = kind(count.name, count.text, labels=list(count.labels))
            families[count.name].add_metric(list(count.labels.values()), count.value)
        return families.values()


class _LedgerCollector(Collector):
    """Turns ledger snapshots into counters when scraped; between scrapes it costs nothing."""

    def __init__(self, snapshots: Callable[[], Iterable[LedgerSnapshot]]) -> None:
        self._snapshots = snapshots

    def collect(self) -> Iterable[Metric]:
        captured = CounterMetricFamily("sparsecam_frames_captured", "Frames the source delivered.", labels=["camera"])
        detected = CounterMetricFamily(
            "sparsecam_frames_detected", "Frames a detector has finished.", labels=["camera"]
        )
        dropped = CounterMetricFamily(
            "sparsecam_frames_dropped", "Frames that were not detected, by cause.", labels=["camera", "cause"]
        )
        in_flight = GaugeMetricFamily(
            "sparsecam_frames_in_flight", "Frames sent and not yet settled.", labels=["camera"]
        )
        for ledger in self._snapshots():
            captured.add_metric([ledger.camera], ledger.captured)
            detected.add_metric([ledger.camera], ledger.detected)
            in_flight.add_metric([ledger.camera], ledger.in_flight)
            for cause, count in ledger.dropped.items():
                dropped.add_metric([ledger.camera, cause], count)
        yield from (captured, detected, dropped, in_flight)


def observe(stage: Stage, seconds: float) -> None:
    """Add one frame's time in a stage."""
    _observe[stage](seconds)


def export_ledgers(snapshots: Callable[[], Iterable[LedgerSnapshot]]) -> Callable[[], None]:
    """Export what `snapshots` returns at each scrape; returns a function that stops it."""
    collector = _LedgerCollector(snapshots)
    registry.register(collector)
    return lambda: registry.unregister(collector)


def export_counts(read: Callable[[], Iterable[Count]]) -> Callable[[], None]:
    """Export what `read` returns at each scrape; returns a function that stops it."""
    collector = _CountCollector(read)
    registry.register(collector)
    return lambda: registry.unregister(collector)


def package_version() -> str:
    """The installed version, or "unknown" in a source tree that was never installed."""
    try:
        return version("sparsecam")
    except PackageNotFoundError:
        return "unknown"


def serve(settings: MetricsSettings, role: Role, index: int = 0) -> MetricsServer | None:
    """Serve /metrics; None when disabled. Worker `index` takes its role's port plus index.

    A port that another process holds is replaced by any free one, with a warning that names both: metrics
    must not keep frames from flowing. An address that this machine does not have raises MetricsError.
    """
    if not settings.enabled:
        return None
    _build.labels(package_version(), platform.python_version(), role).set(1)
    base: int = getattr(settings, f"{role}_port")
    wanted = base + index if base else 0
    try:
        server, thread = _listen(settings.host, wanted)
    except OSError as error:
        if wanted == 0 or not _port_is_taken(error):
            raise MetricsError(
                f"metrics.host {settings.host!r}, port {wanted}: cannot listen ({error.strerror or error}). "
                f"Expected an address of this machine, such as 127.0.0.1 or 0.0.0.0."
            ) from error
        server, thread = _listen(settings.host, 0)
        log.warning("metrics port is taken, using another", role=role, wanted=wanted, port=server.server_port)
    port: int = server.server_port
    log.info("metrics", role=role, url=f"http://{settings.host}:{port}/metrics")

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join(timeout=2.0)

    return MetricsServer(settings.host, port, close)


# the server's class is private to its library
def _listen(host: str, port: int) -> tuple[Any, threading.Thread]:
    if port > 65535:
        raise OSError("port above 65535")
    return start_http_server(port, addr=host, registry=registry)


def _port_is_taken(error: OSError) -> bool:
    return error.errno == errno.EADDRINUSE
