"""One child process of the supervisor: started, its output passed on, restarted with back-off, stopped."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

import structlog

from services.process import EXIT_UNUSABLE, PARENT_VARIABLE
from wire.health import HealthError, HealthReport, read_health
from wire.logs import LogFormat, redact
from wire.program import python

log = structlog.get_logger()

FIRST_BACKOFF_S = 0.25  # a killed worker is missed at once, and one restart costs about a second of CPU
LONGEST_BACKOFF_S = 30.0  # a child that cannot start must not keep the machine busy trying
HEALTHY_AFTER_S = 60.0  # a child that lived this long starts again from the first back-off
HUNG_AFTER_S = 30.0  # three times the age at which a report is stale: it is not coming back
LONGEST_LINE = 64 << 10  # a line of output beyond this is passed on in pieces

Fate = Literal[
    "running",
    "waiting",  # for its next start
    "unusable",  # it said that it cannot run as configured
    "stopped",  # we told it to stop
]


def sparsecam(*arguments: str) -> tuple[str, ...]:
    """The command line of a `sparsecam` command, run by this Python."""
    return python("from services.cli import main; main()", *arguments)


@dataclass(frozen=True)
class ChildSpec:
    """What to run."""

    name: str
    command: tuple[str, ...]
    report: Path  # its health report


@dataclass
class Child:
    """A process that should run. All methods are for one thread, the one that lives as long as the supervisor.

    (The kernel's "kill me when my parent dies" means the parent's *thread*.)
    """

    spec: ChildSpec
    relay: Callable[[str, str], None]
    clock: Callable[[], float] = time.monotonic
    restarts: int = 0
    fate: Fate = "waiting"
    exit_code: int | None = None
    _process: subprocess.Popen[bytes] | None = None
    _started_s: float = 0.0
    _start_at_s: float = 0.0
    _backoff_s: float = FIRST_BACKOFF_S
    _worked: bool = False  # whether it ever said so
    _unwritable_told: bool = False
    _unwritable_s: float = -math.inf
    _readers: list[threading.Thread] = field(default_factory=list)

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start it now."""
        environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
        self._process = subprocess.Popen(
            self.spec.command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the supervisor only, which stops its children in order
        )
        self._started_s = self.clock()
        self.fate = "running"
        reader = threading.Thread(
            target=self._read, args=(self._process.stdout,), name=f"output of {self.spec.name}", daemon=True
        )
        reader.start()
        self._readers = [*(thread for thread in self._readers if thread.is_alive()), reader]

    def tick(self) -> None:
        """Notice an end or a hang; start again when its time has come.

        Exit code 0 is an end like any other: somebody else told it to stop, and what it did is missed all the same.
        """
        if self.fate == "waiting" and self.clock() >= self._start_at_s:
            self.start()
        if self.fate != "running" or self._process is None:
            return
        code = self._process.poll()
        self._worked |= self._works()
        if code is not None:
            self._ended(code)
        elif self._hangs():
            log.error("process hangs, killed", process=self.spec.name, pid=self._process.pid)
            self._process.kill()

    def terminate(self) -> None:
        """Ask it to stop; it will not be started again."""
        self.fate = "stopped"
        if self.pid is not None and self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self, until_s: float) -> bool:
        """Wait for its end until the clock shows `until_s`; whether it has ended."""
        while self.pid is not None:
            if self.clock() >= until_s:
                return False
            time.sleep(0.01)
        self._join_readers()
        return True

    def kill(self) -> None:
        """End it now, whatever it does."""
        if self.pid is not None and self._process is not None:
            log.warning("process killed, it did not stop in time", process=self.spec.name, pid=self._process.pid)
            self._process.kill()
            self._process.wait()
        self._join_readers()

    def _ended(self, code: int) -> None:
        lived_s = self.clock() - self._started_s
        self.exit_code = code
        if code == EXIT_UNUSABLE and not self._worked and self.restarts == 0:
            # It said why. What cannot run as configured at first start is for a person to mend; one that worked
            # before (its readers hang, its model is being replaced) is tried again.
            self.fate = "unusable"
            return
        if lived_s >= HEALTHY_AFTER_S:
            self._backoff_s = FIRST_BACKOFF_S
        self.restarts += 1
        self.fate = "waiting"
        self._start_at_s = self.clock() + self._backoff_s
        log.error(
            "process died",
            process=self.spec.name,
            how=_how(code),
            lived_s=round(lived_s, 1),
            restarts=self.restarts,
            restart_in_s=round(self._backoff_s, 2),
        )
        self._backoff_s = min(LONGEST_BACKOFF_S, self._backoff_s * 2)

    def _works(self) -> bool:
        report = self._report()
        return report is not None and report.state in ("ok", "degraded")

    def _hangs(self) -> bool:
        """Its report says it worked, and has not been renewed for long. (While starting it may compile for minutes.)"""
        if self.clock() - self._started_s < HUNG_AFTER_S:
            return False
        report = self._report()
        if report is None or report.state not in ("ok", "degraded") or report.age_s() <= HUNG_AFTER_S:
            return False
        why = _cannot_write_in(self.spec.report.parent)
        if why and not self._unwritable_told:
            log.warning("health reports cannot be written, so nobody can be seen to hang", reason=why)
        self._unwritable_told = bool(why)
        if why:
            self._unwritable_s = self.clock()
        # Nor at once when it can be written again: the report is as old as before until it is renewed.
        return self.clock() - self._unwritable_s > HUNG_AFTER_S

    def _report(self) -> HealthReport | None:
        """Its own, and not that of the process before it."""
        try:
            report = read_health(self.spec.report)
        except HealthError:
            return None
        return report if report.pid == self.pid else None

    def _read(self, output: IO[bytes] | None) -> None:
        if output is None:
            return
        with output:
            while line := output.readline(LONGEST_LINE):
                self.relay(self.spec.name, line.decode(errors="replace").rstrip("\r\n"))

    def _join_readers(self) -> None:
        for thread in self._readers:
            # A grandchild may still hold the pipe; its words are not worth waiting for.
            thread.join(timeout=0.2)


def _cannot_write_in(folder: Path) -> str:
    """Why no report could be renewed, or nothing: on a full disk nobody's is, and that is no hang."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(65536))  # more than the longest report's
    except OSError as error:
        return f"{folder}: {error.strerror}"
    return ""


def relay_to(stream: IO[str], log_format: LogFormat, width: int) -> Callable[[str, str], None]:
    """A function that passes on one line of a child: prefixed for a person, as a JSON object for a machine."""
    lock = threading.Lock()

    def relay(name: str, line: str) -> None:
        if log_format == "json":
            text = line if line.startswith("{") else json.dumps({"event": redact(line), "process": name})
        else:
            text = f"{name:<{width}} | {redact(line)}"
        # A reader of ours that has gone (`sparsecam up | head`) must not stop the children.
        with lock, suppress(OSError, ValueError):
            stream.write(text + "\n")
            stream.flush()

    return relay


def stop_all(children: Sequence[Child], until_s: float) -> None:
    """Ask all to stop, wait until the clock shows `until_s`, kill the rest."""
    for child in children:
        child.terminate()
    for child in children:
        if not child.wait(until_s):
            child.kill()


def restarts_of(children: Sequence[Child]) -> Mapping[str, int]:
    """How often each was restarted."""
    return {child.spec.name: child.restarts for child in children}


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
