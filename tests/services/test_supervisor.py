"""`up` keeps real processes running, stops them in time, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import msgspec
import psutil
import pytest

from services.config import load
from services.process import EXIT_UNUSABLE, LogOptions, claim_report, report_path
from services.supervisor import STOP_BUDGET_S, Supervisor, refuse_second
from wire.health import HealthError, read_health

Wait = Callable[..., None]
SLACK_S = 2.0  # for a busy machine, beyond the promised time


@pytest.fixture
def supervisor(config_file: Path) -> Iterator[Supervisor]:
    with (config_file.parent / "log").open("w") as log:
        made = Supervisor(
            load(config_file, {}), config_file, workers=0, roles=("broker", "sink"), logs=LogOptions(), output=log
        )
        yield made
        made.stop()


@pytest.fixture
def up(config_file: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "services.cli", "up", "--config", str(config_file)]
    with (config_file.parent / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    yield process
    family = family_of(process.pid)
    process.kill()
    process.wait()
    for one in family:
        if one.is_running():
            one.kill()


def family_of(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def gone(processes: list[psutil.Process]) -> bool:
    return not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes)


def reports(folder: Path) -> int:
    """How many processes have said that they run."""
    count = 0
    for path in (folder / "run" / "health").glob("*.json"):
        try:
            report = read_health(path)
        except HealthError:
            continue
        count += report.role != "up" and report.state in ("ok", "degraded")
    return count


def test_a_killed_process_comes_back_and_the_others_go_on(
    supervisor: Supervisor, folder: Path, wait_until: Wait
) -> None:
    def ready() -> bool:
        supervisor.tick()
        return reports(folder) == 2

    supervisor.start()
    wait_until(ready, 40)
    broker, sink = supervisor.children
    before = broker.pid, sink.pid
    assert before[0] is not None
    os.kill(before[0], signal.SIGKILL)

    def back() -> bool:
        supervisor.tick()
        return broker.pid not in (None, before[0])

    wait_until(back)
    assert sink.pid == before[1]
    assert supervisor.restarts == {"broker-0": 1, "sink-0": 0}
    wait_until(ready, 40)
    begun = time.monotonic()
    supervisor.stop()
    assert time.monotonic() - begun < STOP_BUDGET_S + SLACK_S
    assert (broker.pid, sink.pid) == (None, None)


def test_a_valkey_that_was_killed_comes_back(supervisor: Supervisor, folder: Path, wait_until: Wait) -> None:
    supervisor.start()
    # This site's own: the test process may have another, which other tests share.
    ours = [one for one in family_of(os.getpid()) if "valkey" in one.name() and str(folder) in " ".join(one.cmdline())]
    (valkey,) = ours
    valkey.kill()
    wait_until(lambda: gone([valkey]))

    def back() -> bool:
        supervisor.tick()
        return any("valkey" in one.name() and one.pid != valkey.pid for one in family_of(os.getpid()))

    wait_until(back)


def test_sigterm_stops_everything_in_time_with_exit_code_0(
    up: subprocess.Popen[bytes], folder: Path, wait_until: Wait
) -> None:
    wait_until(lambda: reports(folder) >= 2, 60)
    family = family_of(up.pid)
    assert len(family) >= 4  # broker, ingest, sink, valkey
    begun = time.monotonic()
    up.send_signal(signal.SIGTERM)
    assert up.wait(timeout=20) == 0
    assert time.monotonic() - begun < STOP_BUDGET_S + SLACK_S
    assert gone(family)


def test_a_second_one_in_the_same_folder_is_told_of_the_first_and_leaves_it_alone(
    up: subprocess.Popen[bytes],
    folder: Path,
    config_file: Path,
    wait_until: Wait,
    sparsecam: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    wait_until(lambda: reports(folder) >= 1, 60)
    begun = f"{datetime.fromtimestamp(psutil.Process(up.pid).create_time()):%Y-%m-%d %H:%M:%S}"
    done = sparsecam("up", "--config", str(config_file))
    assert done.returncode == EXIT_UNUSABLE
    assert f"Sparsecam already runs here: process {up.pid} since {begun}, in {folder}/run." in done.stderr
    assert "`runtime_dir:` in the config or SPARSECAM__RUNTIME_DIR" in done.stderr
    assert read_health(next((folder / "run" / "health").glob("up-*.json"))).pid == up.pid
    assert up.poll() is None


def test_what_a_killed_one_left_behind_refuses_nobody(config_file: Path, folder: Path) -> None:
    config = load(config_file, {})
    claim_report(config.health_dir, "up", 0)
    path = report_path(config.health_dir, "up", 0)
    left = read_health(path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        # Its number is given to a stranger, who is younger than the report.
        ago_ns = left.written_ns - 5 * 10**9
        path.write_bytes(msgspec.json.encode(msgspec.structs.replace(left, pid=stranger.pid, written_ns=ago_ns)))
        refuse_second(config)
        stranger.communicate(b"\n")
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(left, pid=stranger.pid)))
    refuse_second(config)


def test_kill_9_of_the_supervisor_leaves_nothing_behind(
    up: subprocess.Popen[bytes], folder: Path, wait_until: Wait
) -> None:
    wait_until(lambda: reports(folder) >= 1 and len(family_of(up.pid)) >= 4, 60)
    family = family_of(up.pid)
    up.kill()
    up.wait()
    wait_until(lambda: gone(family), 10)


def test_a_process_that_cannot_run_as_configured_ends_up_with_its_reason(
    config_file: Path, sparsecam: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    with config_file.open("a") as file:
        file.write("detector: {model: not-there.onnx, workers: 1}\n")
    done = sparsecam("up", "--config", str(config_file))
    assert done.returncode == EXIT_UNUSABLE
    assert "not-there.onnx" in done.stderr
    assert "Traceback" not in done.stderr
