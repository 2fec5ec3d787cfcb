"""Reading a running site from outside: CPU time by role, ingest's ledgers, its capture histogram, the alert channel."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import redis
from prometheus_client.parser import text_string_to_metric_families

from services.child import Child
from wire.alerts import ALERTS
from wire.health import HealthError, read_health

SCRAPE_S = 2.0


@dataclass(frozen=True)
class Ledger:
    """One camera's books at one instant."""

    captured: int
    detected: int
    in_flight: int
    dropped: dict[str, int]

    def since(self, before: Ledger) -> Ledger:
        """What happened since; `in_flight` stays that of the later instant."""
        dropped = {cause: count - before.dropped.get(cause, 0) for cause, count in self.dropped.items()}
        return Ledger(
            self.captured - before.captured,
            self.detected - before.detected,
            self.in_flight,
            {cause: count for cause, count in dropped.items() if count},
        )


@dataclass(frozen=True)
class Instant:
    """Everything counted so far, as it was at `at_ns` (CLOCK_MONOTONIC)."""

    at_ns: int
    ledgers: dict[str, Ledger]
    states: dict[str, str]  # camera: state, and its error
    cpu_s: dict[str, float] = field(default_factory=dict)
    busy_s: float = 0.0  # of all programs on the CPUs we may use
    capture: dict[float, float] = field(default_factory=dict)  # histogram: upper edge (s): cumulative count


def books(report: Path) -> Instant | None:
    """Ingest's last report; None before its first. Counts and time stamp are of one instant."""
    try:
        found = read_health(report)
    except HealthError:
        return None
    cameras: Mapping[str, Any] = found.detail.get("cameras", {})
    return Instant(
        found.written_ns,
        {name: _ledger(camera) for name, camera in cameras.items()},
        {name: f"{one['state']}{': ' + one['error'] if one.get('error') else ''}" for name, one in cameras.items()},
    )


def _ledger(camera: Mapping[str, Any]) -> Ledger:
    prefix = "dropped_"
    dropped = {name.removeprefix(prefix): int(n) for name, n in camera.items() if name.startswith(prefix)}
    return Ledger(int(camera["captured"]), int(camera["detected"]), int(camera["in_flight"]), dropped)


def cpu_seconds(children: Iterable[Child], valkey_pid: int | None) -> dict[str, float]:
    """User and system time by role so far; `load` is this process and simulated cameras: no part of the product."""
    spent = {"load": _of(psutil.Process())}
    for child in children:
        if child.pid is None:
            continue
        role = child.spec.name.rpartition("-")[0]
        process = psutil.Process(child.pid)
        spent[role] = spent.get(role, 0.0) + _of(process)
        spent["load"] += sum(_of(simulator) for simulator in process.children(recursive=True))
    if valkey_pid is not None:
        spent["valkey"] = _of(psutil.Process(valkey_pid))
    return spent


def _of(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def capture_histogram(port: int) -> dict[float, float]:
    """Ingest's histogram of the capture stage; empty where its metrics cannot be read."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SCRAPE_S) as answer:
            text = answer.read().decode()
    except (OSError, urllib.error.URLError):
        return {}
    return {
        float(sample.labels["le"]): sample.value
        for family in text_string_to_metric_families(text)
        if family.name == "sparsecam_stage_seconds"
        for sample in family.samples
        if sample.name.endswith("_bucket") and sample.labels["stage"] == "capture"
    }


class Subscriber:
    """Listens on the alert channel, as a user's program does; keeps when each alert came."""

    def __init__(self, client: redis.Redis) -> None:
        self.arrived_ns: list[int] = []
        self._client = client
        self._stop = threading.Event()
        self._channel = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]  # redis-py
        self._channel.subscribe(ALERTS)
        self._thread = threading.Thread(target=self._listen, name="alerts", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._stop.is_set():
            try:
                if self._channel.get_message(timeout=0.2) is not None:
                    self.arrived_ns.append(time.monotonic_ns())
            except (redis.RedisError, OSError):  # Valkey stops with the site
                return

    def close(self) -> None:
        """Hang up."""
        self._stop.set()
        self._thread.join(2.0)
        self._channel.close()
        self._client.close()
