"""One turn of the pipeline: the processes of `sparsecam up` on a config of our own, measured over a steady window."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import redis
import yaml

from services.bench.errors import BenchError
from services.bench.figures import Summary, histogram_summary
from services.bench.machine import busy_seconds
from services.bench.sources import Cameras
from services.bench.stages import Stages, read_stages
from services.bench.watch import Instant, Ledger, Subscriber, books, capture_histogram, cpu_seconds
from services.config import Config, load
from services.process import LogOptions, report_path
from services.supervisor import Supervisor
from services.workers import worker_count
from wire.redis_link import connect

STARTING_S = 120.0  # trying and compiling a large model on a slow machine
FIRST_FRAMES = 10  # of each camera, before the warm-up begins: caches and allocators have seen them
TICK_S = 0.02
SETTLE_S = 0.5  # for the last records of the window to reach Redis
STOP_S = 10.0
KEPT = 1_000_000  # records in a stream: more than any window has frames
# Easy to set off, so that alerts are part of what is measured: the rules are judged on every frame either way.
RULE: dict[str, Any] = {"min_score": 0.25, "confirm_frames": 3, "window_frames": 5, "cooldown_s": 1}


@dataclass(frozen=True)
class Turn:
    """What one window showed."""

    seconds: float
    frames: int
    stages: Stages
    capture: Summary
    cpu_s: dict[str, float]
    before: dict[str, Ledger]
    after: dict[str, Ledger]
    alerts: int
    workers: int
    others_cores: float  # what other programs took meanwhile, in cores

    @property
    def fps(self) -> float:
        """Frames detected a second."""
        return self.frames / self.seconds


@dataclass(frozen=True)
class Window:
    """How long to measure."""

    warmup_s: float
    seconds: float
    frames: int | None  # also until this many are detected, where given


def site_config(cameras: Cameras, detector: dict[str, Any], folder: Path, ingest_port: int) -> dict[str, Any]:
    """The config of the site: defaults but for the cameras, the model, and room to keep every record."""
    ports = {"broker_port": 0, "ingest_port": ingest_port, "sink_port": 0, "detector_port": 0}
    return {
        "runtime_dir": str(folder / "run"),
        "cameras": cameras.settings,
        "detector": detector,
        "rules": {"anything": RULE},
        "incidents": {"update_s": RULE["cooldown_s"]},
        "redis": {"detections_maxlen": KEPT},
        "metrics": ports,
    }


def run_turn(cameras: Cameras, detector: dict[str, Any], window: Window) -> Turn:
    """Start everything, wait until it flows, measure, stop; raises BenchError with the end of the site's log."""
    with tempfile.TemporaryDirectory(prefix="sparsecam-bench-") as name:
        folder = Path(name)
        port = _free_port()
        path = folder / "sparsecam.yaml"
        path.touch(0o600)  # a source may hold a password
        path.write_text(yaml.safe_dump(site_config(cameras, detector, folder, port), sort_keys=False))
        # The benchmark's own Valkey, whatever Redis the shell may know of.
        config = load(path, env={})
        with (folder / "log").open("w+") as log:
            try:
                return _Site(config, path, log, port).measure(window)
            except BenchError as error:
                log.flush()
                said = Path(log.name).read_text(errors="replace").strip().splitlines()[-8:]
                raise BenchError("\n".join([str(error), *said])) from None


class _Site:
    def __init__(self, config: Config, path: Path, log: IO[str], ingest_port: int) -> None:
        self._config = config
        self._workers = worker_count(config)
        logs = LogOptions(level="warning")
        self._supervisor = Supervisor(config, path, workers=self._workers, logs=logs, output=log)
        self._report = report_path(config.health_dir, "ingest", 0)
        self._ingest_port = ingest_port
        self._valkey_pid: int | None = None

    def measure(self, window: Window) -> Turn:
        with ExitStack() as stack:
            stack.callback(self._supervisor.stop, STOP_S)
            self._supervisor.start()
            client = stack.enter_context(connect(self._config.redis, self._config.redis_url))
            self._valkey_pid = int(client.info("server")["process_id"])
            subscriber = Subscriber(connect(self._config.redis, self._config.redis_url))
            stack.callback(subscriber.close)
            self._until(self._flows, STARTING_S, "not every camera had its first frames detected")
            self._tick_for(window.warmup_s)
            begin = self._instant(0)
            self._tick_for(window.seconds)
            end = self._instant(begin.at_ns)
            while window.frames and _detected(end) - _detected(begin) < window.frames:
                self._tick_for(0.1)
                end = self._instant(end.at_ns)
            self._tick_for(SETTLE_S)
            return self._turn(client, subscriber, begin, end)

    def _turn(self, client: redis.Redis, subscriber: Subscriber, begin: Instant, end: Instant) -> Turn:
        stages = read_stages(client, self._config.cameras, begin.at_ns, end.at_ns)
        frames = sum(stages.detected.values())
        if not frames:
            raise BenchError("no frame was detected during the measurement")
        if any(self._supervisor.restarts.values()):
            raise BenchError(f"processes died during the measurement: {dict(self._supervisor.restarts)}")
        seconds = (end.at_ns - begin.at_ns) / 1e9
        cpu_s = {role: end.cpu_s[role] - begin.cpu_s.get(role, 0.0) for role in end.cpu_s}
        return Turn(
            seconds=seconds,
            frames=frames,
            stages=stages,
            capture=histogram_summary(begin.capture, end.capture),
            cpu_s=cpu_s,
            before=begin.ledgers,
            after=end.ledgers,
            alerts=sum(begin.at_ns <= at_ns < end.at_ns for at_ns in subscriber.arrived_ns),
            workers=self._workers,
            others_cores=max(0.0, (end.busy_s - begin.busy_s - sum(cpu_s.values())) / seconds),
        )

    def _flows(self) -> bool:
        now = books(self._report)
        return (
            now is not None and bool(now.ledgers) and all(one.detected >= FIRST_FRAMES for one in now.ledgers.values())
        )

    def _instant(self, after_ns: int) -> Instant:
        """The next report of ingest, and everything else as it is at that moment."""
        newest = max(after_ns, found.at_ns if (found := books(self._report)) else 0)
        fresh: list[Instant] = []

        def next_report() -> bool:
            now = books(self._report)
            if now is not None and now.at_ns > newest:
                fresh.append(now)
            return bool(fresh)

        self._until(next_report, 10.0, "ingest did not report")
        return replace(
            fresh[0],
            cpu_s=cpu_seconds(self._supervisor.children, self._valkey_pid),
            busy_s=busy_seconds(),
            capture=capture_histogram(self._ingest_port),
        )

    def _tick_for(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        self._until(lambda: time.monotonic() >= until_s, seconds + 1, "")

    def _until(self, condition: Callable[[], bool], limit_s: float, otherwise: str) -> None:
        until_s = time.monotonic() + limit_s
        while not condition():
            self._supervisor.tick()
            for child in self._supervisor.children:
                if child.fate == "unusable":
                    raise BenchError(f"{child.spec.name} cannot run as configured")
            if time.monotonic() > until_s:
                now = books(self._report)
                raise BenchError(f"{otherwise} in {limit_s:g} s; cameras: {now.states if now else 'none yet'}")
            time.sleep(TICK_S)


def _detected(now: Instant) -> int:
    return sum(ledger.detected for ledger in now.ledgers.values())


def _free_port() -> int:
    """A port nobody has now; should another process take it meanwhile, ingest takes any, and capture is not shown."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
