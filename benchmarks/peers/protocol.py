"""What every peer does alike: take the driver's arguments, pin itself, warm up, time frames, print one JSON line.

Python's own library only: this file is imported in each peer's environment.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path

# The first frames touch fresh memory and grow buffers; 50 were enough for every peer's rate to settle.
WARM_UP_FRAMES = 50


@dataclass(frozen=True)
class Job:
    """What the driver asks of a peer."""

    video: Path
    model: Path
    frames: int
    cores: tuple[int, ...]
    conf_thres: float
    iou_thres: float


@dataclass(frozen=True)
class Result:
    """One peer's answer: `frames` frames from file to boxes took `seconds`, warm-up excluded."""

    peer: str
    frames: int
    seconds: float
    fps: float
    cpu_seconds: float | None  # of all the peer's threads; None where it does not tell
    detections: int | None  # boxes in all the timed frames; None where it does not tell
    versions: dict[str, str]
    engine: str | None = None  # where the peer chose it itself


def job_from(extra: Callable[[argparse.ArgumentParser], None] | None = None) -> tuple[Job, argparse.Namespace]:
    """Read a peer's command line and pin this process, and every thread it will start, to the job's cores."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--frames", type=int, required=True)
    parser.add_argument("--cores", type=lambda text: tuple(map(int, text.split(","))), required=True)
    parser.add_argument("--conf-thres", type=float, default=0.25)
    parser.add_argument("--iou-thres", type=float, default=0.45)
    if extra:
        extra(parser)
    options = parser.parse_args()
    # Before any library starts its threads: they inherit it, and size their pools by it.
    os.sched_setaffinity(0, options.cores)
    job = Job(options.video, options.model, options.frames, options.cores, options.conf_thres, options.iou_thres)
    return job, options


def measure(peer: str, job: Job, boxes_per_frame: Iterator[int], packages: tuple[str, ...]) -> Result:
    """Pull frames through an endless pipeline that yields each frame's number of boxes."""
    _pull(boxes_per_frame, WARM_UP_FRAMES)
    cpu, start = time.process_time(), time.perf_counter()
    detections = _pull(boxes_per_frame, job.frames)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    versions = {package: version(package) for package in packages}
    return Result(peer, job.frames, seconds, job.frames / seconds, cpu_seconds, detections, versions)


def report(result: Result) -> None:
    """Print the line that the driver reads: the last one on stdout, whatever the libraries printed before it."""
    print("\n" + json.dumps(asdict(result)), flush=True)


def _pull(boxes_per_frame: Iterator[int], frames: int) -> int:
    counts = list(islice(boxes_per_frame, frames))
    if len(counts) < frames:
        raise SystemExit(f"the pipeline ended after {len(counts)} of {frames} frames")
    return sum(counts)
