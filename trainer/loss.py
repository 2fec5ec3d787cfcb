"""YOLOv5's loss, from its published description: CIoU of the boxes, and cross entropy of objectness and of classes.

A box of the truth belongs to every anchor it is up to `anchor_t` times as wide and high as (or as narrow and low), in
the cell of its centre and in the two neighbouring cells that the centre lies nearest to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from trainer.boxes import ciou
from trainer.hyp import Hyp
from trainer.layers import Detect

# Weights of the objectness of each level, as published: the fine level has most cells and so the smallest mean.
BALANCE = (4.0, 1.0, 0.4)
# What the published gains are for.
_CLASSES, _SIDE = 80, 640


@dataclass(frozen=True)
class Assigned:
    """The truth of one level, k rows: where each box belongs, and what the head should say there."""

    pictures: Tensor  # (k,) integers
    anchors: Tensor  # (k,) integers, of the level's own
    rows: Tensor  # (k,) integers, cell's line
    columns: Tensor  # (k,)
    boxes: Tensor  # (k, 4) cx from the cell's corner, cy, w, h, in cells
    classes: Tensor  # (k,) integers


def assign(targets: Tensor, anchors: Tensor, height: int, width: int, anchor_t: float) -> Assigned:
    """Which cells and anchors of one level answer for which boxes.

    targets (n, 6): picture, class, cx, cy, w, h in shares of the picture; anchors (a, 2) in cells.
    """
    scale = targets.new_tensor([1, 1, width, height, width, height])
    cells = targets * scale
    ratio = cells[None, :, 4:6] / anchors[:, None]
    fits = torch.maximum(ratio, 1 / ratio).amax(2) < anchor_t  # (a, n)
    anchor, index = fits.nonzero(as_tuple=True)
    chosen = cells[index]
    centre = chosen[:, 2:4]
    inverse = targets.new_tensor([width, height]) - centre
    near_low = (centre % 1 < 0.5) & (centre > 1)  # left, up; not off the picture
    near_high = (inverse % 1 < 0.5) & (inverse > 1)  # right, down
    own = torch.ones_like(near_low[:, :1])
    uses = torch.cat((own, near_low, near_high), 1).T  # (5, k)
    offsets = targets.new_tensor([[0, 0], [0.5, 0], [0, 0.5], [-0.5, 0], [0, -0.5]])
    offset, pick = uses.nonzero(as_tuple=True)
    chosen, anchor = chosen[pick], anchor[pick]
    corner = (chosen[:, 2:4] - offsets[offset]).long()
    # A centre on the very edge of the picture would lie in a cell past the last.
    column, row = corner[:, 0].clamp(0, width - 1), corner[:, 1].clamp(0, height - 1)
    centred = chosen[:, 2:4] - torch.stack((column, row), 1)
    return Assigned(
        pictures=chosen[:, 0].long(),
        anchors=anchor,
        rows=row,
        columns=column,
        boxes=torch.cat((centred, chosen[:, 4:6]), 1),
        classes=chosen[:, 1].long(),
    )


@dataclass(frozen=True)
class Gains:
    """What the parts of a loss are multiplied with before they are added up."""

    box: float
    obj: float
    cls: float

    @staticmethod
    def of(hyp: Hyp, classes: int, side: int) -> Gains:
        """`side`: pixels of the training pictures."""
        return Gains(hyp.box, hyp.obj * (side / _SIDE) ** 2, hyp.cls * classes / _CLASSES)

    def scale(self, box: Tensor, obj: Tensor, cls: Tensor) -> Tensor:
        """The parts (3,) in this order."""
        return torch.stack((box * self.box, obj * self.obj, cls * self.cls))


def boxes_of(answers: Tensor, anchors: Tensor) -> Tensor:
    """Boxes (k, 4) as `Assigned.boxes`, by the formulas of `Detect`, of raw answers (k, 5 + classes) at `anchors`
    (k, 2), in cells."""
    s = answers[:, :4].sigmoid()
    return torch.cat((s[:, :2] * 2 - 0.5, (s[:, 2:] * 2) ** 2 * anchors), 1)


class Loss:
    """For one head and picture size; called with the raw levels in training order and the batch's truth."""

    def __init__(self, head: Detect, hyp: Hyp, side: int) -> None:
        """`side`: pixels of the training pictures."""
        self._head, self._hyp = head, hyp
        self._gains = Gains.of(hyp, head.classes, side)

    def __call__(self, raw: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
        """(loss to descend, times the batch size as published; its parts (3,): box, objectness, class, detached).

        raw: (b, anchors, h, w, 5 + classes) a level; targets as for `assign`.
        """
        box = obj = cls = raw[0].new_zeros((), dtype=torch.float32)
        for number, level in enumerate(raw):
            outputs = level.float()
            truth = assign(targets, self._head.anchors[number], level.shape[2], level.shape[3], self._hyp.anchor_t)
            wanted = outputs.new_zeros(outputs.shape[:-1])
            if len(truth.classes):
                at = (truth.pictures, truth.anchors, truth.rows, truth.columns)
                answers = outputs[at]
                overlap = ciou(boxes_of(answers, self._head.anchors[number][truth.anchors]), truth.boxes)
                box = box + (1 - overlap).mean()
                # Of several boxes at one place the best overlap counts, whatever their order.
                shares = overlap.detach().clamp(0)
                flat = ((at[0] * wanted.shape[1] + at[1]) * wanted.shape[2] + at[2]) * wanted.shape[3] + at[3]
                wanted.view(-1).scatter_reduce_(0, flat, shares, "amax")
                if self._head.classes > 1:
                    cls = cls + self._class_loss(answers[:, 5:], truth.classes)
            weight = outputs.new_tensor(self._hyp.obj_pw)
            obj = obj + BALANCE[number] * binary_cross_entropy_with_logits(outputs[..., 4], wanted, pos_weight=weight)
        parts = self._gains.scale(box, obj, cls)
        return parts.sum() * raw[0].shape[0], parts.detach()

    def _class_loss(self, logits: Tensor, classes: Tensor) -> Tensor:
        off = self._hyp.label_smoothing / 2
        wanted = torch.full_like(logits, off)
        wanted[torch.arange(len(classes), device=logits.device), classes] = 1 - off
        return binary_cross_entropy_with_logits(logits, wanted, pos_weight=logits.new_tensor(self._hyp.cls_pw))
