"""`up` keeps real processes running, stops them in time, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from services.config import load
from services.process import EXIT_UNUSABLE, LogOptions
from services.supervisor import STOP_BUDGET_S, Supervisor
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
