"""Claims on cores: disjoint between processes, back at once when a process dies, shared evenly when they run out."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from detector.claims import ClaimError, claim_cores
from detector.cores import Core, Topology, topology

EIGHT = Topology(tuple(Core(number, (number, number + 8)) for number in range(8)), None)
Worker = subprocess.Popen[str]


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Callable[[int], tuple[Worker, set[int], bool]]]:
    """Starts a real process that claims that many of eight cores and holds them; gives what it claimed."""
    started: list[Worker] = []

    def start(count: int) -> tuple[Worker, set[int], bool]:
        program = textwrap.dedent(
            f"""
            import sys
            import structlog
            from pathlib import Path
            from detector.claims import claim_cores
            from detector.cores import Core, Topology
            structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
            machine = Topology(tuple(Core(n, (n, n + 8)) for n in range(8)), None)
            claim = claim_cores(Path({str(tmp_path)!r}), {count}, machine=machine)
            print(*(core.number for core in claim.cores), claim.shared, flush=True)
            sys.stdin.read()
            """
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        started.append(process)
        assert process.stdout
        assert select.select([process.stdout], [], [], 60)[0], "the worker did not claim in time"
        *cores, shared = process.stdout.readline().split()
        return process, set(map(int, cores)), shared == "True"

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdin and process.stdout
        process.stdin.close()
        process.stdout.close()


def test_workers_have_disjoint_cores_and_a_killed_ones_are_free_again(
    worker: Callable[[int], tuple[Worker, set[int], bool]], tmp_path: Path
) -> None:
    first, first_cores, _ = worker(3)
    _, second_cores, shared = worker(3)
    assert (len(first_cores), len(second_cores), shared) == (3, 3, False)
    assert not first_cores & second_cores
    first.kill()
    first.wait()
    with claim_cores(tmp_path, 5, machine=EIGHT) as ours:
        assert {core.number for core in ours.cores} == set(range(8)) - second_cores
        assert not ours.shared


@pytest.fixture
def alternating(tmp_path: Path) -> Path:
    """The system folders of a host that numbers the cores of its two sockets by turns."""
    for node in (0, 1):
        folder = tmp_path / f"root/sys/devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(",".join(str(cpu) for cpu in range(node, 16, 2)))
    return tmp_path / "root"


def test_a_worker_has_its_cores_on_one_socket_while_one_has_enough(tmp_path: Path, alternating: Path) -> None:
    claims = [claim_cores(tmp_path, 3, machine=EIGHT, root=alternating) for _ in range(2)]
    assert [[core.number for core in claim.cores] for claim in claims] == [[0, 2, 4], [1, 3, 5]]
    with claim_cores(tmp_path, 2, machine=EIGHT, root=alternating) as rest:
        assert [core.number for core in rest.cores] == [6, 7] and not rest.shared, "two sockets rather than shared"
    claims[1].release()
    with claim_cores(tmp_path, 2, machine=EIGHT, root=alternating) as again:
        assert [core.number for core in again.cores] == [1, 3]
    claims[0].release()
    with claim_cores(tmp_path, 6, wait_s=30, machine=EIGHT, root=alternating) as large:
        assert [core.number for core in large.cores] == [0, 2, 4, 6, 1, 3], (
            "no socket is that large: nothing to wait for"
        )


def test_a_claim_waits_for_a_socket_about_to_be_free_before_it_takes_two(tmp_path: Path, alternating: Path) -> None:
    first, second = (claim_cores(tmp_path, 3, machine=EIGHT, root=alternating) for _ in range(2))
    timer = threading.Timer(0.3, first.release)
    timer.start()
    with claim_cores(tmp_path, 2, wait_s=30, machine=EIGHT, root=alternating) as patient:
        assert [core.number for core in patient.cores] == [0, 2]
    timer.join()
    second.release()


def test_when_cores_run_out_they_are_shared_evenly_and_it_is_said(tmp_path: Path) -> None:
    claims = [claim_cores(tmp_path, 3, machine=EIGHT) for _ in range(5)]  # 15 of 8: each once, seven twice
    assert [claim.shared for claim in claims] == [False, False, True, True, True]
    users = [sum(core in claim.cores for claim in claims) for core in EIGHT.cores]
    assert sorted(users) == [1, 2, 2, 2, 2, 2, 2, 2]
    assert all(len(set(claim.cores)) == 3 for claim in claims)
    for claim in claims:
        claim.release()
    with claim_cores(tmp_path, 8, machine=EIGHT) as everything:
        assert not everything.shared


def test_a_claim_waits_for_cores_about_to_be_free(
    worker: Callable[[int], tuple[Worker, set[int], bool]], tmp_path: Path
) -> None:
    holder, _, _ = worker(8)
    with claim_cores(tmp_path, 1, machine=EIGHT) as hurried:
        assert hurried.shared
    holder.kill()  # not waited for: it is dying while we claim
    with claim_cores(tmp_path, 8, wait_s=30, machine=EIGHT) as patient:
        assert not patient.shared


def test_claims_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for count in (0, 9):
        with pytest.raises(ClaimError, match="this process may use 8"):
            claim_cores(tmp_path, count, machine=EIGHT)
    (tmp_path / "file").touch()
    with pytest.raises(ClaimError, match="cannot claim cores"):
        claim_cores(tmp_path / "file", 1, machine=EIGHT)


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("keep me")
    folder = tmp_path / "claims"
    folder.mkdir()
    (folder / "core-0.0.lock").symlink_to(target)
    with pytest.raises(ClaimError):
        claim_cores(folder, 1, machine=EIGHT)
    assert target.read_text() == "keep me"


def test_pinning_holds_for_every_thread_and_those_to_come() -> None:
    """In a process of its own: pinning cannot be undone for threads of libraries."""
    program = textwrap.dedent(
        """
        import os, threading
        from detector.claims import CoreClaim
        from detector.cores import topology
        begin, seen = threading.Event(), []
        def look():
            begin.wait()
            seen.append(os.sched_getaffinity(0))
        before = threading.Thread(target=look)
        before.start()
        core = topology().cores[-1]
        CoreClaim((core,), False).pin()
        after = threading.Thread(target=look)
        after.start()
        begin.set()
        before.join(), after.join()
        assert seen == [set(core.cpus)] * 2, seen
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)
    assert topology().cores
