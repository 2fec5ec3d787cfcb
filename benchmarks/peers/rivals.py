"""The peers: which there are, what each needs, and how to run one of them once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from benchmarks.peers import sparsecam
from benchmarks.peers.protocol import Job, Result
from benchmarks.peers.venvs import Environment, PeerUnavailable, ready

log = structlog.get_logger()

REPOSITORY = Path(__file__).resolve().parents[2]
_EXPORT_TIMEOUT_S = 600  # an INT8 export takes 15 s here, with its calibration

# torchvision 0.28 goes with torch 2.13.
DEEPSPARSE = Environment(
    "deepsparse",
    ("deepsparse==1.8.0", "torch==2.13.0", "numpy<2", "opencv-python-headless==4.10.0.84", "pillow"),
    torchvision="0.28.0",
)
ULTRALYTICS = Environment(
    "ultralytics",
    (
        "torch==2.13.0",
        "openvino==2026.4.1",
        "nncf==3.4.0",
        "opencv-python-headless==4.10.0.84",
        *("matplotlib", "nvidia-ml-py", "pillow", "polars", "psutil", "pyyaml", "requests"),  # what Ultralytics imports
    ),
    packages_alone=("ultralytics==8.4.190", "ultralytics-thop", "ultralytics-platform"),
    torchvision="0.28.0",
)
# Ultralytics would otherwise install packages by itself while it runs, and look for newer versions of itself.
_ULTRALYTICS_SWITCHES = {"YOLO_AUTOINSTALL": "false", "YOLO_OFFLINE": "true"}


@dataclass(frozen=True)
class Settings:
    """How peers run: where their environments are, how long one run may take, and the shape Ultralytics gets."""

    cache: Path
    timeout_s: float
    ultralytics_shape: tuple[int, int] = (256, 416)  # height, width
    ultralytics_classes: int = 1
    sparsecam_engine: str = "auto"  # what its users get; the article's loop keeps to DeepSparse


@dataclass(frozen=True)
class Peer:
    """A name and how to make it ready: `prepare` gives the function that runs it once; it raises PeerUnavailable."""

    name: str
    what: str
    prepare: Callable[[str, Job, Settings], Callable[[], Result]]


def _article(name: str, job: Job, settings: Settings) -> Callable[[], Result]:
    return partial(run_script, name, Path(sys.executable), "article", job, settings)


def _deepsparse_pipeline(name: str, job: Job, settings: Settings) -> Callable[[], Result]:
    return partial(run_script, name, ready(DEEPSPARSE, settings.cache), "deepsparse_pipeline", job, settings)


def _ultralytics(name: str, job: Job, settings: Settings, *, int8: bool) -> Callable[[], Result]:
    python = ready(ULTRALYTICS, settings.cache)
    height, width = settings.ultralytics_shape
    shape, kind = f"{height}x{width}", "int8" if int8 else "fp32"
    exported = python.parents[1] / f"yolov5n-{kind}-{shape}-{settings.ultralytics_classes}_openvino_model"
    if not exported.exists():
        log.info("exporting a peer's model, once", peer=name, model=str(exported))
        arguments = ["--video", str(job.video.resolve()), "--out", str(exported), "--shape", shape]
        arguments += ["--classes", str(settings.ultralytics_classes)]
        _run(
            [str(python), "-m", "benchmarks.peers.ultralytics_export", *arguments, *["--int8"] * int8],
            _EXPORT_TIMEOUT_S,
            _environment(settings),
        )
    return partial(
        run_script,
        name,
        python,
        "ultralytics_predict",
        job,
        settings,
        ("--peer", name, "--exported", str(exported), "--shape", shape),
    )


def _sparsecam(name: str, job: Job, settings: Settings, *, arguments: tuple[str, ...] = ()) -> Callable[[], Result]:
    return partial(sparsecam.run, name, job, settings.timeout_s, settings.sparsecam_engine, arguments)


PEERS = (
    Peer("article", "the article's loop: square letterbox, one engine on all cores, one process", _article),
    Peer("deepsparse-pipeline", "DeepSparse's own YOLO pipeline", _deepsparse_pipeline),
    Peer("ultralytics-fp32", "predict(stream=True), YOLOv5n, OpenVINO format", partial(_ultralytics, int8=False)),
    Peer("ultralytics-int8", "the same, OpenVINO INT8 format", partial(_ultralytics, int8=True)),
    Peer("sparsecam", "`sparsecam bench pipeline`, decode to alert, rectangular", _sparsecam),
    Peer("sparsecam-square", "the same, letterboxed into the square", partial(_sparsecam, arguments=("--square",))),
)


def run_script(
    name: str, python: Path, script: str, job: Job, settings: Settings, extra: tuple[str, ...] = ()
) -> Result:
    """One run of a peer's script in its environment; raises PeerUnavailable."""
    command = [str(python), "-m", f"benchmarks.peers.{script}"]
    command += ["--video", str(job.video.resolve()), "--model", str(job.model.resolve())]
    command += ["--frames", str(job.frames), "--cores", ",".join(map(str, job.cores))]
    command += ["--conf-thres", str(job.conf_thres), "--iou-thres", str(job.iou_thres), *extra]
    lines = _run(command, settings.timeout_s, _environment(settings)).splitlines()
    try:
        return Result(**json.loads(lines[-1]))
    except (IndexError, ValueError, TypeError) as error:
        raise PeerUnavailable(f"{name}: its last line is not a result: {error!r}") from error


def _environment(settings: Settings) -> dict[str, str]:
    own = {"PYTHONPATH": str(REPOSITORY), "YOLO_CONFIG_DIR": str(settings.cache)}
    return {**os.environ, **_ULTRALYTICS_SWITCHES, **own}


def _run(command: list[str], timeout_s: float, environment: dict[str, str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, env=environment, cwd=REPOSITORY, check=False
        )
    except subprocess.TimeoutExpired:
        raise PeerUnavailable(f"took over {timeout_s:.0f} s") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise PeerUnavailable(f"exited {done.returncode}: {said[-1] if said else 'no message'}")
    return done.stdout
