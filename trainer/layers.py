"""The building blocks of YOLOv5 (v6 and v7), from its published architecture; tensors are (batch, channels, h, w).

The names of inner modules are those of public checkpoints, so their weights load unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Activation = Literal["silu", "hardswish"]

# Published with the architecture, and other than PyTorch's own (1e-5, 0.1): they are part of what the weights mean.
BN_EPS, _BN_MOMENTUM = 1e-3, 0.03
_POOL = 5  # pixels: three in a row see what pools of 5, 9 and 13 would


class Hardswish(nn.Module):
    """x * clamp(x + 3, 0, 6) / 6: exported as Add-Clip-Mul-Div, the form DeepSparse runs fastest by far."""

    def forward(self, x: Tensor) -> Tensor:
        """As above, element by element; but for exports PyTorch's own, which trains YOLOv5n in 0.7 of the time."""
        if torch.onnx.is_in_onnx_export():
            return x * (x + 3).clamp(0, 6) / 6
        return nn.functional.hardswish(x)


_ACTIVATIONS: dict[Activation, type[nn.Module]] = {"silu": nn.SiLU, "hardswish": Hardswish}


class Conv(nn.Module):
    """Convolution, batch normalisation, activation; the padding keeps height and width, divided by the stride."""

    def __init__(
        self,
        before: int,
        after: int,
        kernel: int,
        stride: int = 1,
        *,
        activation: Activation,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        around = kernel // 2 if padding is None else padding
        self.conv = nn.Conv2d(before, after, kernel, stride, around, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(after, eps=BN_EPS, momentum=_BN_MOMENTUM)
        self.act = _ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, before, h, w) to (batch, after, h / stride, w / stride)."""
        activated: Tensor = self.act(self.bn(self.conv(x)))
        return activated

    def fuse(self) -> None:
        """Fold the normalisation into the convolution, for inference; the network must be in eval mode."""
        if isinstance(self.bn, nn.BatchNorm2d):
            self.conv, self.bn = fuse_conv_bn_eval(self.conv, self.bn), nn.Identity()


class Bottleneck(nn.Module):
    """1x1 and 3x3 convolutions, with a way around them where `shortcut`."""

    def __init__(self, channels: int, *, shortcut: bool, activation: Activation) -> None:
        super().__init__()
        self.cv1 = Conv(channels, channels, 1, activation=activation)
        self.cv2 = Conv(channels, channels, 3, activation=activation)
        self._shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Shape kept."""
        changed: Tensor = self.cv2(self.cv1(x))
        return x + changed if self._shortcut else changed


class C3(nn.Module):
    """Cross stage partial block: half of the channels pass `count` bottlenecks, the other half goes around them."""

    def __init__(self, before: int, after: int, count: int, *, shortcut: bool = True, activation: Activation) -> None:
        super().__init__()
        half = after // 2
        self.cv1 = Conv(before, half, 1, activation=activation)
        self.cv2 = Conv(before, half, 1, activation=activation)
        self.cv3 = Conv(2 * half, after, 1, activation=activation)
        self.m = nn.Sequential(*(Bottleneck(half, shortcut=shortcut, activation=activation) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, before, h, w) to (batch, after, h, w)."""
        joined: Tensor = self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))
        return joined


class SPPF(nn.Module):
    """Spatial pyramid pooling, the fast form: one pool applied three times, all four stages side by side."""

    def __init__(self, before: int, after: int, *, activation: Activation) -> None:
        super().__init__()
        half = before // 2
        self.cv1 = Conv(before, half, 1, activation=activation)
        self.cv2 = Conv(4 * half, after, 1, activation=activation)
        self.m = nn.MaxPool2d(_POOL, stride=1, padding=_POOL // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, before, h, w) to (batch, after, h, w)."""
        stages = [self.cv1(x)]
        for _ in range(3):
            stages.append(self.m(stages[-1]))
        joined: Tensor = self.cv2(torch.cat(stages, 1))
        return joined


class Concat(nn.Module):
    """Feature maps of one size, side by side."""

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(batch, c_i, h, w) each to (batch, sum of c_i, h, w)."""
        return torch.cat(tuple(maps), 1)


class Detect(nn.Module):
    """The head: for each level's cell and anchor a box, an objectness and a score a class.

    `anchors` is a buffer (levels, anchors, 2), width and height in cells of its level.
    """

    anchors: Tensor

    def __init__(self, classes: int, anchors: Tensor, strides: Sequence[int], channels: Sequence[int]) -> None:
        """`anchors` in pixels, as for the buffer; `strides` in pixels and `channels` of each level."""
        super().__init__()
        self.strides, self.classes = tuple(strides), classes
        self._columns = 5 + classes
        self._per_cell = anchors.shape[1]
        self.register_buffer("anchors", anchors / torch.tensor(strides).view(-1, 1, 1))
        self.m = nn.ModuleList(nn.Conv2d(count, self._per_cell * self._columns, 1) for count in channels)

    def forward(self, levels: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Training: the raw outputs (batch, anchors, h, w, 5 + classes) of each level.

        Otherwise the decoded rows (batch, all cells x anchors, 5 + classes): cx, cy, w, h in pixels of the picture,
        objectness and class scores 0..1; a level's rows anchor by anchor, each line by line.
        """
        raw = [self._raw(conv(level)) for conv, level in zip(self.m, levels, strict=True)]
        return raw if self.training else self.decode(raw)

    def decode(self, raw: Sequence[Tensor]) -> Tensor:
        """The decoded rows of raw outputs, both as `forward` gives them."""
        return torch.cat([self._decoded(number, level) for number, level in enumerate(raw)], 1)

    def _raw(self, output: Tensor) -> Tensor:
        batch, _, height, width = output.shape
        return output.view(batch, self._per_cell, self._columns, height, width).permute(0, 1, 3, 4, 2)

    def _decoded(self, number: int, raw: Tensor) -> Tensor:
        """Boxes by YOLOv5's published formulas: with s the sigmoid of the raw output,

        centre = (2 * s - 0.5 + cell) * stride, size = (2 * s)^2 * anchor.
        """
        batch, _, height, width, columns = raw.shape
        stride = self.strides[number]
        y, x = torch.meshgrid(
            torch.arange(height, device=raw.device), torch.arange(width, device=raw.device), indexing="ij"
        )
        cells = torch.stack((x, y), 2).to(raw.dtype) - 0.5
        anchors = (self.anchors[number] * stride).view(1, self._per_cell, 1, 1, 2)
        s = raw.sigmoid()
        rows = torch.cat(((s[..., :2] * 2 + cells) * stride, (s[..., 2:4] * 2) ** 2 * anchors, s[..., 4:]), 4)
        return rows.reshape(batch, self._per_cell * height * width, columns)
