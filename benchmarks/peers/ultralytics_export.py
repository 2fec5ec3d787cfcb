"""Makes Ultralytics' YOLOv5n in OpenVINO format, fp32 or INT8; runs in Ultralytics' environment, once.

Its trained weights cannot be had without a download at run time, so the network is built from Ultralytics' own
description with random weights: the network's speed is the same, and as no box passes the threshold its NMS costs
nothing, which favours it. One class by default, as the others' model has: with COCO's 80 its head is larger and slower.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

# Ultralytics warns below 300 pictures; for speed alone any number does.
CALIBRATION_FRAMES = 64


def export(video: Path, out: Path, shape: tuple[int, int], classes: int, int8: bool) -> None:
    """Write the OpenVINO model folder `out`; INT8 is calibrated on the clip's first frames."""
    from ultralytics import YOLO
    from ultralytics.utils import ROOT, YAML

    with tempfile.TemporaryDirectory() as folder:
        # The `n` in the file's name chooses the size; the export goes beside the file.
        description = Path(folder) / "yolov5n.yaml"
        YAML.save(description, {**YAML.load(ROOT / "cfg/models/v5/yolov5.yaml"), "nc": classes})
        model = YOLO(str(description))
        quantise = {"quantize": 8, "data": str(_calibration_set(video, Path(folder)))} if int8 else {}
        made = model.export(format="openvino", imgsz=list(shape), device="cpu", **quantise)
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(made, out)


def _calibration_set(video: Path, folder: Path) -> Path:
    """The clip's first frames as a data set that Ultralytics reads, each with one box (which calibration ignores)."""
    import cv2

    for name in ("images", "labels"):
        (folder / name).mkdir()
    capture = cv2.VideoCapture(str(video))
    for number in range(CALIBRATION_FRAMES):
        good, frame = capture.read()
        if not good:
            break
        cv2.imwrite(str(folder / f"images/{number}.jpg"), frame)
        (folder / f"labels/{number}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    description = folder / "data.yaml"
    description.write_text(f"path: {folder}\ntrain: images\nval: images\nnames: [object]\n")
    return description


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shape", type=lambda text: tuple(map(int, text.split("x"))), required=True)
    parser.add_argument("--classes", type=int, required=True)
    parser.add_argument("--int8", action="store_true")
    options = parser.parse_args()
    export(options.video, options.out, options.shape, options.classes, options.int8)
