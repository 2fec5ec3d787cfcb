"""`sparsecam up`: all processes of one host as children, kept running and stopped in the right order.

Everything is started at once, since each process waits for its peers by itself. On the way down the cameras stop first,
so that frames on their way arrive; then broker and workers, then the sink, then the embedded Valkey.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

import psutil
import structlog

from services.child import Child, ChildSpec, relay_to, restarts_of, sparsecam, stop_all
from services.process import EXIT_OK, LogOptions, claim_report, private_dir, report_path
from services.redis_memory import memory_mb
from wire.health import Health, HealthError, read_health
from wire.valkey import EmbeddedValkey, ValkeyError

if TYPE_CHECKING:
    from services.config import Config

log = structlog.get_logger()

STOP_BUDGET_S = 5.0  # what container runtimes and people wait for without doubt (docker's own is 10)
TICK_S = 0.05
VALKEY_RETRY_S = 2.0
AGE_SLACK_S = 1.0  # the kernel counts a process's age in hundredths of a second, by another clock than reports have

ROLES = ("broker", "ingest", "detector", "sink")


class AlreadyRuns(RuntimeError):
    """Another `up` has the runtime_dir: says which, and how to run both."""


class Supervisor:
    """Runs the processes of one host. Use from one thread, the one that lives longest (see Child)."""

    def __init__(
        self,
        config: Config,
        config_path: Path | None,
        *,
        workers: int,
        roles: Sequence[str] = ROLES,
        logs: LogOptions | None = None,
        output: IO[str] | None = None,
    ) -> None:
        logs = logs or LogOptions()
        self._config = config
        self._valkey: EmbeddedValkey | None = None
        if config.embeds_valkey:
            self._valkey = EmbeddedValkey(config.valkey_dir, max_memory_mb=memory_mb(config))
        self._valkey_retry_s = 0.0
        specs = list(child_specs(config, config_path, workers, roles, logs))
        width = max((len(spec.name) for spec in specs), default=0)
        relay = relay_to(sys.stderr if output is None else output, logs.format, width)
        self.children = [Child(spec, relay) for spec in specs]
        self._health: Health | None = None

    def __enter__(self) -> Supervisor:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything; raises AlreadyRuns, and ValkeyError when the embedded Valkey cannot start."""
        private_dir(self._config.runtime_dir)
        refuse_second(self._config)
        self._health, _ = claim_report(self._config.health_dir, "up", 0)
        if self._valkey is not None:
            self._valkey.start()
        for child in self.children:
            child.start()

    def run(self, stop: threading.Event, each_tick: Callable[[], None] | None = None) -> int:
        """Keep the children running until `stop`; returns the exit code.

        Ends early, with that child's code, when one cannot run as configured. `each_tick` is called some twenty
        times a second.
        """
        while not stop.is_set():
            self.tick()
            unusable = next((child for child in self.children if child.fate == "unusable"), None)
            if unusable is not None:
                log.error("a process cannot run as configured; stopping", process=unusable.spec.name)
                return unusable.exit_code or 1
            if each_tick is not None:
                each_tick()
            stop.wait(TICK_S)
        return EXIT_OK

    def tick(self) -> None:
        """Look at every child once."""
        self._keep_valkey()
        for child in self.children:
            child.tick()
        if self._health is not None:
            up = sum(child.pid is not None for child in self.children)
            missing = any(child.pid is None and child.fate in ("running", "waiting") for child in self.children)
            self._health.set("degraded" if missing else "ok", processes=up, restarts=dict(self.restarts))

    @property
    def restarts(self) -> Mapping[str, int]:
        """How often each child was restarted."""
        return restarts_of(self.children)

    def stop_roles(self, roles: Iterable[str], within_s: float) -> None:
        """Stop the children of some roles and wait; those that will not are killed."""
        names = tuple(roles)
        chosen = [child for child in self.children if child.spec.name.rpartition("-")[0] in names]
        stop_all(chosen, time.monotonic() + within_s)

    def stop(self, budget_s: float = STOP_BUDGET_S) -> None:
        """Stop everything in order, within `budget_s`. May be called again."""
        end_s = time.monotonic() + budget_s
        # Cameras get most of the time: a file's frames on their way must arrive. Each later stage has what the
        # ones before left, and at least its own share.
        for roles, share_left in ((("ingest",), 0.4), (("broker", "detector"), 0.2), (("sink",), 0.1)):
            self.stop_roles(roles, max(0.0, end_s - budget_s * share_left - time.monotonic()))
        if self._valkey is not None:
            self._valkey.stop(timeout_s=max(0.1, end_s - time.monotonic()))
        if self._health is not None:
            self._health.close()

    def _keep_valkey(self) -> None:
        if self._valkey is None or self._valkey.pid is not None or time.monotonic() < self._valkey_retry_s:
            return
        log.error("the embedded Valkey died; starting it again")
        try:
            self._valkey.start()
        except ValkeyError as error:
            self._valkey_retry_s = time.monotonic() + VALKEY_RETRY_S
            log.error("the embedded Valkey does not start", error=str(error))


def refuse_second(config: Config) -> None:
    """Raise AlreadyRuns where another `up` of this host has the runtime_dir, with its sockets and reports."""
    try:
        report = read_health(report_path(config.health_dir, "up", 0))
        other = psutil.Process(report.pid)
        begun_s, dead = other.create_time(), other.status() == psutil.STATUS_ZOMBIE
    except (HealthError, psutil.Error):
        return
    # Only a process as old as its report wrote it; a younger one has got the number of one that was killed.
    same = 0 <= report.age_s() <= time.time() - begun_s + AGE_SLACK_S
    if same and not dead and report.pid != os.getpid() and report.state not in ("stopped", "failed"):
        since = f"{datetime.fromtimestamp(begun_s):%Y-%m-%d %H:%M:%S}"
        raise AlreadyRuns(
            f"Sparsecam already runs here: process {report.pid} since {since}, in {config.runtime_dir}. "
            f"Stop it first (kill {report.pid}, or Ctrl-C where it was started); or, for a second one beside it, set "
            "`runtime_dir:` in the config or SPARSECAM__RUNTIME_DIR to another folder, and where both use one Redis "
            "give its cameras other names"
        )


def child_specs(
    config: Config, config_path: Path | None, workers: int, roles: Sequence[str], logs: LogOptions
) -> Iterable[ChildSpec]:
    """One spec for each process; names are `role-index`."""
    for role in roles:
        for index in range(workers if role == "detector" else 1):
            arguments = ["run", role, "--index", str(index)]
            arguments += ["--log-level", logs.level, "--log-format", logs.format]
            if config_path is not None:
                arguments += ["--config", str(config_path.absolute())]
            report = report_path(config.health_dir, role, index)
            yield ChildSpec(f"{role}-{index}", sparsecam(*arguments), report)
