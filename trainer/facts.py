"""What a model file says of itself: read from a checkpoint, written into the metadata of an ONNX file.

`names`, `stride` and `imgsz` are the keys and the forms that YOLOv5's own exports have, so other programs read them as
well; the rest are ours, each left out where it is not known.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.from_onnx import parse_onnx
from trainer.unpickle import unpickle

# The scores a training leaves a row, and what the metadata call them.
_SCORES = {
    "metrics/precision": "precision",
    "metrics/recall": "recall",
    "metrics/mAP_0.5": "map50",
    "metrics/mAP_0.5:0.95": "map50_95",
}

_EPOCH_DIGITS = 9  # anybody may have written the file; nobody trains so long


@dataclass(frozen=True)
class Facts:
    """Where a model comes from and how good training found it; empty where nobody has told."""

    dataset: str = ""  # digest of the data it was trained on
    recipe: str = ""  # the recipe's name
    epochs: int | None = None  # finished
    scores: dict[str, float] = field(default_factory=dict)  # by training's own evaluation, in PyTorch
    licence: str = ""


def read_facts(data: bytes, name: str) -> Facts:
    """The facts of a checkpoint or an export of ours; public ones have none. Raises CheckpointError."""
    if name.endswith(".onnx"):
        return _of_export(data, name)
    saved = unpickle(data, name)
    if not isinstance(saved, dict):
        return Facts()
    progress = saved.get("progress")
    epoch = progress.get("epoch") if isinstance(progress, dict) else saved.get("epoch")
    return Facts(
        dataset=_text(saved.get("dataset")),
        recipe=_recipe(saved),
        # Public checkpoints say -1: training is over.
        epochs=epoch if isinstance(epoch, int) and epoch >= 0 else None,
        scores=_scores(saved.get("results")),
        licence=_text(saved.get("licence")),
    )


def _of_export(data: bytes, name: str) -> Facts:
    """Without its scores: they are those of the network with its integers, and it is read back in floats."""
    told = {entry.key: entry.value for entry in parse_onnx(data, name).metadata_props}
    epochs = told.get("epochs", "")
    return Facts(
        dataset=told.get("dataset", ""),
        recipe=told.get("recipe", ""),
        epochs=int(epochs) if epochs.isdecimal() and len(epochs) <= _EPOCH_DIGITS else None,
        licence=told.get("license", ""),
    )


def metadata(
    facts: Facts,
    *,
    names: Mapping[int, str],
    image_size: tuple[int, int],
    strides: Sequence[int],
    anchors: Sequence[Sequence[Sequence[float]]],
    batch: int | None,
) -> dict[str, str]:
    """ONNX metadata. `image_size` is (height, width) and `anchors` (levels, anchors, 2), both in pixels."""
    told: dict[str, object] = {
        "names": dict(names),
        "imgsz": list(image_size),
        "stride": max(strides),
        "strides": list(strides),
        "anchors": [[list(anchor) for anchor in level] for level in anchors],
        "task": "detect",
        "batch": batch,
        "epochs": facts.epochs,
        "dataset": facts.dataset,
        "recipe": facts.recipe,
        "license": facts.licence,
    }
    if facts.scores:
        told["scores"] = json.dumps(facts.scores)
    return {key: str(value) for key, value in told.items() if value not in (None, "", {})}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _recipe(saved: Mapping[str, Any]) -> str:
    """The recipe's name as it was given to training; where only its text is left, just that there was one."""
    train = saved.get("train")
    named = _text(train.get("recipe")) if isinstance(train, dict) else ""
    return Path(named).name or ("unnamed" if _text(saved.get("recipe")) else "")


def _scores(rows: object) -> dict[str, float]:
    """Of the last row: a checkpoint keeps the rows up to its own epoch."""
    return _row(rows[-1]) if isinstance(rows, list | tuple) and rows else {}


def _row(row: Any) -> dict[str, float]:
    if not isinstance(row, dict):
        return {}
    values = {name: row.get(key) for key, name in _SCORES.items()}
    return {
        name: float(value) for name, value in values.items() if isinstance(value, int | float) and math.isfinite(value)
    }
