"""A health report is whole, fresh or stale, and never written more than it must be."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.health import STALE_AFTER_S, Health, HealthError, HealthReport, read_health


class Clock:
    def __init__(self) -> None:
        self.ns = 1_000_000_000_000

    def __call__(self) -> int:
        return self.ns

    def pass_s(self, seconds: float) -> None:
        self.ns += int(seconds * 1e9)


def test_a_new_process_is_starting_and_says_who_it_is(tmp_path: Path) -> None:
    Health(tmp_path / "health" / "ingest.json", "ingest")
    report = read_health(tmp_path / "health" / "ingest.json")
    assert (report.role, report.state, report.stale(), report.healthy()) == (
        "ingest",
        "starting",
        False,
        False,
    )


def test_a_change_of_state_is_written_at_once_and_facts_once_a_second(tmp_path: Path) -> None:
    path, clock = tmp_path / "h.json", Clock()
    health = Health(path, "broker", monotonic_ns=clock)
    health.set("ok", frames=1)
    assert read_health(path).detail == {"frames": 1}
    clock.pass_s(0.5)
    health.set("ok", frames=2)
    assert read_health(path).detail == {"frames": 1}
    clock.pass_s(0.6)
    health.set("ok", frames=3)
    assert read_health(path).detail == {"frames": 3}
    health.set("degraded", frames=4)
    assert (read_health(path).state, read_health(path).detail) == ("degraded", {"frames": 4})


def test_beats_keep_a_report_fresh_and_silence_makes_it_stale(tmp_path: Path) -> None:
    path, clock = tmp_path / "h.json", Clock()
    health = Health(path, "sink", monotonic_ns=clock)
    health.set("ok")
    for _ in range(20):
        clock.pass_s(1.0)
        health.beat()
    assert read_health(path).healthy(clock.ns)
    clock.pass_s(STALE_AFTER_S + 1)
    assert read_health(path).stale(clock.ns)
    assert not read_health(path).healthy(clock.ns)


def test_a_report_from_before_the_last_boot_is_stale() -> None:
    report = HealthReport("sink", "host", 1, "ok", written_ns=10**15)
    assert report.stale(now_ns=10**9)


def test_the_last_word_keeps_the_totals(tmp_path: Path) -> None:
    path = tmp_path / "h.json"
    health = Health(path, "ingest")
    health.set("ok", captured=1)
    health.set("ok", captured=7, cameras={"door": {"captured": 7}})
    health.close()
    report = read_health(path)
    assert report.state == "stopped"
    assert report.detail == {"captured": 7, "cameras": {"door": {"captured": 7}}}
    assert [entry.name for entry in tmp_path.iterdir()] == ["h.json"]


def test_a_reader_never_sees_half_a_report(tmp_path: Path) -> None:
    path = tmp_path / "h.json"
    clock = Clock()
    health = Health(path, "ingest", monotonic_ns=clock)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            clock.pass_s(1.1)
            health.set("ok", filling="x" * 10_000)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            read_health(path)
    finally:
        stop.set()
        writer.join()


def test_a_vanished_folder_does_not_stop_the_process(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "h.json"
    health = Health(path, "ingest")
    path.unlink()
    path.parent.rmdir()
    health.set("ok")
    with pytest.raises(HealthError, match="is the process running"):
        read_health(path)


def test_a_folder_that_cannot_be_written_any_more_does_not_stop_the_process(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    health = Health(folder / "h.json", "ingest")
    (folder / "h.json").unlink()
    folder.rmdir()
    folder.write_text("")  # so that writing fails and removing as well, as on a disk that was remounted read-only
    health.set("ok")
    health.close()


def test_null_writes_nowhere() -> None:
    Health.null().set("ok", frames=1)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_report_or_a_clear_error(tmp_path_factory: pytest.TempPathFactory, payload: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(payload)
    with pytest.raises(HealthError, match="not a health report"):
        read_health(path)


def test_the_file_is_plain_json_for_other_tools(tmp_path: Path) -> None:
    path = tmp_path / "h.json"
    Health(path, "ingest").set("ok", captured=3)
    assert json.loads(path.read_text())["detail"]["captured"] == 3
