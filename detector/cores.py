"""Which CPU cores this process may use: its cpuset, the physical cores behind it, and the cgroup's CPU quota."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Core:
    """One physical core: the number all processes of the host know it by, and those of its CPUs we may run on."""

    number: int  # its lowest CPU, ours or not
    cpus: tuple[int, ...]


@dataclass(frozen=True)
class Topology:
    """The cores within this process's cpuset, and how many cores' worth of time the cgroup grants."""

    cores: tuple[Core, ...]
    quota_cores: float | None  # None: no quota

    @property
    def usable(self) -> int:
        """Cores to place workers on: those that can be busy all the time, and one where the quota pays for less."""
        return max(1, int(self.capacity))

    @property
    def capacity(self) -> float:
        """Cores' worth of time there is: all cores, or what the quota pays for, which may be less than one."""
        return len(self.cores) if self.quota_cores is None else min(len(self.cores), self.quota_cores)


def topology(root: Path = Path("/")) -> Topology:
    """What this process has, from sched_getaffinity and the sys and proc folders under `root`."""
    allowed = os.sched_getaffinity(0)
    siblings = {cpu: _siblings(root, cpu) for cpu in sorted(allowed)}
    cores: dict[int, list[int]] = {}
    for cpu, group in siblings.items():
        cores.setdefault(min(group), []).append(cpu)
    found = tuple(Core(number, tuple(cpus)) for number, cpus in sorted(cores.items()))
    return Topology(found, quota_cores(root))


def worker_count(workers: int | Literal["auto"], cores_per_worker: int, machine: Topology) -> int:
    """How many workers to start: the number asked for, else as many as the usable cores hold, at least one."""
    return workers if isinstance(workers, int) else max(1, machine.usable // cores_per_worker)


def _siblings(root: Path, cpu: int) -> tuple[int, ...]:
    """CPUs of the same physical core; the CPU alone where the system does not tell (some virtual machines)."""
    folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    for name in ("core_cpus_list", "thread_siblings_list"):  # the second is the older name
        try:
            group = parse_cpu_list((folder / name).read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
        if cpu in group:
            return group
    return (cpu,)


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """CPUs of the kernel's list format, `0-3,8`; raises ValueError, also for a range that holds none (`1-0`)."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found = range(int(first), int(last or first) + 1)
        if not found:
            raise ValueError(f"{part}: a range of CPUs that ends before it begins")
        cpus.extend(found)
    return tuple(cpus)


def quota_cores(root: Path = Path("/")) -> float | None:
    """The tightest CPU quota on the way from this process's cgroup to the root, in cores; None without any.

    cgroup v2 keeps it in cpu.max ("quota period" or "max period"), v1 in cpu.cfs_quota_us and cpu.cfs_period_us.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        hierarchy, controllers, path = [*line.split(":", 2), "", ""][:3]
        if hierarchy == "0" and not controllers:
            quotas += [_quota_v2(folder) for folder in _upwards(root / "sys/fs/cgroup", path)]
        elif "cpu" in controllers.split(","):
            for mount in ("cpu,cpuacct", "cpu"):
                quotas += [_quota_v1(folder) for folder in _upwards(root / "sys/fs/cgroup" / mount, path)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _upwards(mount: Path, path: str) -> list[Path]:
    """The cgroup's folder and its parents. In a container the mount is the cgroup itself, so the path may not exist."""
    below = Path(path.lstrip("/"))
    return [mount / below, *(mount / parent for parent in below.parents)]


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, _, period = (folder / "cpu.max").read_text(encoding="ascii").strip().partition(" ")
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        period = int((folder / "cpu.cfs_period_us").read_text(encoding="ascii"))
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
