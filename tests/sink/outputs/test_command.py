"""The command output: the program gets the alert, no shell, a time limit, and none of our secrets."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from sink.outputs.command import Command
from sink.outputs.delivery import Failed, Unreachable
from sink.outputs.settings import CommandSettings
from wire.alerts import Alert, to_json

Make = Callable[..., Alert]


def run(alert: Alert, *argv: str, timeout_s: float = 10) -> None:
    Command(CommandSettings(kind="command", argv=list(argv), timeout_s=timeout_s)).deliver(alert, to_json(alert))


def python(program: str) -> tuple[str, str, str]:
    return sys.executable, "-c", program


def test_the_program_gets_the_alert_on_its_standard_input(
    tmp_path: Path, make_alert: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSECAM__REDIS__URL", "redis://:hunter22@h")
    alert = make_alert(1, text="x" * 300_000)  # more than a pipe holds
    program = "import sys,json,os; json.dump([sys.stdin.read(), dict(os.environ)], open(sys.argv[1], 'w'))"
    run(alert, *python(program), str(tmp_path / "got"))
    text, environment = json.loads((tmp_path / "got").read_text())
    assert text.encode() == to_json(alert)
    assert environment["SPARSECAM_ALERT_ID"] == alert.id
    assert environment["SPARSECAM_CAMERA"] == "door"
    assert "hunter22" not in str(environment)


def test_no_shell_reads_the_arguments(tmp_path: Path, make_alert: Make) -> None:
    run(
        make_alert(1), *python("import sys; open(sys.argv[1], 'w').write(sys.argv[2])"), str(tmp_path / "a"), "$(id); *"
    )
    assert (tmp_path / "a").read_text() == "$(id); *"


def test_a_program_that_reads_nothing_is_fine(make_alert: Make) -> None:
    run(make_alert(1, text="x" * 300_000), "true")


def test_its_failure_is_told_with_the_end_of_what_it_printed(make_alert: Make) -> None:
    with pytest.raises(Failed, match=r"ended with 3: .*the reason") as caught:
        run(
            make_alert(1),
            *python("import sys; print('x' * 50_000_000); print('the reason', file=sys.stderr); sys.exit(3)"),
        )
    assert len(str(caught.value)) < 700


def test_one_that_runs_too_long_is_killed_with_its_children(tmp_path: Path, make_alert: Make, wait_until: Any) -> None:
    program = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "open(sys.argv[1], 'w').write(str(child.pid)); time.sleep(60)"
    )
    begun = time.monotonic()
    with pytest.raises(Failed, match=r"did not end in 1\.5 s"):
        run(make_alert(1), *python(program), str(tmp_path / "pid"), timeout_s=1.5)
    assert time.monotonic() - begun < 4
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_one_that_leaves_a_child_behind_holds_nothing_up(make_alert: Make) -> None:
    begun = time.monotonic()
    run(make_alert(1), "sh", "-c", "sleep 5 & exit 0")
    assert time.monotonic() - begun < 3


def test_one_that_leaves_a_talking_child_behind_holds_nothing_up(make_alert: Make) -> None:
    begun = time.monotonic()
    run(make_alert(1), "sh", "-c", "(for _ in $(seq 500); do echo still here; sleep 0.01; done) & exit 0")
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize("program", ["/nowhere/program", "/etc/passwd", "a\0b"])
def test_one_that_cannot_be_started_makes_all_wait(make_alert: Make, program: str) -> None:
    with pytest.raises(Unreachable, match="cannot be started"):
        run(make_alert(1), program)
