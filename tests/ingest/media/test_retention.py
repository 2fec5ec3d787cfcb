"""Snapshots and clips go by age and by total size, oldest first, and nothing else is touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.media.retention import _entries, sweep

NOW_S = 1_800_000_000.0
DAY_S = 86_400.0


def put(folder: Path, relative: str, age_s: float, size: int = 10) -> Path:
    path = folder / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (NOW_S - age_s, NOW_S - age_s))
    return path


def test_old_files_go_and_empty_days_with_them(tmp_path: Path) -> None:
    old = put(tmp_path, "door/2026-01-01/a.jpg", 15 * DAY_S)
    young = put(tmp_path, "door/2026-01-14/b.mp4", DAY_S)
    swept = sweep(tmp_path, 14 * DAY_S, 10**9, NOW_S)
    assert (swept.deleted, swept.files, swept.bytes, swept.failed) == (1, 1, 10, 0)
    assert not old.parent.exists()
    assert young.exists()


def test_the_oldest_go_until_the_rest_fits(tmp_path: Path) -> None:
    files = [put(tmp_path, f"cam{n % 2}/2026-01-01/{n}.mp4", 1000 - n, size=100) for n in range(10)]
    swept = sweep(tmp_path, DAY_S, 350, NOW_S)
    assert (swept.deleted, swept.files, swept.bytes) == (7, 3, 300)
    assert [file.exists() for file in files] == [False] * 7 + [True] * 3


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    others = [
        put(tmp_path / "m", "holiday.jpg", 99 * DAY_S),
        put(tmp_path / "m", "door/holiday.jpg", 99 * DAY_S),
        put(tmp_path / "m", "door/2026-01-01/notes.txt", 99 * DAY_S),
        put(tmp_path / "m", "door/2026-01-01/deeper/a.jpg", 99 * DAY_S),
        put(tmp_path / "m", "door/summer/a.jpg", 99 * DAY_S),
        put(outside, "2026-01-01/a.jpg", 99 * DAY_S),
    ]
    (tmp_path / "m" / "linked").symlink_to(outside)
    (tmp_path / "m" / "door" / "2026-01-01" / "link.jpg").symlink_to(others[0])
    assert sweep(tmp_path / "m", DAY_S, 1, NOW_S).deleted == 0
    assert all(path.exists() for path in others)


def test_a_clip_being_written_stays_and_one_left_behind_goes(tmp_path: Path) -> None:
    writing = put(tmp_path, "door/2026-01-01/a.mp4.part", 5, size=1000)
    left = put(tmp_path, "door/2026-01-01/b.mp4.part", 2 * 3600)
    assert sweep(tmp_path, DAY_S, 1, NOW_S).deleted == 1
    assert writing.exists()
    assert not left.exists()


def test_no_folder_is_an_empty_one(tmp_path: Path) -> None:
    assert sweep(tmp_path / "none", 1, 1, NOW_S).files == 0
    assert _entries(tmp_path / "none") == []


@given(
    ages_s=st.lists(st.floats(0, 30 * DAY_S), max_size=8),
    sizes=st.lists(st.integers(0, 100), min_size=8, max_size=8),
    max_bytes=st.integers(0, 500),
)
def test_whatever_is_there_is_within_bounds_afterwards(
    tmp_path_factory: pytest.TempPathFactory, ages_s: list[float], sizes: list[int], max_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("m")
    files = [put(folder, f"c/2026-01-01/{n}.jpg", age_s, sizes[n]) for n, age_s in enumerate(ages_s)]
    swept = sweep(folder, 14 * DAY_S, max_bytes, NOW_S)
    left = [age_s for age_s, file in zip(ages_s, files, strict=True) if file.exists()]
    gone = [age_s for age_s, file in zip(ages_s, files, strict=True) if not file.exists()]
    assert swept.bytes == sum(file.stat().st_size for file in files if file.exists()) <= max_bytes
    assert all(age_s <= 14 * DAY_S + 1 for age_s in left)
    # Never a younger one before an older.
    assert not gone or not left or max(left) <= min(gone) + 1e-3
