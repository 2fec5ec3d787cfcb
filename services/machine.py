"""Facts of this machine for `sparsecam doctor`: processor, memory, file systems. Cores are in detector/cores.py.

All functions take the root of the file system, so that tests can show them other machines.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from detector.cpu import WIDE_SUMS

ROOT = Path("/")

# The instruction sets that decide how fast INT8 and fp32 networks run, slowest first; names as /proc/cpuinfo has them.
INSTRUCTION_SETS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8")


@dataclass(frozen=True)
class Processor:
    """What /proc/cpuinfo says."""

    name: str
    logical: int
    physical: int
    flags: frozenset[str]

    @property
    def instruction_sets(self) -> list[str]:
        """Those of INSTRUCTION_SETS that it has."""
        return [name for name in INSTRUCTION_SETS if name in self.flags]

    @property
    def fast_int8(self) -> bool:
        """It multiplies INT8 in one step (VNNI or AMX)."""
        return not WIDE_SUMS.isdisjoint(self.flags)


def processor(root: Path = ROOT) -> Processor:
    """Read the processor; on a system without /proc/cpuinfo only what Python knows."""
    try:
        text = (root / "proc/cpuinfo").read_text(errors="replace")
    except OSError:
        count = os.cpu_count() or 1
        return Processor(platform.processor() or platform.machine(), count, count, frozenset())
    name, flags, cores, logical = "", frozenset[str](), set[tuple[str, str]](), 0
    for block in text.strip().split("\n\n"):
        fields = {key.strip(): value.strip() for key, _, value in (row.partition(":") for row in block.splitlines())}
        if "processor" not in fields:
            continue
        logical += 1
        name = name or fields.get("model name", "")
        flags = flags or frozenset(fields.get("flags", fields.get("Features", "")).split())
        # Virtual machines often leave out the topology: then each logical processor counts as a core.
        cores.add((fields.get("physical id", "0"), fields.get("core id", f"cpu{logical}")))
    return Processor(name or platform.machine(), logical or 1, len(cores) or 1, flags)


def memory_limit_bytes(root: Path = ROOT) -> int | None:
    """The tightest memory limit of this process's cgroup and those above it (v2, else v1); None without any."""
    sizes = [size for folder in _cgroup_folders(root) if (size := _memory_limit(folder)) is not None]
    return min(sizes, default=None)


def memory_total_bytes(root: Path = ROOT) -> int:
    """Physical memory; 0 where /proc/meminfo does not say."""
    try:
        for row in (root / "proc/meminfo").read_text().splitlines():
            if row.startswith("MemTotal:"):
                return int(row.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0


def filesystem_of(path: Path, root: Path = ROOT) -> str:
    """Type of the file system that holds `path` ("tmpfs", "ext4"); "" where /proc/mounts does not say."""
    best, kind = -1, ""
    try:
        rows = (root / "proc/mounts").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    target = path.absolute()
    for row in rows:
        parts = row.split()
        if len(parts) < 3:
            continue
        mount = Path(parts[1].replace("\\040", " "))
        if (target == mount or mount in target.parents) and len(mount.parts) >= best:
            best, kind = len(mount.parts), parts[2]
    return kind


def _cgroup_folders(root: Path) -> list[Path]:
    """This process's cgroup and all above it: the tightest limit on the way counts."""
    try:
        rows = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        rows = []
    base = root / "sys/fs/cgroup"
    folders = [base, base / "memory"]
    for row in rows:
        _, controllers, path = [*row.split(":", 2), "", ""][:3]
        steps = [step for step in path.split("/") if step not in ("", "..")]
        if not controllers or "memory" in controllers.split(","):
            top = base / "memory" if controllers else base
            folders += [top.joinpath(*steps[:depth]) for depth in range(1, len(steps) + 1)]
    return folders


def _memory_limit(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            text = (folder / name).read_text().strip()
        except OSError:
            continue
        # v1 writes "no limit" as a number near 2^63.
        if text.isdecimal() and int(text) < 1 << 60:
            return int(text)
    return None
