"""YOLOv5 n, s, m, l and x (v6 and v7, three levels), from the published architecture.

Layers are `model.0` to `model.24`, as public recipes and checkpoints name them: 0-9 the backbone, 10-23 the PAN neck,
24 the head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.layers import C3, SPPF, Activation, Concat, Conv, Detect

STRIDES = (8, 16, 32)  # pixels a cell, of the three levels
# Width and height in pixels of the three anchors of each level, as published (from COCO's boxes, by k-means).
COCO_ANCHORS = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
_CHANNEL_STEP = 8  # channels come in multiples of it


@dataclass(frozen=True)
class Size:
    """One member of the family: factors on the repeats of the blocks, and on the channels."""

    depth: float
    width: float

    def channels(self, full: int) -> int:
        """Channels of this size where the largest multiple, 1, has `full`."""
        return math.ceil(full * self.width / _CHANNEL_STEP) * _CHANNEL_STEP

    def repeats(self, full: int) -> int:
        """Bottlenecks of a block of this size, where depth 1 has `full`."""
        return max(round(full * self.depth), 1)


SIZES = {
    "n": Size(0.33, 0.25),
    "s": Size(0.33, 0.50),
    "m": Size(0.67, 0.75),
    "l": Size(1.00, 1.00),
    "x": Size(1.33, 1.25),
}


class YoloV5(nn.Module):
    """The network. Pictures are RGB, float 0..1, (batch, 3, h, w) with h and w multiples of 32."""

    def __init__(
        self, size: Size, classes: int, *, activation: Activation = "silu", anchors: Tensor | None = None
    ) -> None:
        """`anchors`: (3 levels, 3, 2) in pixels; None: those for COCO."""
        super().__init__()
        if anchors is None:
            anchors = torch.tensor(COCO_ANCHORS, dtype=torch.float32)
        c1, c2, c3, c4, c5 = (size.channels(full) for full in (64, 128, 256, 512, 1024))
        n3, n6, n9 = (size.repeats(full) for full in (3, 6, 9))

        def conv(before: int, after: int, kernel: int, stride: int = 1, padding: int | None = None) -> Conv:
            return Conv(before, after, kernel, stride, activation=activation, padding=padding)

        def block(before: int, after: int, count: int, *, shortcut: bool = False) -> C3:
            return C3(before, after, count, shortcut=shortcut, activation=activation)

        self.model = nn.ModuleList(
            [
                conv(3, c1, 6, 2, padding=2),
                conv(c1, c2, 3, 2),
                block(c2, c2, n3, shortcut=True),
                conv(c2, c3, 3, 2),
                block(c3, c3, n6, shortcut=True),  # 4: level 3 of the backbone
                conv(c3, c4, 3, 2),
                block(c4, c4, n9, shortcut=True),  # 6: level 4
                conv(c4, c5, 3, 2),
                block(c5, c5, n3, shortcut=True),
                SPPF(c5, c5, activation=activation),  # 9: level 5
                conv(c5, c4, 1),
                nn.Upsample(scale_factor=2, mode="nearest"),
                Concat(),
                block(2 * c4, c4, n3),
                conv(c4, c3, 1),
                nn.Upsample(scale_factor=2, mode="nearest"),
                Concat(),
                block(2 * c3, c3, n3),  # 17: the head's first level
                conv(c3, c3, 3, 2),
                Concat(),
                block(2 * c3, c4, n3),  # 20: its second
                conv(c4, c4, 3, 2),
                Concat(),
                block(2 * c4, c5, n3),  # 23: its third
                Detect(classes, anchors, STRIDES, (c3, c4, c5)),
            ]
        )

    def forward(self, pictures: Tensor) -> Tensor | list[Tensor]:
        """The head's output: decoded rows in eval mode, raw levels in training. See `Detect.forward`."""
        layers = self.model
        level3 = self._through(pictures, 0, 4)
        level4 = self._through(level3, 5, 6)
        level5 = self._through(level4, 7, 9)
        # Down the pyramid: what the coarse levels know goes to the fine ones...
        down5 = layers[10](level5)
        down4 = layers[14](layers[13](layers[12]((layers[11](down5), level4))))
        out3 = layers[17](layers[16]((layers[15](down4), level3)))
        # ... and up again.
        out4 = layers[20](layers[19]((layers[18](out3), down4)))
        out5 = layers[23](layers[22]((layers[21](out4), down5)))
        detected: Tensor | list[Tensor] = layers[24]((out3, out4, out5))
        return detected

    def _through(self, x: Tensor, first: int, last: int) -> Tensor:
        for number in range(first, last + 1):
            x = self.model[number](x)
        return x

    def fuse(self) -> None:
        """Fold every batch normalisation into its convolution, for inference; eval mode only, training ends here."""
        for module in self.modules():
            if isinstance(module, Conv):
                module.fuse()
