"""A model is tried in a child process: whatever happens there, the parent lives and can say what it was."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import pytest

from detector import verdicts
from detector.model import Model, read_model
from detector.trial import Verdict, timed, try_model


def attempt(model: Model, engine: str, cache_dir: Path, **changes: Any) -> Verdict:
    facts: dict[str, Any] = {"num_cores": 1, "batch": 1, "height": 320, "width": 320, "classes": None, "timeout_s": 60}
    return try_model(model, engine, cache_dir=cache_dir, **{**facts, **changes})


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "detector.trial" in child.cmdline()]


def wait_for(condition: Callable[[], Any], timeout_s: float = 30) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


def test_a_good_model_is_accepted_with_its_head_and_speed(
    graphs: ModuleType, tmp_path: Path, verdict_dir: Path, engine: str
) -> None:
    model = read_model(graphs.cells(tmp_path / "m.onnx"))
    verdict = attempt(model, engine, verdict_dir, height=96, width=96)
    assert (verdict.accepted, verdict.reason, verdict.class_count) == (True, "", 2)
    assert verdict.head.startswith("yolov5")
    assert verdict.outputs == [[1, 567, 7]]
    assert verdict.ms > 0


def test_on_one_core_the_time_that_others_have_it_does_not_count() -> None:
    class Waiting:
        """Without the core for four milliseconds in each inference, as beside another program."""

        def infer(self, _: Any) -> list[Any]:
            time.sleep(0.004)
            return []

    engine: Any = Waiting()
    picture = np.zeros(1)
    assert timed(engine, picture, num_cores=1)[-1] < 4
    assert timed(engine, picture, num_cores=2)[0] >= 4


def test_an_engine_that_ends_its_process_is_a_verdict(
    graphs: ModuleType, tmp_path: Path, verdict_dir: Path, deepsparse: str
) -> None:
    model = read_model(graphs.cells(tmp_path / "m.onnx", kills_deepsparse=True))
    small = {"height": 96, "width": 96}
    verdict = attempt(model, deepsparse, verdict_dir, **small)
    assert not verdict.accepted
    assert "ended its process with status 1: Assertion at" in verdict.reason
    assert attempt(model, "onnxruntime", verdict_dir, **small).accepted


def test_a_verdict_is_kept_until_something_it_depends_on_changes(graphs: ModuleType, tmp_path: Path) -> None:
    model = read_model(graphs.bright_box(tmp_path / "m.onnx"))
    assert attempt(model, "onnxruntime", tmp_path).accepted
    no_time_for_a_child = {"timeout_s": 0.001}
    assert attempt(model, "onnxruntime", tmp_path, **no_time_for_a_child).accepted
    assert not attempt(model, "onnxruntime", tmp_path, height=160, **no_time_for_a_child).accepted
    other = read_model(graphs.bright_box(tmp_path / "n.onnx", label="other"))
    assert not attempt(other, "onnxruntime", tmp_path, **no_time_for_a_child).accepted


def test_without_a_home_folder_models_are_tried_and_verdicts_are_not_kept(
    graphs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def nobody(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)  # a container's user that no file lists
    model = read_model(graphs.bright_box(tmp_path / "m.onnx"))
    verdict = try_model(
        model, "onnxruntime", num_cores=1, batch=1, height=320, width=320, classes=1, timeout_s=60, cache_dir=None
    )
    assert verdict.accepted, verdict.reason
    assert verdicts.where(None) == "nowhere: there is no home folder"


def test_a_child_that_takes_too_long_is_ended_and_its_verdict_not_kept(graphs: ModuleType, tmp_path: Path) -> None:
    model = read_model(graphs.bright_box(tmp_path / "m.onnx"))
    slow = attempt(model, "onnxruntime", tmp_path, timeout_s=0.01)
    assert "not ready after 0.01 s" in slow.reason
    assert not children()
    assert attempt(model, "onnxruntime", tmp_path).accepted


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_child_that_somebody_ended_is_no_lasting_verdict(graphs: ModuleType, tmp_path: Path, stop: int) -> None:
    model = read_model(graphs.bright_box(tmp_path / "m.onnx"))
    found: list[Verdict] = []
    trying = threading.Thread(target=lambda: found.append(attempt(model, "onnxruntime", tmp_path)))
    trying.start()
    wait_for(children)[0].send_signal(stop)
    trying.join()
    assert not found[0].accepted and not found[0].lasting
    assert attempt(model, "onnxruntime", tmp_path).accepted


def test_a_stop_of_the_whole_group_does_not_reach_the_child(graphs: ModuleType, tmp_path: Path) -> None:
    model = read_model(graphs.bright_box(tmp_path / "m.onnx"))
    found: list[Verdict] = []
    trying = threading.Thread(target=lambda: found.append(attempt(model, "onnxruntime", tmp_path)))
    trying.start()
    assert os.getpgid(wait_for(children)[0].pid) != os.getpgid(0)
    trying.join()
    assert found[0].accepted


def test_a_full_disk_is_no_lasting_verdict(graphs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = read_model(graphs.bright_box(tmp_path / "m.onnx"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not there"))
    verdict = attempt(model, "onnxruntime", tmp_path / "cache")
    assert not verdict.accepted and not verdict.lasting and "could not be tried" in verdict.reason
    monkeypatch.undo()
    assert attempt(model, "onnxruntime", tmp_path / "cache").accepted


def test_a_damaged_cache_costs_a_trial_and_no_more(graphs: ModuleType, tmp_path: Path) -> None:
    model = read_model(graphs.bright_box(tmp_path / "m.onnx"))
    assert attempt(model, "onnxruntime", tmp_path).accepted
    (kept,) = (tmp_path / "trials").iterdir()
    kept.write_bytes(b'{"accepted": "perhaps')
    assert attempt(model, "onnxruntime", tmp_path).accepted


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    verdicts.write(tmp_path / "file", "key", Verdict(True, "e", 1, 1, 1))
    assert verdicts.read(tmp_path / "file", "key", Verdict) is None


def test_the_child_dies_with_its_parent(graphs: ModuleType, tmp_path: Path) -> None:
    path = graphs.bright_box(tmp_path / "m.onnx")
    program = textwrap.dedent(
        f"""
        from pathlib import Path
        from detector.model import read_model
        from detector.trial import try_model
        model = read_model(Path({str(path)!r}))
        while True:
            try_model(model, "onnxruntime", num_cores=1, batch=1, height=320, width=320, classes=None,
                      timeout_s=60, cache_dir=Path("/dev/null"))
        """
    )
    house = Path(__file__).parents[2]
    # Its temporary folder stays behind when it is killed: let that be in ours.
    environment = {**os.environ, "PYTHONPATH": str(house), "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.DEVNULL)
    try:
        # Alive for a while: its request to die with its parent is in its first lines, after its imports.
        child = wait_for(
            lambda: [c for c in psutil.Process(parent.pid).children() if time.time() - c.create_time() > 0.2]
        )[0]
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    finally:
        parent.kill()
        parent.wait()


def test_nothing_in_the_working_folder_passes_for_our_code(
    graphs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "detector.py").write_text("raise SystemExit('taken over')")
    (tmp_path / "onnxruntime.py").write_text("raise SystemExit('taken over')")
    monkeypatch.chdir(tmp_path)
    assert attempt(read_model(graphs.bright_box(tmp_path / "m.onnx")), "onnxruntime", tmp_path).accepted
