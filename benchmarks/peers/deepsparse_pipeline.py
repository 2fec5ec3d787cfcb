"""DeepSparse's own YOLO pipeline, fed by OpenCV and used as its documentation shows.

It stretches each frame to the model's square instead of letterboxing it and does not turn BGR into RGB, so its boxes
are worse than the others'; only its speed is compared.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers.protocol import Job, job_from, measure, report


def boxes_per_frame(job: Job) -> Iterator[int]:
    """Endless: each frame's number of boxes."""
    os.environ["NM_DISABLE_ANALYTICS"] = "1"  # DeepSparse reports to its makers unless told before its import
    from deepsparse import Pipeline

    from benchmarks.peers.looped import frames

    with tempfile.TemporaryDirectory() as folder:
        # DeepSparse 1.8 may rewrite the file it is given.
        copy = shutil.copy(job.model, Path(folder) / "model.onnx")
        pipeline = Pipeline.create(task="yolo", model_path=str(copy), class_names=None, num_cores=len(job.cores))
        for frame in frames(job.video):
            yield len(pipeline(images=[frame], conf_thres=job.conf_thres, iou_thres=job.iou_thres).boxes[0])


if __name__ == "__main__":
    job, _ = job_from()
    packages = ("deepsparse", "torch", "torchvision", "opencv-python-headless", "numpy")
    report(measure("deepsparse-pipeline", job, boxes_per_frame(job), packages))
