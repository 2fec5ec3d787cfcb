"""Hyperparameters of training: names, meanings and defaults as YOLOv5's users know them from its `hyp` files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer import plain_yaml
from trainer.errors import TrainerError

# In YOLOv5's own files, and nothing here: what each would ask for, "" where its own code does not read it either.
_UNUSED = {"iou_t": "", "fl_gamma": "focal loss", "copy_paste": "copying objects by their masks"}
_ANCHORS = 3  # a level; YOLOv5 rounds what its files say, and takes 0 for the model's own
_SIZE_LIMIT = 1 << 20  # bytes of a hyp file: thirty numbers, generously


class Hyp(BaseModel):
    """Defaults are those published for training from random weights on COCO ("scratch-low"), at batch 64."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lr0: float = Field(0.01, gt=0, le=10, description="Learning rate after the warm-up, for SGD at batch 64.")
    lrf: float = Field(0.01, gt=0, le=1, description="Last learning rate, as a share of lr0.")
    momentum: float = Field(0.937, ge=0, lt=1, description="Momentum of SGD, beta1 of Adam.")
    weight_decay: float = Field(0.0005, ge=0, le=1, description="L2 on the weights of convolutions, at batch 64.")
    warmup_epochs: float = Field(3.0, ge=0, le=100, description="Epochs of warm-up; a fraction may be given.")
    warmup_momentum: float = Field(0.8, ge=0, lt=1, description="Momentum at the first step.")
    warmup_bias_lr: float = Field(0.1, ge=0, le=10, description="Learning rate of the biases at the first step.")
    nominal_batch: int = Field(
        64, ge=1, le=4096, description="Gradients of smaller batches are summed up to about this many pictures a step."
    )
    box: float = Field(0.05, gt=0, le=10, description="Gain of the box loss.")
    cls: float = Field(0.5, ge=0, le=10, description="Gain of the class loss, scaled with the number of classes.")
    cls_pw: float = Field(1.0, gt=0, le=100, description="Weight of positives in the class loss.")
    obj: float = Field(1.0, gt=0, le=10, description="Gain of the objectness loss, scaled with the picture's area.")
    obj_pw: float = Field(1.0, gt=0, le=100, description="Weight of positives in the objectness loss.")
    distill: float = Field(1.0, gt=0, le=100, description="Gain of what a teacher says, beside the truth.")
    distill_maps: float = Field(
        0.5, ge=0, le=100, description="Gain of the blocks' maps of a teacher of the same shape; 0: answers alone."
    )
    anchor_t: float = Field(4.0, gt=1, le=20, description="Boxes up to this many times an anchor's side belong to it.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share by which class targets move off 0 and 1.")
    hsv_h: float = Field(0.015, ge=0, le=1, description="Hue changes by up to this share.")
    hsv_s: float = Field(0.7, ge=0, le=1, description="Saturation changes by up to this share.")
    hsv_v: float = Field(0.4, ge=0, le=1, description="Brightness changes by up to this share.")
    degrees: float = Field(0.0, ge=0, le=180, description="Rotation of up to +-degrees.")
    translate: float = Field(0.1, ge=0, le=0.9, description="Shift of up to +-this share of the side.")
    scale: float = Field(0.5, ge=0, lt=1, description="Scale of 1 +-up to this.")
    shear: float = Field(0.0, ge=0, le=90, description="Shear of up to +-degrees.")
    perspective: float = Field(0.0, ge=0, le=0.001, description="Perspective, as a factor a pixel.")
    flipud: float = Field(0.0, ge=0, le=1, description="Probability of a flip upside down.")
    fliplr: float = Field(0.5, ge=0, le=1, description="Probability of a flip left to right.")
    mosaic: float = Field(1.0, ge=0, le=1, description="Probability of four pictures in one.")
    close_mosaic: int = Field(
        0, ge=0, le=100_000, description="Last epochs without mosaic and mixup, to end on pictures as they are in use."
    )
    mixup: float = Field(0.0, ge=0, le=1, description="Probability of blending two mosaics.")


def read_hyp(path: Path | None) -> Hyp:
    """The file's values over the defaults; raises TrainerError naming the file and each bad line's field."""
    if path is None:
        return Hyp.model_validate({})
    try:
        if path.stat().st_size > _SIZE_LIMIT:
            raise TrainerError(f"{path}: larger than {_SIZE_LIMIT} bytes; expected a YAML file of hyperparameters")
        values = plain_yaml.load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrainerError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise TrainerError(f"{path}: expected a mapping such as `lr0: 0.01`, found {type(values).__name__}")
    faults = list(_asked_in_vain(values))
    try:
        hyp = Hyp.model_validate({key: value for key, value in values.items() if key not in (*_UNUSED, "anchors")})
    except ValidationError as error:
        faults += [f"{'.'.join(map(str, it['loc']))}: {it['msg']}" for it in error.errors()]
    if faults:
        raise TrainerError(f"{path}: {'; '.join(faults)}. Known: {', '.join(Hyp.model_fields)}")
    return hyp


def _asked_in_vain(values: Mapping[Any, Any]) -> Iterator[str]:
    """What is wrong with the values of YOLOv5's files that change nothing here."""
    for key, what in {**_UNUSED, "anchors": ""}.items():
        value = values.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int | float):
            yield f"{key}: {value!r}; expected a number"
        elif what and value != 0:
            yield f"{key}: {value} asks for {what}, which is not done here; expected 0, or the line left out"
        elif key == "anchors" and value != 0 and round(value) != _ANCHORS:
            yield f"anchors: {value}; expected {_ANCHORS}, since networks here have as many a level"
