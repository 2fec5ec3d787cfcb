"""Claims on CPU cores, so that workers, also of different containers, do not share one.

A claim is a kernel lock (flock) on a file per core in a folder that all workers see: a worker that dies, however it
dies, gives its cores back. Where cores run out they are shared evenly: each core has a row of files, and the next free
place over all cores is taken before any core is shared once more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import structlog

from detector.cores import Core, Topology, topology
from detector.errors import DetectorError
from detector.layout import core_groups

log = structlog.get_logger()

_LAYERS = 64  # workers on one core; far beyond any use, and bounds the search
_POLL_S = 0.05  # how often a waiting claim looks again; a dead worker's cores are free at once


class ClaimError(DetectorError):
    """The folder of claims cannot be used, or more cores were asked for than there are."""


@dataclass
class CoreClaim:
    """Cores of one worker, held until `release`, or the end of the process."""

    cores: tuple[Core, ...]
    shared: bool  # another worker may have claimed one of them as well
    _locks: list[int] = field(default_factory=list, repr=False)

    @property
    def cpus(self) -> frozenset[int]:
        """All CPUs of the claimed cores."""
        return frozenset(cpu for core in self.cores for cpu in core.cpus)

    def pin(self) -> None:
        """Run every thread of this process, and those it starts later, on the claimed cores only."""
        for thread in Path("/proc/self/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # ended meanwhile
                os.sched_setaffinity(int(thread.name), self.cpus)

    def release(self) -> None:
        """Give the cores back."""
        while self._locks:
            os.close(self._locks.pop())

    def __enter__(self) -> CoreClaim:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


def claim_cores(
    folder: Path, count: int, *, wait_s: float = 0.0, machine: Topology | None = None, root: Path = Path("/")
) -> CoreClaim:
    """Claim `count` physical cores nobody else has; where there are too few after `wait_s`, share the least shared.

    They are of one group (cache and NUMA node, read below `root`) where one is large enough and, after `wait_s`, has as
    many free. `folder` is made where it is missing; workers that are to see each other's claims need the same one.
    Raises ClaimError.
    """
    machine = machine or topology()
    groups = core_groups(machine, root)
    cores = [core for group in groups for core in group]
    if not 1 <= count <= len(cores):
        raise ClaimError(f"{count} cores were asked for; this process may use {len(cores)} (detector.cores_per_worker)")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        deadline = time.monotonic() + wait_s
        while True:
            claim = _claim_in_one(folder, groups, count)
            patient = time.monotonic() < deadline
            if not claim and not (patient and any(len(group) >= count for group in groups)):
                claim = _claim_layer(folder, cores, count, 0)
            if len(claim) == count:
                return _done(claim, shared=False)
            if not patient:
                break
            _drop(claim)
            time.sleep(_POLL_S)
        for layer in range(1, _LAYERS):
            taken = {core for core, _ in claim}
            rest = [core for core in cores if core not in taken]
            claim += _claim_layer(folder, rest, count - len(claim), layer)
            if len(claim) == count:
                return _done(claim, shared=True)
        _drop(claim)
    except OSError as error:
        raise ClaimError(f"cannot claim cores in {folder}: {error.strerror}") from error
    raise ClaimError(f"more than {_LAYERS} workers claim each core in {folder}")


Claimed = list[tuple[Core, int]]


def _claim_in_one(folder: Path, groups: Sequence[Sequence[Core]], count: int) -> Claimed:
    """`count` cores of one group that nobody holds; none where no group has as many."""
    for group in groups:
        claimed = _claim_layer(folder, group, count, 0) if len(group) >= count else []
        if len(claimed) == count:
            return claimed
        _drop(claimed)
    return []


def _claim_layer(folder: Path, cores: Sequence[Core], count: int, layer: int) -> Claimed:
    """Up to `count` of the cores whose file of this layer nobody holds."""
    claimed: Claimed = []
    for core in cores:
        if len(claimed) == count:
            break
        lock = _try_lock(folder / f"core-{core.number}.{layer}.lock")
        if lock is not None:
            claimed.append((core, lock))
    return claimed


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the file's lock; None where another process does."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    # For a person who looks who it was; only the lock itself counts.
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
    return lock


def _done(claimed: Claimed, *, shared: bool) -> CoreClaim:
    claim = CoreClaim(tuple(core for core, _ in claimed), shared, [lock for _, lock in claimed])
    cpus = sorted(claim.cpus)
    if shared:
        log.warning("too few free cores, sharing with another worker", cpus=cpus, mend="start fewer workers")
    else:
        log.info("cores claimed", cpus=cpus)
    return claim


def _drop(claimed: Claimed) -> None:
    for _, lock in claimed:
        os.close(lock)
