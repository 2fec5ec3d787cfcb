"""What a training is asked for: the words of `sparsecam train`, which are those YOLOv5's users know."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from trainer.errors import TrainerError
from trainer.layers import Activation
from trainer.model import SIZES, STRIDES
from trainer.optimizer import OptimizerName


class TrainSettings(BaseModel):
    """One training. Sizes in pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Path = Field(description="data.yaml of a data set in YOLO's format.")
    cfg: str = Field(
        "", description="yolov5n, s, m, l or x, with -hardswish for that activation. Empty: as the weights."
    )
    weights: Path | None = Field(
        None, description="Checkpoint, or ONNX export of ours, to start from. Empty: random weights."
    )
    teacher: Path | None = Field(
        None, description="A trained network whose answers are learnt beside the truth. Empty: none."
    )
    recipe: str = Field("", description="A recipe's name or file. Empty: a dense training.")
    recipe_args: dict[str, float | int | str] = Field({}, description="Values in place of the recipe's own.")
    hyp: Path | None = Field(None, description="YAML file of hyperparameters over the defaults.")
    img: int = Field(640, ge=32, le=4096, description="Side of the training pictures, a multiple of 32.")
    batch_size: int = Field(16, ge=1, le=4096, description="Pictures in a batch, of one process.")
    epochs: int = Field(100, ge=1, le=100_000, description="Times through the data; a recipe's own count wins.")
    optimizer: OptimizerName = Field("SGD", description="SGD, Adam or AdamW.")
    linear_lr: bool = Field(False, description="Learning rate falls in a straight line instead of a cosine.")
    project: Path = Field(Path("runs/train"), description="Folder of runs.")
    name: str = Field(
        "exp", min_length=1, max_length=100, description="The run's own folder in it; a taken one counts on."
    )
    exist_ok: bool = Field(False, description="Write into a folder that is there, over its run.")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?|\d+)$", description="auto, cpu, cuda or a GPU's number."
    )
    precision: str = Field(
        "auto", pattern="^(auto|fp32|bf16|fp16)$", description="Of the forward pass; auto: fastest here."
    )
    workers: int = Field(1, ge=0, le=64, description="Processes that prepare pictures; 0: none but this one.")
    cache: bool = Field(True, description="Keep decoded pictures in memory where they fit.")
    seed: int = Field(0, ge=0, lt=2**31, description="Of the weights and of every picture's changes.")
    patience: int = Field(
        100, ge=0, le=100_000, description="Stop after so many epochs without a better one; 0: never."
    )
    val_every: int = Field(1, ge=1, le=1000, description="Validate every so many epochs, and after the last.")
    auto_batch: bool = Field(False, description="Out of memory: halve the batch and go on from the last epoch.")
    freeze: int = Field(0, ge=0, le=24, description="First layers that stay as they are.")
    log: tuple[str, ...] = Field(("tensorboard",), description="tensorboard, wandb, mlflow.")

    @field_validator("img")
    @classmethod
    def _img(cls, value: int) -> int:
        if value % STRIDES[-1]:
            raise ValueError(f"{value} is no multiple of {STRIDES[-1]}, the head's coarsest stride")
        return value

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if Path(value).name != value or value.startswith("."):
            raise ValueError("expected the name of a folder, without slashes")
        return value

    @field_validator("cfg")
    @classmethod
    def _cfg(cls, value: str) -> str:
        if value:
            parse_cfg(value)
        return value


# What a run that goes on may be told anew: where it runs and its data lie. The rest would make another training of it.
CHANGEABLE = ("data", "batch_size", "auto_batch", "device", "workers", "cache", "log")


def parse_settings(values: Mapping[str, Any]) -> TrainSettings:
    """The settings of these words; raises TrainerError naming every option that is wrong."""
    try:
        return TrainSettings.model_validate(dict(values))
    except ValidationError as error:
        faults = [f"{option(*(str(part) for part in it['loc']))}: {it['msg']}" for it in error.errors()]
        raise TrainerError("; ".join(faults)) from error


def option(*words: str) -> str:
    """A setting as one gives it on the command line."""
    name = "-".join(words).replace("_", "-")
    return "--logger" if name == "log" else f"--{name}"


def parse_cfg(text: str) -> tuple[str, Activation]:
    """(size, activation) of `yolov5n`, `yolov5s-hardswish`, `models/yolov5n.yaml`…; raises ValueError."""
    word = text.rsplit("/", 1)[-1].removesuffix(".yaml").removesuffix(".yml").lower()
    size, _, activation = word.removeprefix("yolov5").replace(".", "-").replace("_", "-").partition("-")
    if size not in SIZES or activation not in ("", "silu", "hardswish"):
        raise ValueError(
            f"{text!r} is no YOLOv5 of ours; expected yolov5 + one of {', '.join(SIZES)}, then nothing, "
            "-silu or -hardswish"
        )
    return size, "hardswish" if activation == "hardswish" else "silu"
