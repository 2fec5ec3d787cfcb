"""What every result says of the machine and of what was run, so that a figure can be read a year later."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from typing import Any

import psutil

from detector.cores import parse_cpu_list, topology
from detector.engines import installed
from services.bench.errors import BenchError
from services.machine import processor
from wire.metrics import package_version


def machine_facts() -> dict[str, Any]:
    """Processor, cores this process may use, load of others."""
    found, cores = processor(), topology()
    return {
        "processor": found.name,
        "instruction_sets": found.instruction_sets,
        "logical_cpus": found.logical,
        "cores_used": [core.number for core in cores.cores],
        "quota_cores": cores.quota_cores,
        "kernel": platform.release(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def busy_seconds() -> float:
    """CPU time that all programs together have spent on the CPUs this process may use, since boot."""
    times = psutil.cpu_times(percpu=True)
    mine = [times[cpu] for cpu in os.sched_getaffinity(0) if cpu < len(times)]
    return sum(sum(one) - one.idle - getattr(one, "iowait", 0.0) - getattr(one, "guest", 0.0) for one in mine)


def versions() -> dict[str, str]:
    """Sparsecam, Python and the engines."""
    return {"sparsecam": package_version(), "python": platform.python_version(), **installed()}


def command_line() -> str:
    """The command that makes this result again."""
    return shlex.join(["sparsecam", *sys.argv[1:]])


def keep_to(cores: str) -> None:
    """Run this process, and all it starts, on these CPUs only (the kernel's list format, `0-3,8`)."""
    allowed = os.sched_getaffinity(0)
    try:
        wanted = set(parse_cpu_list(cores))
    except ValueError:
        raise BenchError(f"--cores {cores!r}: expected CPUs such as 0,1 or 0-3") from None
    if not wanted <= allowed:
        missing = ",".join(map(str, sorted(wanted - allowed)))
        usable = ",".join(map(str, sorted(allowed)))
        raise BenchError(f"--cores {cores}: CPU {missing} is not there for this process, which may use {usable}")
    os.sched_setaffinity(0, wanted)
