"""What `doctor` says of a machine is what its files say."""

from __future__ import annotations

from pathlib import Path

from services.machine import filesystem_of, memory_limit_bytes, memory_total_bytes, processor

CPUINFO = """\
processor\t: 0
model name\t: Some CPU @ 2 GHz
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse avx2 avx512f avx512_vnni amx_int8

processor\t: 1
model name\t: Some CPU @ 2 GHz
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse avx2

processor\t: 2
model name\t: Some CPU @ 2 GHz
physical id\t: 0
core id\t\t: 1
flags\t\t: fpu sse avx2
"""


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_processor_is_read(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", CPUINFO)
    cpu = processor(tmp_path)
    assert (cpu.name, cpu.logical, cpu.physical, cpu.fast_int8) == ("Some CPU @ 2 GHz", 3, 2, True)
    assert cpu.instruction_sets == ["avx2", "avx512f", "avx512_vnni", "amx_int8"]


def test_a_virtual_machine_without_topology_counts_each_processor(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", "processor : 0\n\nprocessor : 1\n")
    cpu = processor(tmp_path)
    assert (cpu.logical, cpu.physical, cpu.instruction_sets, cpu.fast_int8) == (2, 2, [], False)


def test_a_system_without_proc_still_has_a_processor(tmp_path: Path) -> None:
    assert processor(tmp_path).logical >= 1
    assert memory_total_bytes(tmp_path) == 0
    assert memory_limit_bytes(tmp_path) is None
    assert filesystem_of(tmp_path, tmp_path) == ""


def test_the_tightest_memory_limit_on_the_way_counts(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/a/b\n")
    write(tmp_path, "sys/fs/cgroup/a/memory.max", "1000\n")
    write(tmp_path, "sys/fs/cgroup/a/b/memory.max", "max\n")
    assert memory_limit_bytes(tmp_path) == 1000


def test_version_1_limits_are_read_and_its_no_limit_is_none(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "5:memory:/x\n4:cpu,cpuacct:/x\n")
    write(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert memory_limit_bytes(tmp_path) is None
    write(tmp_path, "sys/fs/cgroup/memory/x/memory.limit_in_bytes", "4096\n")
    assert memory_limit_bytes(tmp_path) == 4096


def test_the_deepest_mount_names_the_file_system(tmp_path: Path) -> None:
    write(tmp_path, "proc/mounts", "d / ext4 rw 0 0\nt /run tmpfs rw 0 0\nx /run/a\\040b xfs rw 0 0\nbad\n")
    assert filesystem_of(Path("/run/sparsecam"), tmp_path) == "tmpfs"
    assert filesystem_of(Path("/run/a b/c"), tmp_path) == "xfs"
    assert filesystem_of(Path("/var"), tmp_path) == "ext4"


def test_memory_is_bytes(tmp_path: Path) -> None:
    write(tmp_path, "proc/meminfo", "MemTotal:       2048 kB\n")
    assert memory_total_bytes(tmp_path) == 2048 * 1024
