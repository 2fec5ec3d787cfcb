"""What a training leaves behind at the end of an epoch, and takes up again: plain data and tensors in one file."""

from __future__ import annotations

import os
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.errors import CheckpointError
from trainer.unpickle import unpickle

VERSION = 1  # of the layout below
UNKNOWN = -1  # epochs finished, where nobody has told; public checkpoints say so when training is over


@dataclass
class Progress:
    """How far a training is."""

    epoch: int = 0  # epochs finished
    best_fitness: float = -1.0
    best_epoch: int = -1  # counted from 0; -1: none yet
    ema_steps: int = 0
    batch_size: int = 0  # may be smaller than asked for, see --auto-batch


@dataclass(frozen=True)
class Saved:
    """One checkpoint of ours. `optimizer` and `network` are None in a file made for use, not for going on."""

    ema: dict[str, Tensor]
    network: dict[str, Tensor] | None
    optimizer: dict[str, Any] | None
    scaler: dict[str, Any]  # of the losses, see torch.amp.GradScaler; empty where nothing is scaled
    progress: Progress
    facts: dict[str, Any]  # names, activation, image_size, recipe, recipe_epoch, train: as `read_checkpoint` wants them


def write_saved(path: Path, saved: Saved) -> None:
    """Write whole or not at all, so that a killed training finds its last epoch. Raises OSError."""
    data = {
        "sparsecam": VERSION,
        "ema": saved.ema,
        "model": saved.network,
        "optimizer": saved.optimizer,
        "scaler": saved.scaler,
        "progress": asdict(saved.progress),
        **saved.facts,
    }
    # A name of its own: of two that write at once the last one wins, and neither breaks the other's file.
    unfinished = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.unfinished")
    try:
        with unfinished.open("xb") as file:
            torch.save(data, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        # On a full disk PyTorch complains of a place in the file, and why it is there stands behind that.
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def is_ours(path: Path) -> bool:
    """Whether a file is one that `write_saved` wrote, and can be read."""
    try:
        data = _read(path)
    except CheckpointError:
        return False
    return isinstance(data, dict) and data.get("sparsecam") == VERSION


def read_saved(path: Path) -> Saved:
    """Read what `write_saved` wrote, for going on; raises CheckpointError."""
    data = _read(path)
    if not isinstance(data, dict) or data.get("sparsecam") != VERSION:
        raise CheckpointError(f"{path}: no checkpoint of a training of ours; to start from its weights give --weights")
    if not isinstance(data.get("optimizer"), dict) or not isinstance(data.get("model"), dict):
        raise CheckpointError(f"{path}: holds no optimizer, so nothing to go on with; --resume wants weights/last.pt")
    known = ("sparsecam", "ema", "model", "optimizer", "scaler", "progress")
    facts = {key: value for key, value in data.items() if key not in known}
    # Files from before the scale was kept have none: it is found anew, within some hundred steps.
    scaler = data.get("scaler", {})
    return Saved(data["ema"], data["model"], data["optimizer"], scaler, Progress(**data["progress"]), facts)


def _read(path: Path) -> Any:
    try:
        return unpickle(path.read_bytes(), path.name)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
