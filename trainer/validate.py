"""A network's scores on a data set, in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.data.dataset import ValBatch
from trainer.loss import Loss
from trainer.metrics import Found, Scores, Truth, evaluate
from trainer.network import head_of

# Rows (n, 5 + classes) as the head decodes them, to what is found in pixels of the same picture: NMS is the caller's.
Postprocess = Callable[[NDArray[np.float32]], Found]


@dataclass(frozen=True)
class Validated:
    """Scores, and the parts of the loss (box, objectness, class) as means over the batches."""

    scores: Scores
    losses: tuple[float, float, float]


def validate(
    network: nn.Module,
    batches: Iterable[ValBatch],
    names: tuple[str, ...],
    postprocess: Postprocess,
    *,
    loss: Loss | None = None,
    device: torch.device,
    show: Callable[[ValBatch, Sequence[Found]], None] = lambda _batch, _found: None,
) -> Validated:
    """Detect on every picture, in fp32 and in eval mode; boxes are compared in pixels of the source pictures.

    `show` gets each batch and what was found in it, in the batch's own pixels.
    """
    head, was_training = head_of(network), network.training
    network.eval()
    truths: list[Truth] = []
    founds: list[Found] = []
    parts: list[Tensor] = []
    try:
        for batch in batches:
            with torch.no_grad():
                head.training = True  # itself only: raw levels for the loss, all else as in use
                pictures = batch.pictures.to(device).float().div_(255)
                raw = network(pictures.to(memory_format=torch.channels_last))
                head.training = False
                rows = head.decode([level.float() for level in raw]).cpu().numpy()
                if loss is not None:
                    parts.append(loss(raw, batch.targets.to(device))[1].cpu())
            seen = [postprocess(each) for each in rows]
            show(batch, seen)
            for found, placed in zip(seen, batch.placed, strict=True):
                truths.append(Truth(placed.boxes, placed.classes))
                boxes = placed.to_original(found.boxes.astype(np.float32))
                founds.append(Found(boxes, found.classes, found.scores))
    finally:
        head.training = False
        network.train(was_training)
    mean = torch.stack(parts).mean(0).tolist() if parts else [0.0, 0.0, 0.0]
    return Validated(evaluate(truths, founds, names), (mean[0], mean[1], mean[2]))
