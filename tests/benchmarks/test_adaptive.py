from __future__ import annotations

from pathlib import Path

from benchmarks.adaptive import appearances, compare, delays
from benchmarks.idle_clips import ENCODINGS, encode
from ingest.sim.scene_url import parse


def test_an_appearance_begins_after_a_second_without() -> None:
    assert appearances([]) == []
    assert appearances([5.0, 5.2, 5.9, 7.0, 7.5, 9.0]) == [5.0, 7.0, 9.0]


def test_a_delay_ends_where_the_next_appearance_begins() -> None:
    assert delays([1.0, 5.0, 9.0], [1.0, 5.4, 11.0], until_s=10.0) == [0.0, 5.4 - 5.0, None]


def test_a_quiet_camera_with_two_passers_by_loses_neither(tmp_path: Path) -> None:
    spec = parse("sim://street?seed=3&size=320x240&objects=2&quiet=8/10&noise=4")
    (path,) = encode(spec, 500, tmp_path, ENCODINGS[:1])
    assert encode(spec, 500, tmp_path, ENCODINGS[:1]) == [path]  # kept, not made again
    result = compare(path, 5, None, judge_by_model=False)
    assert (result.appearances, result.missed, result.late) == (2, 0, 0)
    assert result.awake_share < 0.9 and result.worst_delay_s <= 0.2
