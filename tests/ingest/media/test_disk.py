"""A disk that is full or not writable costs pictures, which are counted; a clip is there whole or not at all."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest.media.recorder import Recorder
from ingest.media.settings import MediaSettings


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def settings(folder: Path, **changes: Any) -> MediaSettings:
    return MediaSettings.model_validate(
        {"dir": folder, "clips": True, "pre_roll_s": 10, "post_roll_s": 10, "min_free_gb": 0} | changes
    )


def finish(recorder: Recorder, until: Any) -> None:
    def done() -> bool:
        recorder.tick()
        return recorder.counts().clips_open == 0

    until(done, 30)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.*"))


def test_a_disk_that_fills_up_breaks_the_clip_off_and_leaves_no_half(
    record: Any, link: Any, until: Any, alert_about: Any, small_disk: Path, shared: Path
) -> None:
    ring = record(shared / "videos" / "person-bicycle-car.mp4")  # 3.4 MB
    recorder = Recorder(settings(small_disk), {"cam": ring})
    recorder.handle(alert_about(link.frames["cam"][200]))
    finish(recorder, until)
    counts = recorder.counts()
    assert (counts.clips, counts.missed) == (0, {("clip", "disk"): 1})
    assert files(small_disk) == ["i1.jpg"]  # taken before the clip grew


def test_a_disk_full_to_the_brim_costs_the_snapshot(
    record: Any,
    link: Any,
    until: Any,
    alert_about: Any,
    small_disk: Path,
    tmp_path: Path,
    write_clip: Callable[..., Path],
) -> None:
    ring = record(write_clip(tmp_path / "a.mp4", frames=50))
    (small_disk / "cam" / "2026-01-01").mkdir(parents=True)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(2**20))
    recorder = Recorder(settings(small_disk), {"cam": ring})
    for incident in ("i1", "i2"):
        recorder.handle(alert_about(link.frames["cam"][20], incident=incident))
    finish(recorder, until)
    assert recorder.counts().missed == {("snapshot", "disk"): 2, ("clip", "disk"): 2}
    assert files(small_disk) == []
    filler.unlink()
    recorder.handle(alert_about(link.frames["cam"][20], incident="i3"))
    finish(recorder, until)
    assert files(small_disk) == ["i3.jpg", "i3.mp4"]


def test_clips_stop_before_the_disk_is_full(
    record: Any, link: Any, alert_about: Any, tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    ring = record(write_clip(tmp_path / "a.mp4", frames=50))
    recorder = Recorder(settings(tmp_path / "m", min_free_gb=1_000_000), {"cam": ring})
    recorder.handle(alert_about(link.frames["cam"][20]))
    assert recorder.counts().missed == {("clip", "disk"): 1}
    assert recorder.counts().snapshots == 1


def test_a_folder_that_cannot_be_made_costs_pictures_and_says_what_to_do(
    record: Any, link: Any, alert_about: Any, tmp_path: Path, write_clip: Callable[..., Path], capfd: Any
) -> None:
    ring = record(write_clip(tmp_path / "a.mp4", frames=50))
    (tmp_path / "m").write_text("a file where a folder should be")
    recorder = Recorder(settings(tmp_path / "m"), {"cam": ring})
    for number in range(3):
        recorder.handle(alert_about(link.frames["cam"][20], incident=f"i{number}"))
        recorder.tick()
    assert recorder.counts().missed == {("snapshot", "disk"): 3, ("clip", "disk"): 3}


def test_no_name_leads_out_of_the_folder(
    record: Any, link: Any, alert_about: Any, tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    ring = record(write_clip(tmp_path / "a.mp4", frames=50))
    recorder = Recorder(settings(tmp_path / "m"), {"cam": ring})
    for incident in ("../../x", "a/b", "", ".hidden", "x" * 300, "a\0b"):
        recorder.handle(alert_about(link.frames["cam"][20], incident=incident))
    recorder.handle(alert_about(link.frames["cam"][20], event_time="2026-99-99T00:00:00.000000Z"))
    assert recorder.counts().missed == {("snapshot", "malformed"): 7, ("clip", "malformed"): 7}
    assert files(tmp_path) == ["a.mp4"]


def test_alerts_that_come_too_late_and_those_of_others_are_told_apart(
    record: Any, link: Any, alert_about: Any, tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    ring = record(write_clip(tmp_path / "a.mp4", frames=50))
    recorder = Recorder(settings(tmp_path / "m", clips=False), {"cam": ring})
    header = link.frames["cam"][20]
    recorder.handle(alert_about(header, session="of another run"))
    recorder.handle(alert_about(header, seq=99_999))
    recorder.handle(alert_about(header, camera="another process's"))
    recorder.handle(alert_about(header, session=None, seq=None))  # the camera itself is down
    recorder.handle(alert_about(header, "closed"))
    recorder.handle(alert_about(header, "updated"))
    assert recorder.counts().missed == {("snapshot", "gone"): 2}
    assert not (tmp_path / "m").exists()
