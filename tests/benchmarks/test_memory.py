"""The memory benchmark: its slope is the least-squares one, and it runs the real processes."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.memory import growth, line, measure

sizes = st.lists(st.floats(0, 1000), min_size=4, max_size=40)


@given(sizes, st.floats(-5, 5))
def test_the_slope_and_its_error_are_those_of_least_squares(sizes_mib: list[float], slope: float) -> None:
    points = [(5.0 * number, size + slope * 5.0 * number) for number, size in enumerate(sizes_mib)]
    found, error = line(points)
    (expected, _), covariance = np.polyfit(*zip(*points, strict=True), 1, cov=True)
    assert found == pytest.approx(expected, abs=1e-6)
    assert error == pytest.approx(float(np.sqrt(max(0.0, covariance[0, 0]))), abs=1e-5)


def test_a_steady_growth_is_told_by_the_minute() -> None:
    found = growth("sink-0", [(second, 50 + second / 60) for second in range(0, 60, 5)])
    assert found.slope_per_min == pytest.approx(1) and found.slope_error_per_min == pytest.approx(0, abs=1e-9)
    assert (found.first, found.last) == (50, 50 + 55 / 60)
    with pytest.raises(ValueError, match="need three"):
        line([(0.0, 1.0), (1.0, 2.0)])


def test_every_process_of_the_site_is_sampled(tmp_path: Path, bright_box_model: Path) -> None:
    path = tmp_path / "box.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 320, 192, "yuv420p"
        for index in range(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((192, 320, 3), index, np.uint8), "rgb24")))
        container.mux(stream.encode())
    rows, frames, _ = measure(path, bright_box_model, "onnxruntime", seconds=1.5, warmup_s=0.2, every_s=0.3)
    names = {row.process for row in rows}
    assert {"broker-0", "ingest-0", "detector-0", "sink-0", "valkey"} <= names
    assert frames > 30 and all(len(row.samples) >= 3 and row.first > 1 and not row.restarted for row in rows)
