"""Quantise, and if wanted prune, a trained network at once: from some pictures, without training."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from trainer.bias import correct_biases
from trainer.checkpoint import Checkpoint, build
from trainer.errors import CheckpointError, TrainerError
from trainer.facts import Facts
from trainer.from_onnx import unfold
from trainer.model import YoloV5
from trainer.recipes import read_recipe
from trainer.reconstruct import reconstruct
from trainer.saved import UNKNOWN, Progress, Saved, write_saved
from trainer.sparsify import apply_structure, prune_at_once

RECIPE = "yolov5.quantized"
_RECIPE_EPOCH = 1.0  # its only one is over


def oneshot(checkpoint: Checkpoint, batches: Iterable[Tensor], *, sparsity: float = 0.0) -> tuple[YoloV5, str]:
    """(quantised network in eval mode, the recipe that rebuilds its layers).

    `batches` of pictures (batch, 3, h, w) uint8 RGB, as the network will see them: ranges of activations are the mean
    over batches, and by what rounding moves the mean of a layer's answers its biases are corrected. `sparsity` above 0
    first makes that share of the weights zero, evenly over the layers that `yolov5.pruned` names, reconstructs the
    layers from what is left, and takes the statistics of the normalisations anew. Raises TrainerError for no pictures,
    CheckpointError for a network that is quantised already: its ranges would be learnt on top of its own rounding.
    """
    if checkpoint.quantised is not None:
        raise CheckpointError(
            f"{checkpoint.name}: quantised already; expected weights in floats: the checkpoint that it was made from, "
            "or its ONNX export, whose integers are read back as floats"
        )
    kept = list(batches)
    if not kept:
        raise TrainerError("no pictures to watch; expected some dozens like those the network will see")
    network = build(checkpoint)
    if sparsity > 0:
        if checkpoint.folded:
            unfold(network, kept)  # normalisations of its own, which can be taken anew below
        dense = copy.deepcopy(network)
        prune_at_once(network, _pruning(sparsity))
        reconstruct(network.eval(), dense, kept)
        _renew_statistics(network, kept)
    recipe = read_recipe(RECIPE, num_epochs=1, quantization_start=0)
    apply_structure(network, recipe, _RECIPE_EPOCH)
    network.train()  # ranges are learnt in training only; normalisations are frozen by then
    _show(network, kept)
    correct_biases(network.eval(), kept)
    return network, recipe


def write_oneshot(path: Path, network: nn.Module, recipe: str, checkpoint: Checkpoint, source: Facts) -> None:
    """A checkpoint as `sparsecam train` leaves them, for `export` and `val`.

    Data, epochs and licence are those of its source: nothing was trained. Scores are not: they are of its floats.
    """
    names = checkpoint.labels or {number: f"class{number}" for number in range(checkpoint.classes)}
    facts = {
        "names": names,
        "activation": checkpoint.activation,
        "size": checkpoint.size,
        "image_size": list(checkpoint.image_size),
        "recipe": recipe,
        "recipe_epoch": _RECIPE_EPOCH,
        "dataset": source.dataset,
        "licence": source.licence,
        "train": {"recipe": "oneshot", "weights": checkpoint.name},
    }
    progress = Progress(epoch=UNKNOWN if source.epochs is None else source.epochs)
    write_saved(path, Saved(network.state_dict(), None, None, {}, progress, facts))


def _pruning(sparsity: float) -> str:
    shares = {"sparsity_early": sparsity, "sparsity_middle": sparsity, "sparsity_deep": sparsity}
    return read_recipe("yolov5.pruned", **shares)


@torch.no_grad()
def _renew_statistics(network: nn.Module, batches: list[Tensor]) -> None:
    """Mean and variance of every normalisation from these pictures, each batch counting alike."""
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # PyTorch's word for the plain mean
    network.train()
    _show(network, batches)
    for layer, momentum in zip(layers, before, strict=True):
        layer.momentum = momentum
    network.eval()


@torch.no_grad()
def _show(network: nn.Module, batches: list[Tensor]) -> None:
    for pictures in batches:
        network(pictures.float() / 255)
