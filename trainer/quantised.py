"""Quantised layers: how they train (rounding is emulated in floats), and how they leave (integers, as ONNX).

They stand where SparseML puts PyTorch's own: those observe while a network is only validated, average their scales but
not their zero points, and cost two passes over every activation to imitate a normalisation that is already frozen.
Activations are uint8 with one scale and zero point a tensor, weights int8 with a scale for each output channel.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.ao.nn.intrinsic.qat import ConvBn2d
from torch.ao.quantization import FakeQuantizeBase, QuantWrapper
from torch.nn import functional

from trainer.layers import Detect

_STEPS = 255  # of uint8
_LARGEST = 127  # of int8, used symmetrically: -128 would have no counterpart
_LARGEST_BIAS = 2.0**30  # leaves as much again for the products: 2^15 each at most, of some thousand weights
_AVERAGED = 0.01  # least share of a new batch in an activation's range: some hundred batches, PyTorch's default
_TINY = 1e-8  # a channel of zeros still wants a scale


class Weights(FakeQuantizeBase):
    """Rounds weights to int8. Has no state: the scale is always that of the weights at hand, averaged ones too."""

    def __init__(self, *, by_channel: bool) -> None:
        super().__init__()
        self._by_channel = by_channel

    def calculate_qparams(self) -> None:  # type: ignore[override]  # PyTorch asks for the method, nothing calls it
        """Nothing is kept."""

    def scale(self, weights: Tensor) -> Tensor:
        """Step of each output channel (channels,)."""
        sizes = weights.detach().abs()
        largest = sizes.amax((1, 2, 3)) if self._by_channel else sizes.amax().expand(len(weights))
        return (largest / _LARGEST).clamp_min(_TINY)

    def forward(self, weights: Tensor) -> Tensor:
        """Weights (out, in, kh, kw) as int8 would hold them; gradients pass as if nothing had happened."""
        scale = self.scale(weights)
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weights, scale, zero, 0, -_LARGEST, _LARGEST)


class Activations(FakeQuantizeBase):
    """Rounds activations to uint8 over a range that it learns while training, until it is told to stop.

    The range is kept, not scale and zero point, so that averages of networks have a valid one.
    """

    low: Tensor
    high: Tensor
    seen: Tensor

    def __init__(self, low: float = 0.0, high: float = 0.0) -> None:
        """A given range is kept for ever; without one (low = high) it is learnt."""
        super().__init__()
        self.given = low < high
        self.register_buffer("low", torch.tensor(float(low)))
        self.register_buffer("high", torch.tensor(float(high)))
        self.register_buffer("seen", torch.tensor(int(self.given)))

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # untyped in PyTorch
        """(scale, zero point): zero is one of the steps, so that padding and pruned values stay exact."""
        low, high = self.low.clamp_max(0), self.high.clamp_min(0)
        scale = ((high - low) / _STEPS).clamp_min(_TINY)
        zero = (-low / scale).round().clamp(0, _STEPS).to(torch.int32)
        return scale, zero

    def forward(self, x: Tensor) -> Tensor:
        """Values as uint8 would hold them; as they are before the first batch has been seen."""
        if self.training and not self.given and int(self.observer_enabled[0]):
            self._watch(x.detach())
        if not int(self.seen):
            return x
        scale, zero = self.calculate_qparams()
        return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, _STEPS)

    def _watch(self, x: Tensor) -> None:
        low, high = torch.aminmax(x)
        self.seen.add_(1)
        # At first the mean of all batches, or the very first one would count for nearly everything.
        share = max(_AVERAGED, 1 / int(self.seen))
        self.low.lerp_(low.float(), share)
        self.high.lerp_(high.float(), share)


class FoldedConv(ConvBn2d):
    """Convolution and normalisation, trained as the one convolution they will be once the statistics are frozen."""

    def folded(self) -> tuple[Tensor, Tensor]:
        """(weights, bias) with the normalisation inside."""
        assert self.bn.running_var is not None
        assert self.bn.running_mean is not None
        factor = self.bn.weight / (self.bn.running_var + self.bn.eps).sqrt()
        return self.weight * factor.view(-1, 1, 1, 1), self.bn.bias - self.bn.running_mean * factor

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, h, w) to (batch, out, h / stride, w / stride)."""
        if not self.freeze_bn:
            return cast("Tensor", super().forward(x))  # type: ignore[no-untyped-call]  # as PyTorch ships it
        weights, bias = self.folded()
        return cast("Tensor", self._conv_forward(x, self.weight_fake_quant(weights), bias))


def own_layers(network: nn.Module, *, by_channel: bool) -> None:
    """Put these layers where PyTorch's own are; `network` is what SparseML has just made. The input keeps its bytes."""
    first = True
    for module in list(network.modules()):
        if not isinstance(module, QuantWrapper):
            continue
        # A picture's range is known: its bytes are then used as they come from the camera.
        quant = Activations(0.0, 1.0) if first else Activations()
        stub, inner = cast("Any", module.quant), cast("Any", module.module)
        stub.activation_post_process = quant.to(inner.weight.device).train(network.training)
        first = False
        if isinstance(inner, ConvBn2d):
            inner.__class__ = FoldedConv
        if hasattr(inner, "weight_fake_quant"):
            inner.weight_fake_quant = Weights(by_channel=by_channel).to(inner.weight.device)
        # What SparseML hooks to outputs without a scheme of their own does nothing, at the cost of a call.
        if isinstance(getattr(inner, "activation_post_process", None), nn.Identity):
            inner._forward_hooks.clear()
            del inner.activation_post_process


def is_quantised(network: nn.Module) -> bool:
    """Whether quantisation has begun in this network."""
    return any(isinstance(module, QuantWrapper) for module in network.modules())


def exportable(network: nn.Module) -> nn.Module:
    """A copy in eval mode that takes pictures (batch, 3, h, w) in uint8 and exports its quantised layers as integers.

    They become ConvInteger, rescaled to float: what DeepSparse runs fastest, and what the other engines' loaders turn
    into forms of their own. Export with opset 13 and `dynamo=False`. In PyTorch it computes what the exported graph
    does. Raises ValueError for a network that is not quantised.
    """
    if not is_quantised(network):
        raise ValueError("the network is not quantised; expected one whose recipe has reached quantisation")
    twin = copy.deepcopy(network).cpu().eval()
    for name, module in list(twin.named_modules()):
        if isinstance(module, QuantWrapper):
            parent, _, key = name.rpartition(".")
            setattr(twin.get_submodule(parent), key, _Exported(module))
    return twin.requires_grad_(False)


class _Exported(nn.Module):
    """One quantised convolution as constants: what ONNX holds of it.

    They are buffers, so that they become initializers: DeepSparse ends the process on weights in Constant nodes.
    """

    weights: Tensor
    steps: Tensor
    bias: Tensor
    scale: Tensor
    zero: Tensor
    zeros: Tensor

    def __init__(self, wrapped: QuantWrapper) -> None:
        super().__init__()
        conv, quant = cast("Any", wrapped.module), cast("Any", wrapped.quant)
        weights, bias = conv.folded() if isinstance(conv, FoldedConv) else (conv.weight, conv.bias)
        weights, bias = weights.detach(), bias.detach()
        steps = conv.weight_fake_quant.scale(weights)
        scale, zero = quant.activation_post_process.calculate_qparams()
        # A channel of zeros, or nearly, has such small steps that its bias would not fit into 32 bits of them.
        steps = torch.maximum(steps, bias.abs() / (scale * _LARGEST_BIAS))
        self._stride, self._padding = list(conv.stride), list(conv.padding)
        whole = (weights / steps.view(-1, 1, 1, 1)).round().clamp(-_LARGEST, _LARGEST).to(torch.int8)
        self.register_buffer("weights", whole)
        self.register_buffer("scale", scale.float())
        self.register_buffer("zero", zero.to(torch.uint8))
        # One for all channels: ONNX Runtime knows no other, and DeepSparse ends the process without any.
        self.register_buffer("zeros", torch.zeros((), dtype=torch.int8))
        self.register_buffer("steps", (scale * steps).view(1, -1, 1, 1))
        self.register_buffer("bias", (bias / (scale * steps)).round().to(torch.int32).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Float in and out; the picture itself comes as uint8."""
        q = x if x.dtype == torch.uint8 else _apply(_Quantize, x, self.scale, self.zero)
        summed: Tensor = _apply(_ConvInteger, q, self.weights, self.zero, self.zeros, (self._stride, self._padding))
        return (summed + self.bias).to(torch.float32) * self.steps


def _apply(function: type[torch.autograd.Function], *values: Any) -> Tensor:
    applied: Tensor = function.apply(*values)  # type: ignore[no-untyped-call]  # as PyTorch ships it
    return applied


class _Quantize(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return ((x / scale).round() + zero.float()).clamp(0, _STEPS).to(torch.uint8)

    @staticmethod
    def symbolic(g: Any, x: Any, scale: Any, zero: Any) -> Any:
        return g.op("QuantizeLinear", x, scale, zero).setType(x.type().with_dtype(torch.uint8))


class _ConvInteger(torch.autograd.Function):
    @staticmethod
    def forward(
        _: Any, q: Tensor, weights: Tensor, zero: Tensor, zeros: Tensor, steps: tuple[list[int], list[int]]
    ) -> Tensor:
        # In float64 sums of products of bytes are exact; PyTorch has no convolution of integers on every CPU.
        wide = functional.conv2d(q.double() - zero.double(), weights.double() - zeros.double(), None, *steps)
        return wide.to(torch.int32)

    @staticmethod
    def symbolic(g: Any, *values: Any) -> Any:
        *operands, (stride, padding) = values
        return g.op("ConvInteger", *operands, strides_i=stride, pads_i=[*padding, *padding])


def head_is_float(network: nn.Module) -> bool:
    """Whether the head's last convolutions are left in floats, as they should be: their errors are boxes' errors."""
    heads = [module for module in network.modules() if isinstance(module, Detect)]
    return not any(isinstance(module, QuantWrapper) for head in heads for module in head.modules())
