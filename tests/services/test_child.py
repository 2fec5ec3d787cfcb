"""A child is restarted with back-off, left alone when it said it cannot run, killed when it hangs or will not stop."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.child import FIRST_BACKOFF_S, HUNG_AFTER_S, LONGEST_BACKOFF_S, Child, ChildSpec, relay_to, stop_all
from services.process import EXIT_UNUSABLE
from wire.health import Health

Wait = Callable[..., None]
SLEEPS = "import time; time.sleep(60)"


class Clock:
    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


class Nursery:
    """Makes children of small programs and remembers them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = Clock()
        self.lines: list[str] = []
        self.children: list[Child] = []

    def child(self, program: str) -> Child:
        spec = ChildSpec("child-0", (sys.executable, "-c", program), self.folder / "report.json")
        child = Child(spec, lambda _, line: self.lines.append(line), self.clock)
        self.children.append(child)
        child.start()
        return child


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    made = Nursery(tmp_path)
    yield made
    for child in made.children:
        child.kill()


def ends(child: Child, wait_until: Wait) -> None:
    wait_until(lambda: child.pid is None)
    child.tick()


def test_a_killed_child_is_started_again_and_counted(nursery: Nursery, wait_until: Wait) -> None:
    child = nursery.child(SLEEPS)
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    ends(child, wait_until)
    assert (child.fate, child.restarts) == ("waiting", 1)
    child.tick()
    assert child.pid is None, "it must wait for the back-off"
    nursery.clock.ahead_s += FIRST_BACKOFF_S
    child.tick()
    assert child.pid not in (None, first)


def test_the_backoff_doubles_to_its_cap_and_starts_again_after_a_healthy_minute(
    nursery: Nursery, wait_until: Wait
) -> None:
    child = nursery.child("raise SystemExit(1)")
    waits = []
    for _ in range(9):
        ends(child, wait_until)
        start_at = child._start_at_s
        waits.append(start_at - nursery.clock())
        nursery.clock.ahead_s += LONGEST_BACKOFF_S
        child.tick()
    assert waits[:3] == pytest.approx([0.25, 0.5, 1.0], abs=0.2)
    assert waits[-1] == pytest.approx(LONGEST_BACKOFF_S, abs=0.2)
    nursery.clock.ahead_s += 61
    ends(child, wait_until)
    assert child._start_at_s - nursery.clock() == pytest.approx(FIRST_BACKOFF_S, abs=0.2)


def test_a_child_that_somebody_else_told_to_stop_is_started_again(nursery: Nursery, wait_until: Wait) -> None:
    """A killer of processes sends SIGTERM first, and ours then end with code 0."""
    child = nursery.child("pass")
    ends(child, wait_until)
    assert (child.fate, child.restarts, child.pid) == ("waiting", 1, None)
    nursery.clock.ahead_s += 1000
    child.tick()
    assert child.fate == "running"
    child.terminate()
    assert child.wait(nursery.clock() + 10)
    child.tick()
    assert (child.fate, child.restarts) == ("stopped", 1)


def test_what_cannot_run_at_first_start_is_for_a_person_and_later_is_tried_again(
    nursery: Nursery, wait_until: Wait
) -> None:
    never = nursery.child(f"raise SystemExit({EXIT_UNUSABLE})")
    ends(never, wait_until)
    assert (never.fate, never.exit_code) == ("unusable", EXIT_UNUSABLE)
    later = nursery.child(f"raise SystemExit({EXIT_UNUSABLE})")
    later.restarts = 1
    ends(later, wait_until)
    assert later.fate == "waiting"


def test_what_worked_before_it_could_not_go_on_is_tried_again(nursery: Nursery, wait_until: Wait) -> None:
    """Ingest ends so when too many readers hang."""
    child = nursery.child(
        f"""
import sys, time
from pathlib import Path
sys.path[:0] = [{str(Path(__file__).parents[2])!r}]
from wire.health import Health
Health(Path({str(nursery.folder / "report.json")!r}), "child").set("ok")
while not Path({str(nursery.folder / "end")!r}).exists():
    time.sleep(0.01)
raise SystemExit({EXIT_UNUSABLE})
"""
    )

    def works() -> bool:
        child.tick()
        return child._worked

    wait_until(works)
    (nursery.folder / "end").touch()
    ends(child, wait_until)
    assert (child.fate, child.restarts) == ("waiting", 1)


def silent_for_long(nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> tuple[Child, int, Health]:
    """A child with its pid, and its report: last renewed long ago, whatever is said in it."""
    child = nursery.child(SLEEPS)
    pid = child.pid
    assert pid is not None
    monkeypatch.setattr(os, "getpid", lambda: pid)
    long_ago = time.monotonic_ns() - int((HUNG_AFTER_S + 5) * 1e9)
    report = Health(child.spec.report, "child", monotonic_ns=lambda: long_ago)
    nursery.clock.ahead_s += HUNG_AFTER_S + 1
    return child, pid, report


def test_a_child_whose_report_went_stale_is_killed(
    nursery: Nursery, wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    child, pid, report = silent_for_long(nursery, monkeypatch)
    child.tick()
    assert child.pid == pid, "one that is still starting may compile for long"
    report.set("ok")
    child.tick()
    ends(child, wait_until)
    assert child.restarts == 1


def test_on_a_full_disk_nobody_is_taken_for_hung(
    nursery: Nursery, wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    child, pid, report = silent_for_long(nursery, monkeypatch)
    report.set("ok")
    with monkeypatch.context() as on_a_full_disk:
        on_a_full_disk.setattr(tempfile, "TemporaryFile", lambda **_: Path("/dev/full").open("wb", buffering=0))  # noqa: SIM115  # the caller closes it
        child.tick()
    assert child.pid == pid
    child.tick()
    assert child.pid == pid, "its report may be renewed now, and is not yet"
    nursery.clock.ahead_s += HUNG_AFTER_S + 1
    child.tick()
    wait_until(lambda: child.pid is None)


def test_one_that_will_not_stop_is_killed_in_time(nursery: Nursery, wait_until: Wait) -> None:
    stubborn = nursery.child(
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    wait_until(lambda: nursery.lines == ["up"])
    begun = time.monotonic()
    stop_all([stubborn], begun + 0.5)
    assert 0.4 < time.monotonic() - begun < 3
    assert stubborn.pid is None
    nursery.clock.ahead_s += 1000
    stubborn.tick()
    assert (stubborn.pid, stubborn.fate) == (None, "stopped"), "it must not come back"


def test_its_last_words_are_passed_on(nursery: Nursery, wait_until: Wait) -> None:
    child = nursery.child("import sys; print('one'); print('two', file=sys.stderr); sys.stdout.flush(); sys.exit(3)")
    ends(child, wait_until)
    assert child.wait(time.monotonic() + 5)
    assert sorted(nursery.lines) == ["one", "two"]


def test_lines_for_a_person_are_prefixed_and_hold_no_password() -> None:
    out = io.StringIO()
    relay_to(out, "console", 10)("ingest-0", "opening rtsp://u:hunter22@cam/1")
    assert out.getvalue() == "ingest-0   | opening rtsp://u:***@cam/1\n"


def test_lines_for_a_machine_are_all_json() -> None:
    out = io.StringIO()
    relay = relay_to(out, "json", 10)
    relay("ingest-0", '{"event": "up"}')
    relay("ingest-0", "terminate called after throwing")
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert lines == [{"event": "up"}, {"event": "terminate called after throwing", "process": "ingest-0"}]
