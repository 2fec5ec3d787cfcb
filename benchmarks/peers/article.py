"""The reference article's loop, written tightly: read, letterbox, one engine on all cores, NMS, draw; one process.

Independent of the product on purpose: it stands for what a reader of the article would write, with no waste that a
careful reader would leave in (no copy that OpenCV can do in place, candidates filtered before anything else).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers.protocol import Job, job_from, measure, report

GREY = 114  # YOLOv5's letterbox padding


def boxes_per_frame(job: Job) -> Iterator[int]:
    """Endless: each frame's number of boxes after NMS, drawn on the frame."""
    os.environ["NM_DISABLE_ANALYTICS"] = "1"  # DeepSparse reports to its makers unless told before its import
    import cv2
    import numpy as np
    from deepsparse import Engine

    from benchmarks.peers.looped import frames

    with tempfile.TemporaryDirectory() as folder:
        # DeepSparse 1.8 may rewrite the file it is given.
        engine = Engine(str(shutil.copy(job.model, Path(folder) / "model.onnx")), 1, num_cores=len(job.cores))
    _, _, side, _ = engine.input_shapes[0]
    square = np.full((side, side, 3), GREY, np.uint8)
    tensor = np.empty((1, 3, side, side), np.uint8)
    for frame in frames(job.video):
        height, width = frame.shape[:2]
        scale = side / max(height, width)
        inner_height, inner_width = round(height * scale), round(width * scale)
        top, left = (side - inner_height) // 2, (side - inner_width) // 2
        square[top : top + inner_height, left : left + inner_width] = cv2.resize(frame, (inner_width, inner_height))
        cv2.split(square, [tensor[0, 2], tensor[0, 1], tensor[0, 0]])  # BGR to RGB planes
        rows = engine.run([tensor])[0][0]
        boxes = (nms(rows, job.conf_thres, job.iou_thres) - (left, top, left, top)) / scale
        for x0, y0, x1, y1 in boxes.astype(int).tolist():
            cv2.rectangle(frame, (x0, y0), (x1, y1), (0, 0, 255), 2)
        yield len(boxes)


def nms(rows: Any, conf_thres: float, iou_thres: float) -> Any:
    """Boxes (n, 4) kept, as corners, of a decoded YOLOv5 head (m, 5 + 1) of one class."""
    import numpy as np

    rows = rows[rows[:, 4] > conf_thres]
    scores = rows[:, 4] * rows[:, 5:].max(axis=1, initial=0)
    rows, scores = rows[scores > conf_thres], scores[scores > conf_thres]
    rows = rows[np.argsort(-scores)]
    half = rows[:, 2:4] / 2
    boxes = np.concatenate([rows[:, :2] - half, rows[:, :2] + half], axis=1)
    kept = []
    while len(boxes):
        best, boxes = boxes[0], boxes[1:]
        kept.append(best)
        overlap = np.clip(np.minimum(best[2:], boxes[:, 2:]) - np.maximum(best[:2], boxes[:, :2]), 0, None).prod(1)
        union = (best[2:] - best[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - overlap
        boxes = boxes[overlap <= iou_thres * union]
    return np.array(kept).reshape(-1, 4)


if __name__ == "__main__":
    job, _ = job_from()
    packages = ("deepsparse", "opencv-python-headless", "numpy")
    report(measure("article", job, boxes_per_frame(job), packages))
