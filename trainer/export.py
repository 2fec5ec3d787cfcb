"""From a trained network to the ONNX file that the workers load, in the form that engines run fastest.

Bytes go in, (batch, 3, height, width) RGB; decoded rows come out. PyTorch writes the graph up to the raw heads, where
nothing depends on the picture's size; the decoding is appended by hand (`trainer.graph.decode`), so the file runs at
any multiple of the stride once its input says so.
"""

from __future__ import annotations

import copy
import gzip
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx.onnx_ml_pb2 import ModelProto
from torch import Tensor, nn

from trainer.errors import ExportError
from trainer.facts import Facts, metadata
from trainer.graph.decode import append_decoding
from trainer.graph.verify import difference
from trainer.layers import Conv, Detect
from trainer.model import SIZES, STRIDES, YoloV5
from trainer.quantised import exportable, is_quantised
from trainer.restore import restore
from trainer.tidy import tidy

INPUT, OUTPUT = "images", "output0"  # as YOLOv5's own exports name them
_OPSET = 13  # the newest that DeepSparse 1.8 reads whole, and the oldest with quantisation per channel
_ANCHORS = 3  # a level
_WHITE = 255  # the network's 1.0
# A float graph differs from its network by rounding: measured 2e-6 of the side and of a score. In a quantised one that
# moves some values to the next of 256 steps, and what follows from them.
_MOST, _MOST_QUANTISED = 5e-4, 5e-2


@dataclass(frozen=True)
class Exported:
    """An ONNX file and what was measured of it."""

    onnx: bytes
    quantised: bool
    sides: float  # largest difference of a box from PyTorch's, in parts of the picture's longer side
    score: float  # largest difference of a score

    def compressed(self) -> bytes:
        """By gzip; the same bytes for the same model, whenever."""
        return gzip.compress(self.onnx, 9, mtime=0)


def export_checkpoint(
    data: bytes,
    name: str,
    facts: Facts,
    *,
    image_size: tuple[int, int] | None = None,
    batch: int = 1,
    dynamic: bool = False,
) -> Exported:
    """Export the bytes of a checkpoint. `image_size` is (height, width) in pixels, None: the checkpoint's own.

    The input has this batch and size or, where `dynamic`, names instead of numbers. Raises CheckpointError or
    ExportError.
    """
    found = restore(data, name)
    size = image_size or found.image_size
    return export_network(found.network, found.names, facts, image_size=size, batch=batch, dynamic=dynamic)


def export_dense_twin(data: bytes, name: str, *, image_size: tuple[int, int] | None = None, batch: int = 1) -> Exported:
    """The network of a checkpoint as it is before any training: what pruning and quantising it gained is told by it.

    Its weights are random and none is zero; engines skip zeros, and whatever else weights are costs them the same.
    """
    found = restore(data, name)
    network = YoloV5(SIZES[found.size], len(found.names), activation=found.activation)
    return export_network(network, found.names, Facts(), image_size=image_size or found.image_size, batch=batch)


def export_network(
    network: YoloV5,
    names: dict[int, str],
    facts: Facts,
    *,
    image_size: tuple[int, int],
    batch: int = 1,
    dynamic: bool = False,
) -> Exported:
    """Export a network, quantised or not, which is left as it is. Arguments as for `export_checkpoint`.

    Raises ExportError.
    """
    _check_size(image_size)
    quantised = is_quantised(network)
    network = copy.deepcopy(network).cpu().float().eval().requires_grad_(False)
    head = _head(network)
    proto = quantised_heads(network, image_size) if quantised else float_heads(network, image_size)
    anchors = (head.anchors * torch.tensor(head.strides).view(-1, 1, 1)).numpy()
    raw = [output.name for output in proto.graph.output]
    append_decoding(proto.graph, raw, strides=head.strides, anchors=anchors, classes=len(names), output=OUTPUT)
    set_input(proto, batch, image_size, dynamic=dynamic)
    told = metadata(
        facts,
        names=names,
        image_size=image_size,
        strides=head.strides,
        # Six digits are more than float32 has: 13 and not 13.000001.
        anchors=[[[float(f"{side:.6g}") for side in anchor] for anchor in level] for level in anchors],
        batch=None if dynamic else batch,
    )
    onnx.helper.set_model_props(proto, told)
    proto.producer_name = "sparsecam"
    onnx.checker.check_model(proto)
    data = bytes(proto.SerializeToString())
    # A quantised network is judged by its twin in integers: emulated in floats it rounds a little elsewhere.
    judge = exportable(network) if quantised else _FromBytes(network, divisor=_WHITE)
    sides, score = _largest_difference(data, judge, image_size, batch)
    most = _MOST_QUANTISED if quantised else _MOST
    if max(sides, score) > most:
        raise ExportError(
            f"the exported graph differs from its network by {sides:.2g} of the picture's side and {score:.2g} of a "
            f"score, expected at most {most:g}; nothing was written"
        )
    return Exported(data, quantised, sides, score)


def float_heads(network: YoloV5, image_size: tuple[int, int]) -> ModelProto:
    """A float network as ONNX, from bytes to its raw heads, coarsest last."""
    network = copy.deepcopy(network)
    network.fuse()
    first = network.model[0]
    assert isinstance(first, Conv)
    with torch.no_grad():
        first.conv.weight /= _WHITE
    head = _head(network)
    network.model[-1] = _Heads(head.m)
    return traced(_FromBytes(network), image_size, [f"raw{stride}" for stride in head.strides])


def quantised_heads(network: YoloV5, image_size: tuple[int, int]) -> ModelProto:
    """The same of a quantised network, its convolutions in integers; it takes the bytes as they are."""
    twin = exportable(network)
    assert isinstance(twin, YoloV5)
    head = _head(twin)
    twin.model[-1] = _Heads(head.m)
    proto = traced(twin, image_size, [f"raw{stride}" for stride in head.strides])
    tidy(proto)
    return proto


def traced(network: nn.Module, image_size: tuple[int, int], outputs: Sequence[str]) -> ModelProto:
    """What PyTorch's exporter writes of a network that takes bytes (1, 3, h, w); raises ExportError.

    Its nodes are named as the network's layers are.
    """
    pictures = torch.zeros(1, 3, *image_size, dtype=torch.uint8)
    with tempfile.TemporaryDirectory(prefix="sparsecam-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its age: the newer exporter writes what DeepSparse does not read
        path = Path(folder) / "traced.onnx"
        try:
            torch.onnx.export(
                network,
                (pictures,),
                str(path),
                opset_version=_OPSET,
                dynamo=False,
                input_names=[INPUT],
                output_names=list(outputs),
            )
        except RuntimeError as error:
            raise ExportError(f"PyTorch cannot export the network: {str(error)[:500]}") from error
        proto = onnx.load_model(str(path))
    for node in proto.graph.node:
        node.name = _layer(node.name, node.op_type)
    return proto


def set_input(proto: ModelProto, batch: int, image_size: tuple[int, int], *, dynamic: bool) -> None:
    """Declare the input's size: numbers, or names where `dynamic`. Sizes recorded inside are removed."""
    del proto.graph.value_info[:]
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    for dim, size, name in zip(dims, (batch, 3, *image_size), ("batch", "", "height", "width"), strict=True):
        if dynamic and name:
            dim.dim_param = name
        else:
            dim.dim_value = size
    if not dynamic:
        rows = proto.graph.output[0].type.tensor_type.shape.dim
        height, width = image_size
        rows[0].dim_value = batch
        rows[1].dim_value = sum(_ANCHORS * (height // stride) * (width // stride) for stride in STRIDES)


def _layer(node: str, kind: str) -> str:
    """`/network/model.2/m/m.0/cv1/conv/Conv` to `model.2.m.0.cv1.conv`, which is how recipes name that layer."""
    convolution = kind in ("Conv", "ConvInteger")
    parts = node.removeprefix("/network").lstrip("/").removesuffix(f"/{kind}" if convolution else "").split("/")
    # A module that holds others by number is named before them and in their own names.
    kept = [part for part, inner in zip(parts, [*parts[1:], ""], strict=True) if not inner.startswith(f"{part}.")]
    return ".".join(kept)


class _FromBytes(nn.Module):
    """A network that takes bytes. Without a divisor the division by 255 is in its first convolution."""

    def __init__(self, network: nn.Module, divisor: float = 1.0) -> None:
        super().__init__()
        self.network, self._divisor = network, divisor

    def forward(self, pictures: Tensor) -> Tensor | list[Tensor]:
        pixels = pictures.float()
        heads: Tensor | list[Tensor] = self.network(pixels if self._divisor == 1 else pixels / self._divisor)
        return heads


class _Heads(nn.Module):
    """In the place of `Detect`: its convolutions and nothing more."""

    def __init__(self, convolutions: nn.ModuleList) -> None:
        super().__init__()
        self.m = convolutions

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        return [conv(level) for conv, level in zip(self.m, levels, strict=True)]


def _head(network: YoloV5) -> Detect:
    head = network.model[-1]
    assert isinstance(head, Detect)
    return head


def _check_size(image_size: tuple[int, int]) -> None:
    step = max(STRIDES)
    if any(side <= 0 or side % step for side in image_size):
        better = [max(-(-side // step), 1) * step for side in image_size]
        raise ExportError(
            f"a picture of {image_size[0]}x{image_size[1]} pixels; expected multiples of {step}, such as "
            f"{better[0]}x{better[1]}"
        )


def _largest_difference(data: bytes, network: nn.Module, size: tuple[int, int], batch: int) -> tuple[float, float]:
    """(sides, score) at the full size and at half its height, a shape that the exporter has not seen."""
    step = max(STRIDES)
    shapes = {size, (max(size[0] // 2 // step, 1) * step, size[1])}
    pictures = [np.random.default_rng(0).integers(0, 256, (batch, 3, *shape), np.uint8) for shape in sorted(shapes)]
    found = [difference(data, network, batch_of) for batch_of in pictures]
    return max(sides for sides, _ in found), max(score for _, score in found)
