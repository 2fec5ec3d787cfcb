"""Knowledge distillation: a trained network's answers are learnt beside the truth.

A teacher answers in every cell of every picture, where the truth only names a few. Meant for pruned networks, which so
learn from what they were before; of a teacher of their own shape they learn its maps as well (`trainer.features`).
What it says of a box and its class counts as much as it is sure that an object is there (objectness-scaled
distillation: Mehta and Ozturk 2018, "Object detection at 200 Frames Per Second").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from trainer.boxes import ciou
from trainer.checkpoint import Checkpoint, build
from trainer.device import Place
from trainer.errors import TrainerError
from trainer.features import apart, watched
from trainer.hyp import Hyp
from trainer.loss import BALANCE, Gains, boxes_of
from trainer.network import head_of

_NOTICED = 0.01  # objectness below which a teacher's box counts for nothing: nearly all cells, and most of the work


class Distillation:
    """A teacher, and the loss that its answers make for one student and picture size."""

    def __init__(
        self, teacher: Checkpoint, student: nn.Module, hyp: Hyp, side: int, place: Place, *, maps: bool
    ) -> None:
        """`side`: pixels of the training pictures; `maps`: both have the same blocks, whose maps are learnt too.

        Raises CheckpointError where the teacher cannot be built, and TrainerError where the two heads mean different
        things by the same numbers.
        """
        own = head_of(student)
        if teacher.classes != own.classes:
            raise TrainerError(
                f"teacher {teacher.name}: {teacher.classes} classes; expected the {own.classes} of the data"
            )
        network = build(teacher)
        head = head_of(network)
        if not torch.allclose(head.anchors, own.anchors.cpu(), rtol=1e-3):
            raise TrainerError(
                f"teacher {teacher.name}: other anchors than this network's; expected one trained on the same data, or "
                "give its weights to --weights as well"
            )
        network.fuse()
        head.training = True  # itself only: raw levels, all else as in use
        network.requires_grad_(False).to(place.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        self._network, self._anchors, self._classes = network, own.anchors, own.classes
        self._device = place.device.type
        # Fake-quantised layers round for themselves: in half precision they would round twice.
        self._dtype = torch.float32 if teacher.quantised else place.dtype
        self._gains, self._gain = Gains.of(hyp, own.classes, side), hyp.distill
        self._maps_gain = hyp.distill_maps if maps else 0.0

    @contextmanager
    def watching(self, student: nn.Module) -> Iterator[Mapping[str, Tensor]]:
        """The student's maps of the pictures it sees inside the `with`, where they are compared; else none."""
        if not self._maps_gain:
            yield {}
            return
        with watched(student) as maps:
            yield maps

    def __call__(self, pictures: Tensor, raw: Sequence[Tensor], maps: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(loss, its parts) as `Loss` gives them, and the maps' in the loss alone, of the student's raw levels
        (b, anchors, h, w, 5 + classes) and maps for these pictures (b, 3, h, w) RGB 0..1."""
        with self.watching(self._network) as shown:
            answers = self._answers(pictures)
        box = obj = cls = raw[0].new_zeros((), dtype=torch.float32)
        for number, (level, answer) in enumerate(zip(raw, answers, strict=True)):
            student, teacher = level.float(), answer.float()
            sure = teacher[..., 4].sigmoid()
            obj = obj + BALANCE[number] * binary_cross_entropy_with_logits(student[..., 4], sure)
            at = (sure > _NOTICED).nonzero(as_tuple=True)
            if len(at[0]):
                # Where it is sure of less than one object in all, that little is all that counts.
                share = sure[at] / sure[at].sum().clamp_min(1)
                anchors = self._anchors[number][at[1]]
                mine, theirs = student[at], teacher[at]
                box = box + (share * (1 - ciou(boxes_of(mine, anchors), boxes_of(theirs, anchors)))).sum()
                if self._classes > 1:
                    wanted = theirs[:, 5:].sigmoid()
                    each = binary_cross_entropy_with_logits(mine[:, 5:], wanted, reduction="none").mean(1)
                    cls = cls + (share * each).sum()
        parts = self._gain * self._gains.scale(box, obj, cls)
        loss = parts.sum()
        if self._maps_gain:
            loss = loss + self._maps_gain * apart(maps, shown)
        return loss * raw[0].shape[0], parts.detach()

    @torch.no_grad()
    def _answers(self, pictures: Tensor) -> list[Tensor]:
        with torch.autocast(self._device, dtype=self._dtype, enabled=self._dtype is not torch.float32):
            raw: list[Tensor] = self._network(pictures)
        return raw
