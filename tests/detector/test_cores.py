"""Cores and quotas are read as the kernel writes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.cores import Core, Topology, parse_cpu_list, quota_cores, topology, worker_count


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_machine_has_the_cores_the_kernel_lets_us_use() -> None:
    machine = topology()
    assert {cpu for core in machine.cores for cpu in core.cpus} == os.sched_getaffinity(0)
    assert 1 <= machine.usable <= len(machine.cores)


def test_threads_of_one_core_are_one_core_and_its_number_is_the_hosts(tmp_path: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    # Every CPU we may use is the second thread of a core whose first (CPU 1000 + n) belongs to somebody else.
    files = {f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": f"{cpu},{1000 + cpu}\n" for cpu in cpus}
    assert topology(write(tmp_path, files)).cores == tuple(Core(cpu, (cpu,)) for cpu in cpus)
    together = ",".join(map(str, cpus))
    files = {f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list": together for cpu in cpus}
    assert topology(write(tmp_path, files)).cores == (Core(cpus[0], tuple(cpus)),)


def test_a_machine_that_tells_no_topology_has_a_core_a_cpu(tmp_path: Path) -> None:
    assert len(topology(tmp_path).cores) == len(os.sched_getaffinity(0))


@given(st.sets(st.integers(0, 500), min_size=1))
def test_cpu_lists_are_read_as_written(cpus: set[int]) -> None:
    parts, ordered = [], sorted(cpus)
    while ordered:
        run = 1
        while run < len(ordered) and ordered[run] == ordered[0] + run:
            run += 1
        parts.append(f"{ordered[0]}-{ordered[run - 1]}" if run > 1 else str(ordered[0]))
        ordered = ordered[run:]
    assert parse_cpu_list(",".join(parts) + "\n") == tuple(sorted(cpus))


@pytest.mark.parametrize("text", ["1-0", "0,3-2", "", "-1", "a"])
def test_a_list_without_cpus_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_cpu_list(text)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, None),
        (  # the parent's is tighter
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000",
                "sys/fs/cgroup/a/cpu.max": "200000 100000",
            },
            2.0,
        ),
        # In a container the mount is the group itself, and the path is the host's.
        ({"proc/self/cgroup": "0::/../other\n", "sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/docker/1\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({"proc/self/cgroup": "0::/\nnonsense\n", "sys/fs/cgroup/cpu.max": "what\n"}, None),
    ],
)
def test_the_tightest_quota_counts(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    assert quota_cores(write(tmp_path, files)) == quota


def test_a_quota_below_one_core_is_no_whole_core_though_one_worker_runs() -> None:
    cores = tuple(Core(number, (number,)) for number in range(4))
    found = {quota: (Topology(cores, quota).usable, Topology(cores, quota).capacity) for quota in (None, 0.1, 2.5, 9.0)}
    assert found == {None: (4, 4), 0.1: (1, 0.1), 2.5: (2, 2.5), 9.0: (4, 4)}


def test_workers_fit_cores_and_quota() -> None:
    cores = tuple(Core(number, (number,)) for number in range(8))
    assert worker_count("auto", 1, Topology(cores, None)) == 8
    assert worker_count("auto", 2, Topology(cores, None)) == 4
    assert worker_count("auto", 3, Topology(cores, 2.5)) == 1
    assert worker_count("auto", 1, Topology(cores, 0.2)) == 1
    assert worker_count(5, 2, Topology(cores, None)) == 5
