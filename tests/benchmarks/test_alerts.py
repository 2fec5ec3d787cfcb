"""The comparison of alerts: what is the same, what is later, and what only one run raised."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from benchmarks.alerts import RULE, Raised, Run, compare, pairs, run_site


def raised(*times_s: float, label: str = "pistol") -> list[Raised]:
    return [Raised("door", label, at_s, 0.9) for at_s in times_s]


def test_each_alert_is_in_one_pair_and_the_closest_pairs_come_first() -> None:
    found = pairs(raised(1.0, 1.3, 9.0), raised(1.25, 1.9), 1.0)
    assert [(a.at_s, b.at_s) for a, b in found] == [(1.3, 1.25), (1.0, 1.9)]
    assert pairs(raised(1.0), raised(1.0, label="knife"), 1.0) == []


def test_a_row_tells_the_same_from_later_and_from_missing() -> None:
    shows = {number: frozenset({"pistol"}) for number in range(10)}
    square = Run(raised(1.0, 10.0, 20.0), {"door": 0.04}, {"door": shows})
    rectangular = Run(raised(1.2, 13.0, 30.0, 40.0), {"door": 0.04}, {"door": {**shows, 3: frozenset()}})
    (row,) = compare(square, rectangular, RULE)
    assert (row.square, row.rectangular, row.same, row.later) == (3, 4, 1, 1)
    assert (row.only_square, row.only_rectangular, row.frames_agree, row.worst_s) == (1, 2, 0.9, 3.0)


def test_a_clip_plays_through_the_whole_site_and_raises_the_same_alerts_again(
    tmp_path: Path, bright_box_model: Path
) -> None:
    path = tmp_path / "box.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 320, 192, "yuv420p"
        for index in range(100):
            picture = np.full((192, 320, 3), 90, np.uint8)
            if index >= 30:
                picture[60:120, index : index + 60] = 250
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    square, rectangular = (
        run_site([path], bright_box_model, "onnxruntime", rectangular=shape, rule=RULE, limit_s=60)
        for shape in (False, True)
    )
    # The box comes at 3.0 s. Its track counts from the second frame on, and the third of those confirms it. It stays to
    # the end, so it is one incident.
    assert [round(alert.at_s, 1) for alert in square.alerts] == [3.3]
    (row,) = compare(square, rectangular, RULE)
    assert (row.frames, row.same, row.later, row.only_square, row.only_rectangular) == (100, 1, 0, 0, 0)
