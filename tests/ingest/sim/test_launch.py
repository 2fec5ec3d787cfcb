"""A launched camera serves from a process of its own, which never outlives the one that launched it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import cv2
import psutil
import pytest

import ingest.sim as sim
from ingest.sim.h264 import frame_index
from ingest.sim.scene import Street
from ingest.sim.scene_url import SceneSpec

Watch = Callable[..., list[av.VideoFrame]]
SMALL = "sim://street?size=320x180&seed={}"


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def eventually(holds: Callable[[], object], within_s: float = 10.0) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, "not so in time"
        time.sleep(0.01)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ingest.sim", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_cameras_serve_at_once_at_low_priority_and_close_within_two_seconds(watch: Watch) -> None:
    with ThreadPoolExecutor() as pool:
        cameras = list(pool.map(sim.launch, [SMALL.format(1), SMALL.format(2)]))
    pictures = [watch(camera.rtsp_url, 1)[0].to_ndarray(format="bgr24") for camera in cameras]
    assert cameras[0].rtsp_url != cameras[1].rtsp_url and (pictures[0] != pictures[1]).any()
    for camera in cameras:
        # The launching thread has ended; its camera has not.
        assert camera.alive and psutil.Process(camera.pid).nice() >= 10
        began = time.monotonic()
        camera.close()
        camera.close()
        assert time.monotonic() - began < 2 and not camera.alive and gone(camera.pid)


def test_a_camera_dies_with_a_killed_parent() -> None:
    code = f"import time, ingest.sim as sim\nprint(sim.launch({SMALL.format(1)!r}).pid, flush=True)\ntime.sleep(60)\n"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        camera = int(parent.stdout.readline())
        assert not gone(camera)
        os.kill(parent.pid, signal.SIGKILL)
    eventually(lambda: gone(camera), within_s=5)


def test_a_launched_fault_shows() -> None:
    with (
        sim.launch(SMALL.format(1), faults=["404"]) as camera,
        pytest.raises(av.error.HTTPNotFoundError),
    ):
        eventually(lambda: av.open(camera.rtsp_url, timeout=(10, 10)).close())


def test_bad_urls_and_faults_start_nothing() -> None:
    before = set(threading.enumerate())
    with pytest.raises(sim.SceneUrlError, match="did you mean 'seed'"):
        sim.launch("sim://street?sed=1")
    with pytest.raises(ValueError, match="kinds: stall"):
        sim.launch(SMALL.format(1), faults=["fire"])
    assert set(threading.enumerate()) <= before


def test_truth_on_the_command_line_is_the_truth_of_the_stream(spec: SceneSpec, watch: Watch) -> None:
    with sim.launch(str(spec)) as camera:
        index = frame_index(watch(camera.rtsp_url, 3)[-1])
    assert index is not None
    result = run("truth", str(spec), "--frames", f"{index}:{index + 2}")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["frame"] for line in lines] == [index, index + 1]
    expected = [
        {"label": box.label, "id": box.object_id, "box": list(box.box), "visible": box.visible}
        for box in Street(spec).truth(index)
    ]
    assert lines[0]["objects"] == expected


def test_picture_saves_a_frame(tmp_path: Path, spec: SceneSpec) -> None:
    assert run("picture", str(spec), str(tmp_path / "street.png"), "--frame", "9").returncode == 0
    assert (cv2.imread(str(tmp_path / "street.png")) == Street(spec).render(9)[0]).all()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serve"], "either a sim:// URL or --file"),
        (["serve", "sim://street?fps=0"], "from 1 to 60"),
        (["serve", "--file", "/nowhere/clip.mp4"], "/nowhere/clip.mp4"),
        (["serve", "sim://street", "--user", "ann"], "SPARSECAM_SIM_PASSWORD"),
        (["truth", "sim://street", "--frames", "5"], "FIRST:END"),
        (["picture", "sim://street?size=160x96", "/nowhere/a.png"], "cannot write"),
    ],
)
def test_mistakes_on_the_command_line_end_with_a_sentence(arguments: list[str], says: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2 and says in result.stderr and "Traceback" not in result.stderr


def test_serve_by_hand_prints_its_url_and_ends_on_interrupt(clip: Path, watch: Watch) -> None:
    command = [sys.executable, "-m", "ingest.sim", "serve", "--file", str(clip), "--port", "0"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert len(watch(url, 3)) == 3
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 0
