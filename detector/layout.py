"""Which cores belong together, sharing an L3 cache on one NUMA node, and the worker sizes worth a trial."""

from __future__ import annotations

from pathlib import Path

from detector.cores import Core, Topology, parse_cpu_list


def core_groups(machine: Topology, root: Path = Path("/")) -> list[tuple[Core, ...]]:
    """The usable cores by shared L3 cache and NUMA node, largest group first.

    A worker whose cores lie in two groups moves its data between caches at every layer. Where the system does not tell
    (some virtual machines) all cores are one group.
    """
    nodes = _nodes(root)
    groups: dict[tuple[int, int], list[Core]] = {}
    for core in machine.cores:
        cpu = core.cpus[0]
        groups.setdefault((nodes.get(cpu, 0), _l3_of(root, cpu)), []).append(core)
    return sorted((tuple(group) for group in groups.values()), key=len, reverse=True)


def placement_order(machine: Topology, size: int, root: Path = Path("/")) -> list[Core]:
    """The cores as workers of `size` take them one after the other: as many as fit into each group, then the rest."""
    whole: list[Core] = []
    rest: list[Core] = []
    for group in core_groups(machine, root):
        fitting = len(group) // size * size
        whole += group[:fitting]
        rest += group[fitting:]
    return whole + rest


def worker_sizes(machine: Topology, root: Path = Path("/")) -> list[int]:
    """Cores a worker may have: powers of two up to the largest group, and that group whole, as far as usable."""
    largest = min(len(core_groups(machine, root)[0]), machine.usable)
    sizes = {largest}
    size = 1
    while size < largest:
        sizes.add(size)
        size *= 2
    return sorted(sizes)


def _l3_of(root: Path, cpu: int) -> int:
    """The lowest CPU that shares this one's L3 cache; 0 where the system does not tell."""
    try:
        text = (root / f"sys/devices/system/cpu/cpu{cpu}/cache/index3/shared_cpu_list").read_text(encoding="ascii")
        return min(parse_cpu_list(text))
    except (OSError, ValueError):
        return 0


def _nodes(root: Path) -> dict[int, int]:
    """NUMA node by CPU."""
    found: dict[int, int] = {}
    for folder in (root / "sys/devices/system/node").glob("node[0-9]*"):
        try:
            cpus = parse_cpu_list((folder / "cpulist").read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue  # a node of memory alone has an empty list
        found.update(dict.fromkeys(cpus, int(folder.name.removeprefix("node"))))
    return found
