"""The disk output: whole lines, pictures beside them, and a disk that fails makes alerts wait and nothing else."""

from __future__ import annotations

import json
import resource
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sink.outputs.delivery import Unreachable
from sink.outputs.disk import Disk
from sink.outputs.settings import DiskSettings
from wire.alerts import Alert, to_json
from wire.valkey import EmbeddedValkey

Make = Callable[..., Alert]


def disk(folder: Path, **changes: Any) -> Disk:
    return Disk(settings(folder, **changes))


def settings(folder: Path, **changes: Any) -> DiskSettings:
    return DiskSettings(kind="disk", folder=folder, **{"retry_first_s": 0.02, "retry_most_s": 0.05, **changes})


def deliver(one: Disk, alert: Alert) -> None:
    one.deliver(alert, to_json(alert))


def lines(folder: Path) -> list[Any]:
    return [json.loads(row) for path in sorted(folder.glob("*.jsonl")) for row in path.read_text().splitlines()]


def test_each_alert_is_a_line_in_the_file_of_its_day(tmp_path: Path, make_alert: Make) -> None:
    one = disk(tmp_path / "new" / "folder")
    deliver(one, make_alert(1))
    deliver(one, make_alert(2, event_time="2023-11-15T00:00:00.000000Z"))
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "alerts-2023-11-14.jsonl",
        "alerts-2023-11-15.jsonl",
    ]
    assert [row["seq"] for row in lines(tmp_path / "new" / "folder")] == [1, 2]


def test_a_line_that_a_crash_cut_short_spoils_no_other(tmp_path: Path, make_alert: Make) -> None:
    path = tmp_path / "alerts-2023-11-14.jsonl"
    path.write_bytes(b'{"half": ')
    deliver(disk(tmp_path), make_alert(1))
    half, whole = path.read_text().splitlines()
    assert half == '{"half": '
    assert json.loads(whole)["seq"] == 1


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, make_alert: Make) -> None:
    """The limit on a file's size stands for the disk's end: the write really breaks off in the middle."""
    one = disk(tmp_path)
    deliver(one, make_alert(1))
    path = tmp_path / "alerts-2023-11-14.jsonl"
    whole = path.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, before[1]))
    try:
        with pytest.raises(Unreachable, match="too large"):
            deliver(one, make_alert(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == whole
    deliver(one, make_alert(2))
    assert [row["seq"] for row in lines(tmp_path)] == [1, 2]


def test_an_unwritable_folder_holds_the_alerts_until_it_is_mended(
    tmp_path: Path, valkey: EmbeddedValkey, start: Any, publish: Any, make_alert: Make, wait_until: Any
) -> None:
    folder = tmp_path / "folder"
    folder.write_text("a file where the folder should be")  # unlike a folder's mode, it stops root too
    one = settings(folder)
    running = start("disk", one, Disk(one), valkey.url)
    publish(valkey.url, *(make_alert(seq) for seq in range(10)))
    wait_until(lambda: running.runner.counts().failures >= 2)
    folder.unlink()
    wait_until(lambda: running.runner.counts().delivered == 10)
    assert [row["seq"] for row in lines(folder)] == list(range(10))


class TestPictures:
    LINK = "https://cam.example/media/door/2023-11-14/incident-1.jpg"

    def test_are_copied_when_they_are_written_later(self, tmp_path: Path, make_alert: Make) -> None:
        source = tmp_path / "media" / "door" / "2023-11-14" / "incident-1.jpg"
        source.parent.mkdir(parents=True)
        writer = threading.Timer(0.2, source.write_bytes, [b"jpeg"])
        writer.start()
        deliver(disk(tmp_path / "out", snapshots_from=tmp_path / "media"), make_alert(1, snapshot=self.LINK))
        writer.join()
        assert (tmp_path / "out" / "2023-11-14" / "incident-1.jpg").read_bytes() == b"jpeg"

    @pytest.mark.parametrize(
        "link",
        [
            LINK,
            "https://h/../../secret",
            "https://h/a/%2e%2e/..",
            "x",
            "https://h/a/b/%2fetc%2fpasswd",
            "https://h/a/b/" + "x" * 300,
        ],
    )
    def test_that_are_missing_or_elsewhere_cost_no_alert(self, tmp_path: Path, make_alert: Make, link: str) -> None:
        (tmp_path / "secret").write_text("s")
        one = disk(tmp_path / "out", snapshots_from=tmp_path / "media", snapshot_wait_s=0.05)
        deliver(one, make_alert(1, snapshot=link))
        assert len(lines(tmp_path / "out")) == 1
        assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.suffix != ".jsonl"]


PICTURE = "0123456789abcdef" * 2 + ".jpg"


def test_what_is_older_than_keep_days_goes_and_nothing_else(tmp_path: Path, make_alert: Make) -> None:
    ours = ["alerts-2020-01-01.jsonl", f"2020-01-01/{PICTURE}", f"2020-01-01/.{PICTURE}.part"]
    others = [
        "notes-2020-01-01.txt",
        "2020-01-02.jsonl",
        "2020-01-03",
        f"2020-01-04/{PICTURE}",
        "2020-01-04/wedding.jpg",
        "2020-01-05/family/wedding.mov",
        "alerts-9999-01-01.jsonl",
        f"9999-01-01/{PICTURE}",
    ]
    for name in [*ours, *others]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    deliver(disk(tmp_path, keep_days=30), make_alert(1, event_time="9998-01-01T00:00:00.000000Z"))
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"alerts-9998-01-01.jsonl", *others} - {f"2020-01-04/{PICTURE}"}
    assert not (tmp_path / "2020-01-01").exists()
