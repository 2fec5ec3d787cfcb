"""A process says how it is in one small JSON file; supervisors and container health checks read it.

The file is replaced atomically (write beside, then rename), so a reader sees the old report or the new one,
never half of one. Age is taken from CLOCK_MONOTONIC, which every process and container of one kernel shares and
nobody sets back.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from wire.messages import MALFORMED

State = Literal["starting", "ok", "degraded", "failed", "stopped"]

# ten missed beats: a process that swaps or compiles a model for a moment is not dead yet
STALE_AFTER_S = 10.0
WRITE_EVERY_S = 1.0  # often enough for a health check every few seconds, rare enough to cost nothing
MAX_REPORT_BYTES = 4 << 20  # a thousand cameras fit with room; a larger file is not ours


class HealthError(ValueError):
    """There is no report, or it cannot be read: says which file and why."""


class HealthReport(msgspec.Struct, frozen=True):
    """What one process last said of itself."""

    role: str
    host: str
    pid: int
    state: State
    written_ns: int  # CLOCK_MONOTONIC
    detail: dict[str, Any] = {}

    def age_s(self, now_ns: int | None = None) -> float:
        """Seconds since it was written; negative when it is from before the last boot."""
        return ((time.monotonic_ns() if now_ns is None else now_ns) - self.written_ns) / 1e9

    def stale(self, now_ns: int | None = None) -> bool:
        """Nothing was heard for STALE_AFTER_S, or the report is from before the last boot."""
        return not -1.0 <= self.age_s(now_ns) <= STALE_AFTER_S

    def healthy(self, now_ns: int | None = None) -> bool:
        """Fresh, and working at least in part (a dead camera is no reason to restart a process)."""
        return self.state in ("ok", "degraded") and not self.stale(now_ns)


class Health:
    """Writes one process's report. Thread-safe; cheap to call for every frame."""

    def __init__(self, path: Path | None, role: str, *, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._path = path
        self._role = role
        self._now_ns = monotonic_ns
        self._lock = threading.Lock()
        self._state: State = "starting"
        self._detail: dict[str, Any] = {}
        self._written_ns: int | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._write()

    @classmethod
    def null(cls) -> Health:
        """Writes nowhere: for tests and for one-off commands."""
        return cls(None, "null")

    @property
    def state(self) -> State:
        """What was last set."""
        return self._state

    @property
    def detail(self) -> dict[str, Any]:
        """What was last set."""
        with self._lock:
            return dict(self._detail)

    def set(self, state: State, **detail: str | int | float | Mapping[str, Any]) -> None:
        """State and facts. A change of state is written at once, the same state at most once a second.

        `detail` replaces what was said before, so a fact that is no longer true does not linger.
        """
        with self._lock:
            changed = state != self._state
            self._state = state
            self._detail = dict(detail)
            self._write_when(changed)

    def beat(self) -> None:
        """Still alive, nothing new to say."""
        with self._lock:
            self._write_when(False)

    def close(self, state: State = "stopped") -> None:
        """The last word: keeps the detail last set, so that whoever waits for the end can read the totals."""
        with self._lock:
            self._state = state
            self._write_when(True)

    def _write_when(self, now: bool) -> None:
        due = self._written_ns is None or self._now_ns() - self._written_ns >= WRITE_EVERY_S * 1e9
        if self._path is not None and (now or due):
            self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        self._written_ns = self._now_ns()
        report = HealthReport(
            role=self._role,
            host=socket.gethostname(),
            pid=os.getpid(),
            state=self._state,
            written_ns=self._written_ns,
            detail=self._detail,
        )
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            beside.write_bytes(json.dumps(msgspec.to_builtins(report), default=str).encode())
            beside.replace(self._path)
        except OSError:
            # A full or vanished disk must not stop the frames: the report goes stale, which says the same.
            with contextlib.suppress(OSError):  # one that can only be read
                beside.unlink(missing_ok=True)


def read_health(path: Path) -> HealthReport:
    """The report in `path`; raises HealthError when there is none or it is not one."""
    try:
        with path.open("rb") as file:
            payload = file.read(MAX_REPORT_BYTES + 1)
    except OSError as error:
        raise HealthError(f"{path}: no health report ({error.strerror}); is the process running?") from error
    if len(payload) > MAX_REPORT_BYTES:
        raise HealthError(f"{path}: larger than {MAX_REPORT_BYTES} bytes, not a health report")
    try:
        return msgspec.json.decode(payload, type=HealthReport)
    except MALFORMED as error:
        raise HealthError(f"{path}: not a health report: {error}") from error
