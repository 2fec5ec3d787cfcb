"""What else runs on the cores: wait until it is little, and say how much it was during a turn."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

# An idle desktop or container host stays below this; a compiler or another benchmark does not.
QUIET_SHARE = 0.1
_LOOK_S = 1.0  # /proc/stat counts in 10 ms: a second tells 1 % apart


@dataclass(frozen=True)
class Watch:
    """Counts the time that others took on the cores since `start`, apart from children of ours that have ended."""

    cores: tuple[int, ...]
    began: float
    busy: float
    own: float

    @classmethod
    def start(cls, cores: tuple[int, ...]) -> Watch:
        """Begin to count."""
        return cls(cores, time.perf_counter(), _busy_seconds(cores), _children_seconds())

    def others_share(self) -> float:
        """Their share of the cores' time since the start, 0..1."""
        seconds = (time.perf_counter() - self.began) * len(self.cores)
        theirs = _busy_seconds(self.cores) - self.busy - (_children_seconds() - self.own)
        return min(max(theirs / seconds, 0.0), 1.0)


def wait_for_quiet(cores: tuple[int, ...], limit_s: float) -> None:
    """Return once others leave the cores alone for a second, or after the limit; 0: at once."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        watch = Watch.start(cores)
        time.sleep(_LOOK_S)
        if watch.others_share() <= QUIET_SHARE:
            return


def _busy_seconds(cores: tuple[int, ...]) -> float:
    """Time these CPUs were not idle since the machine started; time stolen by its host counts as busy."""
    ticks = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdecimal() and int(name[3:]) in cores:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
