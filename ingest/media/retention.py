"""Deletes old snapshots and clips: those over their age, then the oldest until the rest fits."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ingest.media.store import PARTIAL

# Only what looks like ours is ever deleted, at the depth at which ours lies: camera/day/incident.suffix.
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_SUFFIXES = (".jpg", ".mp4", PARTIAL)
# A file still being written is changed every second or so; one unchanged for an hour was left by a process that died.
_PARTIAL_KEPT_S = 3600.0


@dataclass(frozen=True)
class Swept:
    """What a sweep found and did."""

    files: int = 0  # that are left
    bytes: int = 0  # that are left
    deleted: int = 0
    failed: int = 0  # that could not be deleted


@dataclass(frozen=True)
class _File:
    path: str
    changed_s: float
    bytes: int


def sweep(folder: Path, keep_s: float, max_bytes: int, now_s: float) -> Swept:
    """Delete what was last changed more than `keep_s` before `now_s` (seconds since the epoch), or does not fit."""
    files = sorted(_files(folder), key=lambda file: file.changed_s)
    total = sum(file.bytes for file in files)
    kept = deleted = failed = 0
    for file in files:
        age_s = now_s - file.changed_s
        abandoned = file.path.endswith(PARTIAL) and age_s > _PARTIAL_KEPT_S
        doomed = age_s > keep_s or total > max_bytes
        if not abandoned and (not doomed or file.path.endswith(PARTIAL)):
            kept += 1
        elif _delete(file.path):
            deleted += 1
            total -= file.bytes
        else:
            failed += 1
    return Swept(kept + failed, total, deleted, failed)


def _delete(path: str) -> bool:
    file = Path(path)
    try:
        file.unlink()
    except FileNotFoundError:  # another process of this folder was quicker
        return True
    except OSError:
        return False
    with suppress(OSError):  # the day's folder: only when nothing is left in it
        file.parent.rmdir()
    return True


def _files(folder: Path) -> Iterator[_File]:
    for camera in _folders(folder):
        for day in _folders(camera.path):
            if not _DAY.fullmatch(day.name):
                continue
            for entry in _entries(day.path):
                with suppress(OSError):  # gone meanwhile
                    if entry.name.endswith(_SUFFIXES) and entry.is_file(follow_symlinks=False):
                        stat = entry.stat(follow_symlinks=False)
                        yield _File(entry.path, stat.st_mtime, stat.st_size)


def _folders(path: Path | str) -> Iterator[os.DirEntry[str]]:
    return (entry for entry in _entries(path) if entry.is_dir(follow_symlinks=False))


def _entries(path: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError:
        return []
