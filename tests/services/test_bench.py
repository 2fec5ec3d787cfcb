"""The benchmarks: their figures are what they say they are, their books balance, and what they cannot do they say."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.bench.figures import histogram_summary, latency_summary
from services.bench.stages import read_stages
from services.bench.watch import Ledger
from wire.redis_link import Link, connect
from wire.settings import RedisSettings
from wire.streams import PUBLISH_ONCE, publish_once

needs_deepsparse = pytest.mark.skipif(
    importlib.util.find_spec("deepsparse") is None, reason="DeepSparse is not installed (no wheel for this Python)"
)
Bench = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def bench() -> Bench:
    """Runs `sparsecam bench ...` as a person would."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "services.cli", "bench", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )

    return run


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Four seconds of a bright box that moves over grey."""
    path = tmp_path / "box.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=15, options={"preset": "ultrafast", "g": "15", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 320, 192, "yuv420p"
        for index in range(60):
            picture = np.full((192, 320, 3), 90, np.uint8)
            left = 20 + index * 3
            picture[60:120, left : left + 60] = 250
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    return path


def test_the_engine_benchmark_gives_throughput_and_latency_of_every_engine(
    bench: Bench, bright_box_model: Path
) -> None:
    done = bench("engine", bright_box_model, "--engine", "onnxruntime", "--seconds", 0.5, "--warmup", 0.1, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["model"]["name"] == "bright.onnx" and found["model"]["nodes"] > 0 and found["scenario"] == "sync"
    (row,) = found["engines"]
    latency = row["latency_ms"]
    assert row["streams"] == 1 and row["runs"] > 5 and not row["refused"]
    # One stream at a time: its speed is one over its mean latency.
    assert row["items_per_s"] == pytest.approx(1e3 / latency["mean"], rel=0.02)
    assert latency["median"] <= latency["p90"] <= latency["p95"] <= latency["p99"]


@needs_deepsparse
def test_an_engine_that_aborts_is_reported_and_the_others_are_measured(
    bench: Bench, graphs: Any, tmp_path: Path
) -> None:
    model = graphs.cells(tmp_path / "kills.onnx", kills_deepsparse=True, image_size=(64, 64))
    done = bench("engine", model, "--scenario", "async", "--batch", 1, "--seconds", 0.3, "--warmup", 0, "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["engine"]: row for row in json.loads(done.stdout)["engines"]}
    assert "deepsparse ended its process" in rows["deepsparse"]["refused"]
    assert rows["onnxruntime"]["items_per_s"] > 0


def test_a_file_through_the_whole_path_beside_the_bare_engine(bench: Bench, bright_box_model: Path, clip: Path) -> None:
    options = (
        "--engine",
        "onnxruntime",
        "--workers",
        1,
        "--sources",
        2,
        "--seconds",
        2,
        "--warmup",
        0.5,
        "--rounds",
        1,
    )
    done = bench("pipeline", "--model", bright_box_model, "--source", clip, *options, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {
        "machine",
        "command",
        "versions",
        "stages_how",
        "engine_ms",
        "cpu_seconds",
        "others_cores",
        "ratio_by_cpu",
    } <= found.keys()
    assert found["frames"] >= 50
    assert found["shapes"] == [[192, 320]] and found["workers"] == 1 and not found["live"]
    assert found["ratio"] == pytest.approx(found["fps"] / found["ceiling_fps"], rel=0.01) and found["ratio"] > 0
    assert found["frames"] / found["seconds"] == pytest.approx(found["fps"], rel=0.01)
    for stage in ("capture", "queue", "at_worker", "inference", "publish", "age"):
        figures = found["stages"][stage]
        assert 0 <= figures["p50"] <= figures["p95"] <= figures["p99"], stage
    assert {"ingest", "broker", "detector", "sink", "valkey", "total"} <= found["cpu_ms_per_frame"].keys()
    assert found["cameras"].keys() == {"cam-0", "cam-1"} and found["fairness"] is None
    for camera in found["cameras"].values():
        assert camera["balanced"] and camera["detected"] > 0 and not camera["dropped"], "a file drops nothing"
    # The box is in every picture: one alert a camera and second of event time, which runs faster than the clock.
    assert found["alerts"] > 0 and found["detections"] == found["frames"]


def test_live_cameras_keep_their_rate_and_show_age_and_fairness(
    bench: Bench, bright_box_model: Path, clip: Path
) -> None:
    options = (
        "--engine",
        "onnxruntime",
        "--workers",
        1,
        "--sources",
        2,
        "--seconds",
        2,
        "--warmup",
        0.2,
        "--rounds",
        1,
    )
    done = bench("pipeline", "--live", "--model", bright_box_model, "--source", clip, *options)
    assert done.returncode == 0, done.stderr
    assert "2 live cameras" in done.stdout and "BROKEN" not in done.stdout
    assert "frame age p99" in done.stdout and "cam-1" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["engine", "MODEL", "--num-cores", "4096"], "this process may use"),
        (["engine", "MODEL", "--scenario", "async", "--streams", "4096"], "At most"),
        (["engine", "MODEL", "--engine", "warp-drive"], "unknown engine 'warp-drive'"),
        (["pipeline", "--model", "MODEL", "--cores", "4095"], "CPU 4095 is not there"),
        (["pipeline", "--model", "MODEL", "--cores", "fast ones"], "expected CPUs such as 0,1"),
        (["pipeline", "--model", "MODEL", "--cores", "1-0"], "--cores '1-0': expected CPUs such as 0,1"),
        (["engine", "nowhere.onnx"], "nowhere.onnx: cannot read the model"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_words(
    bench: Bench, bright_box_model: Path, arguments: list[str], words: str
) -> None:
    done = bench(*(str(bright_box_model) if word == "MODEL" else word for word in arguments))
    assert done.returncode == 78 and words in done.stderr and "Traceback" not in done.stderr


def test_stages_are_read_from_the_stamps_of_each_record(valkey: Any, detection_record: Any) -> None:
    base_ns = time.monotonic_ns() - 1_000_000_000
    ms = 1_000_000
    with connect(RedisSettings(url=valkey.url)) as client:
        link = Link(client)
        link.send(("SCRIPT", "LOAD", PUBLISH_ONCE.source))
        for seq in range(10):
            record = detection_record(
                seq,
                "pistol",
                captured_ns=base_ns,
                dispatched_ns=base_ns + 3 * ms,
                inference_start_ns=base_ns + 5 * ms,
                inference_end_ns=base_ns + (10 + seq) * ms,
            )
            link.send(publish_once(record, 1000))
        link.close()
        # The window holds the inferences that ended in it: 10 to 14 of 10 to 19 ms.
        found = read_stages(client, ["door", "unknown"], base_ns, base_ns + 15 * ms)
    assert found.detected == {"door": 5} and found.boxes == 5
    assert found.samples_ms["queue"] == [3.0] * 5 and found.samples_ms["at_worker"] == [2.0] * 5
    assert found.samples_ms["inference"] == [5.0, 6.0, 7.0, 8.0, 9.0]
    # Stored now, a second after capture; the entry's id is good to a millisecond, this test to a slow machine.
    assert all(980 < age < 5000 for age in found.samples_ms["age"])


def test_a_window_of_a_ledger_is_what_happened_in_it() -> None:
    before = Ledger(100, 80, 5, {"stale": 10, "static": 5})
    after = Ledger(150, 120, 7, {"stale": 13, "static": 5, "overwritten": 5})
    window = after.since(before)
    assert window == Ledger(50, 40, 7, {"stale": 3, "overwritten": 5})
    assert before.in_flight + window.captured == window.detected + sum(window.dropped.values()) + after.in_flight


@given(st.lists(st.floats(0.0001, 4.9), min_size=1, max_size=200))
def test_quantiles_of_a_histogram_are_within_the_bucket_of_the_true_ones(samples_s: list[float]) -> None:
    edges = [0.001, 0.01, 0.1, 1.0, 5.0, float("inf")]
    counts = {edge: float(sum(sample <= edge for sample in samples_s)) for edge in edges}
    found = histogram_summary({}, counts)
    ordered = sorted(samples_s)
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        true_s = ordered[max(0, int(np.ceil(share * len(ordered))) - 1)]
        upper = next(edge for edge in edges if true_s <= edge)
        lower = max([0.0, *(edge for edge in edges if edge < upper)])
        assert lower * 1e3 - 0.001 <= found[name] <= upper * 1e3 + 0.001


def test_no_samples_give_no_figures() -> None:
    assert latency_summary([]) == {} and histogram_summary({}, {}) == {} and histogram_summary({1.0: 2}, {1.0: 2}) == {}
