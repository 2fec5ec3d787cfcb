"""What this CPU makes of products of bytes."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

# As /proc/cpuinfo calls the instructions that add up products of bytes in 32 bits.
WIDE_SUMS = frozenset({"avx_vnni", "avx512_vnni", "amx_int8"})


@cache
def saturates() -> bool:
    """Whether this CPU adds them up in 16 bits, as x86 does without VNNI: see `detector.prepare.saturation`."""
    try:
        return saturating(platform.machine(), Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return saturating(platform.machine(), "")


def saturating(machine: str, cpuinfo: str) -> bool:
    """The same of an architecture as `platform.machine` calls it, and what /proc/cpuinfo says; an x86 of which it says
    nothing: yes."""
    if machine.lower() not in ("x86_64", "amd64", "i686"):
        return False
    flags = next((line.partition(":")[2].split() for line in cpuinfo.splitlines() if line.startswith("flags")), [])
    return WIDE_SUMS.isdisjoint(flags)
