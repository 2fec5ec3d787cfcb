"""A process ends when told, with the right exit code, its last word written, and never a bare traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from services.process import EXIT_BUG, EXIT_UNUSABLE, REPORTS_KEPT_S, claim_report, report_path
from wire.health import Health, HealthError, read_health

PROGRAM = """
import sys
from pathlib import Path
from services.config import load
from services.process import LogOptions, run_process
from wire.redis_link import RedisAway

def work(config, stop, health):
    health.set("ok", answer=42)
    {body}

sys.exit(run_process("sink", load(Path(sys.argv[1]), {{}}), work, logs=LogOptions("info", "{style}")))
"""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(config_file: Path, environment: dict[str, str]) -> Start:
    def run(body: str, style: str = "console") -> subprocess.Popen[str]:
        program = PROGRAM.format(body=body, style=style)
        return subprocess.Popen(
            [sys.executable, "-c", program, str(config_file)], env=environment, stderr=subprocess.PIPE, text=True
        )

    return run


@pytest.fixture
def report(folder: Path) -> Path:
    return report_path(folder / "run" / "health", "sink", 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_it_in_order(
    start: Start, report: Path, wait_until: Callable[..., None], number: signal.Signals
) -> None:
    process = start("stop.wait()")

    def works() -> bool:
        try:
            return read_health(report).state == "ok"
        except HealthError:
            return False

    wait_until(works, 30)
    process.send_signal(number)
    _, words = process.communicate(timeout=20)
    assert process.returncode == 0, words
    last = read_health(report)
    assert (last.state, last.detail) == ("stopped", {"answer": 42})


def test_a_second_signal_ends_one_that_does_not_listen(
    start: Start, report: Path, wait_until: Callable[..., None]
) -> None:
    process = start("import time; time.sleep(60)")
    wait_until(lambda: report.exists() and read_health(report).state == "ok", 30)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)  # two signals at the same instant would be one
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode != 0


def test_an_error_of_ours_is_one_paragraph(start: Start, report: Path) -> None:
    process = start("raise RedisAway('redis://u:hunter22@h does not answer')")
    _, words = process.communicate(timeout=30)
    assert process.returncode == EXIT_UNUSABLE
    assert "sink cannot run: redis://u:***@h does not answer" in words
    assert "Traceback" not in words
    assert read_health(report).state == "failed"


@pytest.mark.parametrize("style", ["console", "json"])
def test_any_other_error_asks_to_be_reported_with_its_traceback(start: Start, style: str) -> None:
    process = start("raise KeyError('rtsp://u:hunter22@cam')", style)
    _, words = process.communicate(timeout=30)
    assert process.returncode == EXIT_BUG
    assert "please report it" in words
    assert "KeyError" in words
    assert "hunter22" not in words


def test_by_hand_each_process_of_a_role_takes_its_own_number(folder: Path) -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        _, index = claim_report(folder, "detector", None)
        assert index == 0
        taken = report_path(folder, "detector", 0)
        taken.write_text(taken.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {sleeper.pid}'))
        assert claim_report(folder, "detector", None)[1] == 1
    finally:
        sleeper.kill()
        sleeper.wait()
    assert claim_report(folder, "detector", None)[1] == 0, "a dead process's number is free"


def test_reports_of_processes_long_gone_are_removed(folder: Path) -> None:
    gone = folder / "detector-otherhost-0.json"
    Health(gone, "detector", monotonic_ns=lambda: time.monotonic_ns() - int((REPORTS_KEPT_S + 1) * 1e9))
    fresh = folder / "detector-otherhost-1.json"
    Health(fresh, "detector")
    claim_report(folder, "broker", 0)
    assert not gone.exists()
    assert fresh.exists()


def test_a_runtime_dir_of_a_stranger_is_refused_in_words(folder: Path, start: Start) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can make a folder of another user")
    (folder / "run").mkdir(mode=0o777)
    os.chown(folder / "run", 12345, 12345)
    process = start("pass")
    _, words = process.communicate(timeout=30)
    assert process.returncode == EXIT_UNUSABLE
    assert "belongs to user 12345" in words
    assert "Traceback" not in words
