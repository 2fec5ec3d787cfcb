"""Files of hyperparameters that people have from YOLOv5 are read, and what they ask for in vain is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.errors import TrainerError
from trainer.hyp import Hyp, read_hyp

# YOLOv5's hyp.scratch-low.yaml, its comments left out.
SCRATCH_LOW = """
lr0: 0.01
lrf: 0.01
momentum: 0.937
weight_decay: 0.0005
warmup_epochs: 3.0
warmup_momentum: 0.8
warmup_bias_lr: 0.1
box: 0.05
cls: 0.5
cls_pw: 1.0
obj: 1.0
obj_pw: 1.0
iou_t: 0.20
anchor_t: 4.0
fl_gamma: 0.0
hsv_h: 0.015
hsv_s: 0.7
hsv_v: 0.4
degrees: 0.0
translate: 0.1
scale: 0.5
shear: 0.0
perspective: 0.0
flipud: 0.0
fliplr: 0.5
mosaic: 1.0
mixup: 0.0
copy_paste: 0.0
"""


def test_yolov5s_own_file_is_taken_and_says_what_our_defaults_are(tmp_path: Path) -> None:
    path = tmp_path / "hyp.scratch-low.yaml"
    path.write_text(SCRATCH_LOW)
    assert read_hyp(path) == Hyp() == read_hyp(None)
    path.write_text(f"{SCRATCH_LOW}anchors: 3.2\n")  # as in hyp.Objects365.yaml
    assert read_hyp(path) == Hyp()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("fl_gamma: 0.0", "anchors: 4.1", "anchors: 4.1; expected 3, since networks here have as many a level"),
        ("fl_gamma: 0.0", "fl_gamma: 1.5", "fl_gamma: 1.5 asks for focal loss, which is not done here; expected 0"),
        ("copy_paste: 0.0", "copy_paste: 0.1", "copy_paste: 0.1 asks for copying objects by their masks"),
        ("iou_t: 0.20", "iou_t: low", "iou_t: 'low'; expected a number"),
        ("lr0: 0.01", "lr0: 11", "lr0: Input should be less than or equal to 10"),
        ("lr0: 0.01", "lr: 0.01", "lr: Extra inputs are not permitted. Known: lr0, "),
        ("lr0: 0.01", "lr0: 2021-99-99", "'2021-99-99' reads as a timestamp, but is none"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "hyp.yaml"
    path.write_text(SCRATCH_LOW.replace(old, new))
    with pytest.raises(TrainerError) as caught:
        read_hyp(path)
    assert str(caught.value).startswith(f"{path}: ") and words in str(caught.value)
