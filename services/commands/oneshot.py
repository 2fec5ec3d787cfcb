"""`sparsecam oneshot`: a trained checkpoint in, a quantised one out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import typer

from services.training import MissingExtra

try:
    from trainer.data.config import read_data
    from trainer.data.dataset import ValSet
    from trainer.data.pictures import open_pictures
    from trainer.errors import CheckpointError, TrainerError
    from trainer.facts import read_facts
    from trainer.network import load_checkpoint
    from trainer.oneshot import oneshot as run_oneshot
    from trainer.oneshot import write_oneshot
    from trainer.sparsify import sparsity as zeros_of
except ImportError as error:
    raise MissingExtra(error) from error

_BATCH = 8  # pictures: ranges are means over batches, and some dozens of batches are enough


def oneshot(weights: Path, data: Path, out: Path | None, *, pictures: int, sparsity: float, img: int | None) -> int:
    """Write the quantised checkpoint to `out`, in a folder made for it where there is none; raises TrainerError."""
    target = out or weights.with_name(f"{weights.stem}-oneshot.pt")
    if target.resolve() == weights.resolve():
        raise CheckpointError(f"{target}: would overwrite its own source; give another --out")
    checkpoint = load_checkpoint(weights)
    source = read_facts(weights.read_bytes(), weights.name)
    config = read_data(data)
    if checkpoint.classes != len(config.names):
        typer.echo(f"note: the checkpoint has {checkpoint.classes} classes, the data {len(config.names)}", err=True)
    if img is not None:
        checkpoint = dataclasses.replace(checkpoint, image_size=(img, img))
    paths = config.train[:: max(len(config.train) // pictures, 1)][:pictures]
    opened = open_pictures(paths, len(config.names), max(checkpoint.image_size), training=False, cache_bytes=0)
    batches = (batch.pictures for batch in ValSet(opened, batch_size=_BATCH))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)  # before the work, which would be lost
    except OSError as error:
        raise TrainerError(
            f"--out {target}: its folder cannot be made: {error.strerror}; give another --out"
        ) from error
    network, recipe = run_oneshot(checkpoint, batches, sparsity=sparsity)
    write_oneshot(target, network, recipe, checkpoint, source)
    shares = zeros_of(network)
    typer.echo(
        f"{target}: quantised from {len(paths)} pictures, {100 * max(shares.values()):.0f} % zeros at most a layer"
    )
    return 0
