"""What every process does around its work: signals, logs, health, metrics, exit codes, and dying with its parent."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import structlog

from ingest.errors import SourceError
from services.config_errors import ConfigError
from wire import metrics
from wire.health import Health, HealthError, read_health
from wire.logs import LogFormat, LogLevel, redact, setup_logs

if TYPE_CHECKING:
    from services.config import Config

log = structlog.get_logger()

# Ends what is said of an error that no room of ours defined.
UNFORESEEN = "nobody foresaw this error; please report it with the lines above"

EXIT_OK = 0
EXIT_BUG = 70  # EX_SOFTWARE: something we did not foresee
EXIT_UNUSABLE = 78  # EX_CONFIG: cannot run as configured; a restart alone will not mend it
EXIT_INTERRUPTED = 130  # what a shell expects after Ctrl-C

PARENT_VARIABLE = "SPARSECAM_PARENT"  # process id of the supervisor that started us
PR_SET_PDEATHSIG = 1  # linux/prctl.h
ROOMS = ("services", "ingest", "detector", "sink", "wire", "trainer")
REPORTS_KEPT_S = 60.0  # a report older than this is of a process long gone

Main = Callable[["Config", threading.Event, Health], None]


@dataclass(frozen=True)
class LogOptions:
    """How a process writes its log."""

    level: LogLevel = "info"
    format: LogFormat = "console"


def run_process(
    role: metrics.Role,
    config: Config,
    main: Main,
    *,
    index: int | None = None,
    logs: LogOptions | None = None,
) -> int:
    """Run `main` until it returns, SIGTERM, SIGINT or SIGHUP; returns the exit code.

    `index` tells workers of one host apart; None takes the first that no living process has. Health goes to
    <runtime_dir>/health/<role>-<host>-<index>.json, metrics to the role's port plus index.
    """
    logs = logs or LogOptions()
    stop = threading.Event()
    die_with_parent()
    catch_signals(stop)
    setup_logs(logs.level, logs.format)
    server = None
    health: Health | None = None
    try:
        private_dir(config.runtime_dir)
        health, index = claim_report(config.health_dir, role, index)
        if logs.format == "json":
            setup_logs(logs.level, logs.format, process=f"{role}-{index}")
        server = metrics.serve(config.metrics, role, index)
        log.info("started", role=role, index=index, pid=os.getpid())
        main(config, stop, health)
        log.info("stopped", role=role, index=index)
        health.close()
    except Exception as error:  # the last line of defence: whatever it is, a person gets words and not a bare traceback
        if health is not None:
            health.close("failed")
        return report_error(error, role)
    finally:
        if server is not None:
            server.close()
    return EXIT_OK


def report_error(error: BaseException, doing: str) -> int:
    """Log an error that ended a process or command; returns the exit code for it.

    Errors that our own rooms raise carry words for a person and need no traceback; any other is a bug of ours, logged
    with its traceback.
    """
    if known_error(error):
        log.error(f"{doing} cannot run: {error}")
        return EXIT_UNUSABLE
    log.error(f"{doing} met an error that nobody foresaw; please report it with these lines", exc_info=error)
    return EXIT_BUG


def known_error(error: BaseException) -> bool:
    """Whether one of our own rooms defined this error's class, and so wrote its message for a person."""
    return type(error).__module__.partition(".")[0] in ROOMS


def print_error(error: BaseException) -> int:
    """Say on stderr why a command cannot go on; returns the exit code."""
    if known_error(error):
        # A config's problems begin with file:line:column, where editors look for it.
        prefix = "" if isinstance(error, ConfigError) else "sparsecam: "
        text = error.words if isinstance(error, SourceError) else str(error)
        sys.stderr.write(f"{prefix}{redact(text)}\n")
        return EXIT_UNUSABLE
    lines = "".join(traceback.format_exception(error))
    sys.stderr.write(f"{redact(lines)}sparsecam: {UNFORESEEN}\n")
    return EXIT_BUG


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Inference engines print banners on the descriptor itself; stdout belongs to a command's result."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def catch_signals(stop: threading.Event) -> None:
    """SIGTERM, SIGINT and SIGHUP set `stop`; a second one of the first two ends the process at once. Call from the main
    thread."""

    def on_signal(number: int, _frame: FrameType | None) -> None:
        # A terminal that closes may send several hang-ups.
        if stop.is_set() and number != signal.SIGHUP:
            os._exit(128 + number)
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, on_signal)


def die_with_parent() -> None:
    """Where a supervisor started us: ask the kernel to kill us when it dies, however it dies (Linux)."""
    parent = os.environ.pop(PARENT_VARIABLE, "")
    if not parent.isdecimal() or sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):  # it died before we could ask
        os._exit(EXIT_INTERRUPTED)


def private_dir(path: Path) -> None:
    """Make `path` a folder of ours alone: its sockets have no password, so its mode keeps others out."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    owner = path.stat().st_uid
    # A stranger who made the folder first (/tmp is everybody's) could put sockets of his own into it.
    if owner not in (os.getuid(), 0) or not os.access(path, os.W_OK | os.X_OK):
        raise RuntimeDirError(
            f"runtime_dir {path} belongs to user {owner}, and user {os.getuid()} cannot use it. "
            "Set runtime_dir to a folder of your own."
        )


class RuntimeDirError(OSError):
    """The folder for sockets and health files cannot be used."""


def claim_report(folder: Path, role: str, index: int | None) -> tuple[Health, int]:
    """Open this process's report under the first index that no living process of the role has on this host.

    Reports of processes long gone (containers that were replaced) are removed.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # held for milliseconds, released by the kernel if we die
        _remove_old_reports(folder)
        if index is None:
            index = 0
            while _is_alive(report_path(folder, role, index)):
                index += 1
        return Health(report_path(folder, role, index), role), index


def report_path(folder: Path, role: str, index: int) -> Path:
    """Where a process of this host reports; the host is in the name since containers share the folder."""
    return folder / f"{role}-{socket.gethostname()}-{index}.json"


def _is_alive(path: Path) -> bool:
    try:
        report = read_health(path)
    except HealthError:
        return False
    if report.state in ("stopped", "failed") or report.pid == os.getpid():
        return False
    return Path(f"/proc/{report.pid}").exists() and report.age_s() >= 0


def _remove_old_reports(folder: Path) -> None:
    for path in folder.glob("*.json"):
        try:
            age_s = read_health(path).age_s()
        except HealthError:
            continue
        if not -1.0 <= age_s <= REPORTS_KEPT_S:
            path.unlink(missing_ok=True)
