"""Verdicts of trials, kept on disk by everything that could change them."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from wire.messages import MALFORMED

log = structlog.get_logger()

# Rises when a trial asks more of a model than before, takes time otherwise, or engines get another form of it: old
# verdicts are not believed.
_FORMAT = 10

T = TypeVar("T", bound=msgspec.Struct)


def default_dir() -> Path:
    """$XDG_CACHE_HOME/sparsecam, else ~/.cache/sparsecam."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "sparsecam"


def where(folder: Path | None) -> str:
    """The folder of the verdicts, for people."""
    try:
        return str((folder or default_dir()) / "trials")
    except RuntimeError:
        return "nowhere: there is no home folder"


def key(*facts: str | int | None) -> str:
    """A file name for the facts a verdict depends on; this machine's CPU and Python are added."""
    everything = [_FORMAT, cpu_model(), platform.python_version(), *facts]
    return hashlib.sha256(msgspec.json.encode(everything)).hexdigest()


@cache
def cpu_model() -> str:
    """The CPU's name and instruction sets, as the kernel tells them; the architecture where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    facts: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    told = [facts[name] for name in ("model name", "flags", "Features", "CPU part") if name in facts]
    return " | ".join([platform.machine(), *told])


@contextlib.contextmanager
def alone(folder: Path | None) -> Iterator[None]:
    """Keep other processes that share this cache out; the kernel lets them in when we die."""
    try:
        folder = folder or default_dir()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(folder / "trials.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except (OSError, RuntimeError):  # no cache that can be shared (RuntimeError: no home folder)
        yield
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def read(folder: Path | None, name: str, kind: type[T]) -> T | None:
    """A kept verdict; None where there is none or it cannot be read."""
    try:
        path = (folder or default_dir()) / "trials" / f"{name}.json"
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, *MALFORMED, RuntimeError):  # RuntimeError: no home folder
        return None


def write(folder: Path | None, name: str, verdict: msgspec.Struct) -> None:
    """Keep a verdict. A folder that cannot be written (a read-only container) costs the next start a trial, no more."""
    try:
        trials = (folder or default_dir()) / "trials"
        trials.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=trials, prefix=".verdict-", delete=False) as file:
            file.write(msgspec.json.encode(verdict))
        Path(file.name).rename(trials / f"{name}.json")
    except (OSError, RuntimeError) as error:
        log.info("verdict not kept, the model is tried again at the next start", reason=str(error))
