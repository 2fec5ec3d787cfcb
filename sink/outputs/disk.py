"""Disk: a file of JSON lines a day, and beside it copies of the alerts' pictures.

`FOLDER/alerts-YYYY-MM-DD.jsonl` has one alert a line, `FOLDER/YYYY-MM-DD/INCIDENT.jpg` the picture; the day is that of
the event, in UTC. A line is on the disk when its alert counts as delivered. A machine that loses power in between
may write an alert a second time: lines of the same `id` are the same alert.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import unquote, urlsplit

import structlog

from sink.outputs.delivery import Output, Unreachable
from sink.outputs.settings import DiskSettings
from wire.alerts import Alert

log = structlog.get_logger()

# How often a picture that is waited for is looked for.
LOOK_S = 0.05
# Only what looks like ours is ever deleted: others, too, keep their files by the day.
_LINES = re.compile(r"alerts-(\d{4}-\d\d-\d\d)\.jsonl")
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_PICTURE = re.compile(r"[0-9a-f]{32}\.jpg|\.[0-9a-f]{32}\.jpg\.part")


class Disk(Output):
    """A disk that is full or cannot be written to makes its alerts wait, and nothing else."""

    def __init__(self, settings: DiskSettings) -> None:
        self._settings = settings
        self._cleaned: date | None = None

    def deliver(self, alert: Alert, text: bytes) -> None:
        """Write the line, to the disk itself; then copy the picture, if there is one within the wait."""
        day = alert.event_time[:10]
        try:
            self._settings.folder.mkdir(parents=True, exist_ok=True)
            _append(self._settings.folder / f"alerts-{day}.jsonl", text)
        except OSError as error:
            raise Unreachable(f"{self._settings.folder}: {error.strerror or error}") from None
        if alert.event == "opened" and alert.snapshot and self._settings.snapshots_from is not None:
            self._copy_picture(alert, alert.snapshot, day)
        self._clean()

    def close(self) -> None:
        """Nothing stays open."""

    def _copy_picture(self, alert: Alert, link: str, day: str) -> None:
        """A picture that is missing, or does not fit on the disk, costs nobody an alert."""
        assert self._settings.snapshots_from is not None
        # CAMERA/YYYY-MM-DD/INCIDENT.jpg, whatever address is before it.
        parts = [unquote(part) for part in urlsplit(link).path.split("/")[-3:]]
        if len(parts) < 3 or any(part in ("", ".", "..") or "/" in part or "\0" in part for part in parts):
            log.warning("no picture: its link is not CAMERA/DATE/NAME", id=alert.id)
            return
        source = self._settings.snapshots_from.joinpath(*parts)
        until_s = time.monotonic() + self._settings.snapshot_wait_s
        target = self._settings.folder / day / parts[-1]
        beside = target.with_name(f".{target.name}.part")
        try:
            while not source.is_file() and time.monotonic() < until_s:  # raises where its folder may not be entered
                time.sleep(LOOK_S)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, beside)
            beside.replace(target)
        except OSError as error:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            log.warning("no picture", id=alert.id, source=str(source), reason=error.strerror or str(error))

    def _clean(self) -> None:
        """Once a day, delete what is older than keep_days."""
        today = datetime.now(timezone.utc).date()
        if not self._settings.keep_days or self._cleaned == today:
            return
        self._cleaned = today
        oldest = (today - timedelta(days=self._settings.keep_days)).isoformat()
        for path in sorted(self._settings.folder.iterdir()):
            try:
                if _DAY.fullmatch(path.name) and path.name < oldest and path.is_dir() and not path.is_symlink():
                    _delete_pictures(path)
                elif (lines := _LINES.fullmatch(path.name)) and lines[1] < oldest:
                    path.unlink()
            except OSError as error:
                log.warning("old alerts stay", path=str(path), reason=error.strerror or str(error))


def _delete_pictures(day: Path) -> None:
    for path in list(day.iterdir()):
        if _PICTURE.fullmatch(path.name):
            path.unlink()
    with contextlib.suppress(OSError):  # somebody else's files are in it
        day.rmdir()


def _append(path: Path, line: bytes) -> None:
    """Add a whole line, or none: half of one is taken back."""
    # Unbuffered: a buffer would try again to write its rest when the file is closed.
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            # A line that a crash cut short must not swallow this one.
            begin = b"" if size == 0 or _last_byte(path) == b"\n" else b"\n"
            rest = memoryview(begin + line + b"\n")
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)
