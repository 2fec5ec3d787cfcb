"""Cores that share a cache are found, and no worker is planned larger than such a group."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from detector.cores import Core, Topology
from detector.layout import core_groups, placement_order, worker_sizes


def machine(cores: int, quota: float | None = None) -> Topology:
    return Topology(tuple(Core(number, (number,)) for number in range(cores)), quota)


def l3(root: Path, cpu: int, shared: str) -> None:
    folder = root / f"sys/devices/system/cpu/cpu{cpu}/cache/index3"
    folder.mkdir(parents=True)
    (folder / "shared_cpu_list").write_text(shared + "\n")


def test_cores_are_grouped_by_their_l3_cache(tmp_path: Path) -> None:
    for cpu in range(8):
        l3(tmp_path, cpu, "0-5" if cpu < 6 else "6-7")
    assert [[core.number for core in group] for group in core_groups(machine(8), tmp_path)] == [
        [0, 1, 2, 3, 4, 5],
        [6, 7],
    ]
    assert worker_sizes(machine(8), tmp_path) == [1, 2, 4, 6]


def test_two_numa_nodes_are_two_groups_even_where_caches_are_not_told(tmp_path: Path) -> None:
    for node, cpus in ((0, "0-1"), (1, "2-3")):
        folder = tmp_path / f"sys/devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(cpus)
    assert [len(group) for group in core_groups(machine(4), tmp_path)] == [2, 2]


def test_workers_are_placed_in_whole_groups_before_what_is_left_of_them(tmp_path: Path) -> None:
    for cpu in range(10):
        l3(tmp_path, cpu, "0,2,4,6,8" if cpu % 2 == 0 else "1,3,5,7,9")
    order = {size: [core.number for core in placement_order(machine(10), size, tmp_path)] for size in (1, 2, 6)}
    assert order[1] == [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]
    assert order[2] == [0, 2, 4, 6, 1, 3, 5, 7, 8, 9]
    assert sorted(order[6]) == list(range(10))


def test_without_any_word_from_the_system_all_cores_are_one_group(tmp_path: Path) -> None:
    assert len(core_groups(machine(6), tmp_path)) == 1
    assert worker_sizes(machine(6, quota=3.5), tmp_path) == [1, 2, 3]


@given(st.integers(1, 300))
def test_sizes_rise_from_one_to_all_that_are_usable(cores: int) -> None:
    sizes = worker_sizes(machine(cores), Path("/nonexistent"))
    assert sizes[0] == 1 and sizes[-1] == cores and sizes == sorted(set(sizes))
