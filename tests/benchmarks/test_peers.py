"""Peers run in turns, are compared within a round, and none is ever silently missing."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers.article import nms
from benchmarks.peers.protocol import WARM_UP_FRAMES, Job, Result, measure
from benchmarks.peers.quiet import Watch
from benchmarks.peers.rivals import REPOSITORY, Settings, run_script
from benchmarks.peers.sparsecam import read_report
from benchmarks.peers.turns import Patience, cpu_ms, fps, ratio, take_turns
from benchmarks.peers.venvs import Environment, PeerUnavailable, ready

CORES = tuple(sorted(os.sched_getaffinity(0)))
JOB = Job(Path("clip.mp4"), Path("model.onnx"), 10, (0,), 0.25, 0.45)


def _result(name: str, rate: float, cpu_seconds: float | None = 1.0) -> Result:
    return Result(name, 100, 100 / rate, rate, cpu_seconds, 7, {})


def test_peers_alternate_and_ratios_are_formed_within_a_round():
    # The machine is half as fast in the second round: rates differ, ratios do not.
    rates = {"base": iter([100.0, 50.0, 100.0]), "rival": iter([50.0, 25.0, 50.0])}
    order: list[str] = []

    def run(name: str) -> Result:
        order.append(name)
        return _result(name, next(rates[name]))

    rows = take_turns({name: lambda name=name: run(name) for name in rates}, 3, CORES, Patience())
    assert order == ["base", "rival"] * 3
    speed, times = fps(rows["rival"]), ratio(rows["rival"], rows["base"])
    assert speed and (speed.median, speed.low, speed.high) == (50, 25, 50)
    assert times and (times.median, times.low, times.high) == (0.5, 0.5, 0.5)


def test_a_peer_that_fails_is_out_with_its_reason_and_keeps_its_results():
    answers = iter([_result("rival", 10.0)])

    def run() -> Result:
        for answer in answers:
            return answer
        raise PeerUnavailable("exited 1: out of memory")

    rows = take_turns({"rival": run, "base": lambda: _result("base", 20.0, None)}, 3, CORES, Patience())
    assert rows["rival"].unavailable == "exited 1: out of memory"
    assert list(rows["rival"].results) == [0]
    assert len(rows["base"].results) == 3
    assert cpu_ms(rows["base"]) is None


def test_ones_own_work_is_not_the_others():
    core = CORES[:1]
    code = f"import os; os.sched_setaffinity(0, {core})\nimport time\nwhile time.process_time() < 0.8: pass"
    watch = Watch.start(core)
    child = subprocess.Popen([sys.executable, "-c", code])
    child.wait()
    own = watch.others_share()
    watch = Watch.start(core)
    stranger = subprocess.Popen([sys.executable, "-c", code])
    while Path(f"/proc/{stranger.pid}/stat").read_text().split()[2] != "Z":  # ended, but not yet counted as ours
        pass
    strange = watch.others_share()
    stranger.wait()
    assert strange > 0.3
    # Other tests may run beside this one: only that its own work was taken off is certain.
    assert 0 <= own <= 1


def test_the_warm_up_is_not_counted():
    boxes = iter([1000] * WARM_UP_FRAMES + [1] * JOB.frames)
    result = measure("peer", JOB, boxes, ("numpy",))
    assert (result.detections, result.frames) == (JOB.frames, JOB.frames)
    assert result.fps == pytest.approx(JOB.frames / result.seconds)
    assert result.versions == {"numpy": np.__version__}


def test_a_pipeline_that_ends_early_is_an_error():
    with pytest.raises(SystemExit, match="ended after 3 of 10"):
        measure("peer", JOB, iter([0] * (WARM_UP_FRAMES + 3)), ())


def test_a_second_use_of_an_environment_installs_nothing(tmp_path):
    environment = Environment("empty", ())
    # Without packages pip has nothing to do and says so as an error: the environment must not pass for whole.
    with pytest.raises(PeerUnavailable, match="pip install"):
        ready(environment, tmp_path)
    [folder] = tmp_path.iterdir()
    assert not (folder / "installed").exists()
    (folder / "installed").touch()
    assert ready(environment, tmp_path) == folder / "bin/python"
    assert (folder / "installed").exists()


def test_a_package_that_cannot_be_installed_is_a_reason(tmp_path):
    missing = tmp_path / "no-such-wheel.whl"
    with pytest.raises(PeerUnavailable, match="no-such-wheel"):
        ready(Environment("broken", (str(missing),)), tmp_path)


def test_sparsecams_own_report_is_read():
    result = read_report("sparsecam", json.dumps({"fps": 250.0, "detections": 5, "more": {}}), 500)
    assert (result.fps, result.seconds, result.detections, result.cpu_seconds) == (250, 2, 5, None)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"fps": "fast"}'])
def test_a_report_without_a_rate_is_a_reason(text):
    with pytest.raises(PeerUnavailable, match="printed no fps"):
        read_report("sparsecam", text, 500)


def test_the_articles_nms_keeps_the_best_of_overlapping_boxes():
    rows = np.array(
        [
            [50, 50, 20, 20, 0.8, 1.0],
            [51, 50, 20, 20, 0.9, 1.0],  # better, and over the first
            [90, 90, 10, 10, 0.5, 1.0],
            [10, 10, 10, 10, 0.5, 0.4],  # objectness times class is below the threshold
        ]
    )
    assert nms(rows, 0.25, 0.45).tolist() == [[41, 40, 61, 60], [85, 85, 95, 95]]
    assert nms(rows[:0], 0.25, 0.45).shape == (0, 4)


def test_the_stand_in_for_torchvision_suppresses_like_it(tmp_path):
    torch = pytest.importorskip("torch", reason="the peers' environments have torch, this one need not")
    from benchmarks.peers.torchvision_nms import nms as stand_in

    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]])
    assert stand_in(boxes, torch.tensor([0.5, 0.9, 0.7]), 0.5).tolist() == [1, 2]


def test_the_articles_loop_runs_and_leaves_the_model_file_alone(shared, tmp_path):
    pytest.importorskip("deepsparse")
    model = shared / "weights/reference-pistols-yolov5n-int8-hardswish.onnx"
    before = hashlib.sha256(model.read_bytes()).digest()
    core = min(os.sched_getaffinity(0))
    job = Job(shared / "videos/pistol.mp4", model, 20, (core,), 0.25, 0.45)
    result = run_script("article", Path(sys.executable), "article", job, Settings(tmp_path, 60, (256, 416)))
    assert (result.peer, result.frames) == ("article", 20)
    assert result.detections > 0
    assert hashlib.sha256(model.read_bytes()).digest() == before


def test_the_command_refuses_what_it_cannot_measure():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", "--video", "none.mp4", "--json"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    assert done.returncode == 2
    assert "there is no file none.mp4" in done.stderr
    assert done.stdout == ""
