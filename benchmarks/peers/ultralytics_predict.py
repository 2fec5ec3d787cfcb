"""Ultralytics' `predict(stream=True)` on the video, with a model that `ultralytics_export.py` made."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers.protocol import Job, job_from, measure, report


def boxes_per_frame(job: Job, exported: Path, shape: tuple[int, int]) -> Iterator[int]:
    """Endless: each frame's number of boxes; the video is handed over by path, anew at each end."""
    from ultralytics import YOLO

    model = YOLO(str(exported), task="detect")
    while True:
        for result in model.predict(
            str(job.video),
            stream=True,
            imgsz=shape,
            conf=job.conf_thres,
            iou=job.iou_thres,
            device="cpu",
            verbose=False,
        ):
            yield len(result.boxes)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peer", required=True)
    parser.add_argument("--exported", type=Path, required=True, help="what the export made, instead of --model")
    parser.add_argument("--shape", type=lambda text: tuple(map(int, text.split("x"))), required=True)


if __name__ == "__main__":
    job, options = job_from(_options)
    packages = ("ultralytics", "openvino", "torch", "torchvision", "opencv-python-headless", "numpy")
    report(measure(options.peer, job, boxes_per_frame(job, options.exported, options.shape), packages))
