"""Whether two forms of a model say the same: run both on the same pictures, and name the node where they part.

ONNX Runtime is the judge because every Sparsecam has it and it follows the ONNX text; its optimisers stay on, because
that is how the model will run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, load_model_from_string
from onnx.onnx_ml_pb2 import ModelProto

from detector.cpu import saturates
from detector.errors import EngineRefused
from detector.prepare.integer_convs import for_onnxruntime

Array = NDArray[Any]
Pixels = NDArray[np.uint8]

# What float32 arithmetic in another order may add. Scores lie in 0..1, boxes reach some hundred pixels, so this is
# 0.001 of a score and 0.04 pixels at 416.
ABSOLUTE = 1e-3
RELATIVE = 1e-4
_EXPOSED_AT_ONCE = 64  # tensors of a graph kept in memory together while looking for the first that differs
_ERRORS_ONLY = 3


@dataclass(frozen=True)
class Difference:
    """How far two forms of a model are apart."""

    largest: float  # in the outputs, score or pixels
    equal: bool  # within the tolerance
    node: str = ""  # the first whose result differs, where they are not equal


@dataclass(frozen=True)
class Form:
    """A model's bytes with the input shape set, and how its input takes pixels."""

    onnx: bytes
    picture: str  # name of the input
    dtype: str
    nchw: bool
    outputs: tuple[str, ...]  # those to compare

    def tensor(self, pixels: Pixels) -> Array:
        """Pixels (batch, height, width, 3) as this form wants them."""
        moved = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)) if self.nchw else pixels
        return moved if self.dtype == "uint8" else (moved.astype(np.float32) / np.float32(255)).astype(self.dtype)


@dataclass(frozen=True)
class Reference:
    """The original at one shape, and what it says of each picture."""

    form: Form
    pictures: Sequence[Pixels]
    answers: list[list[Array]]


def reference(form: Form, pictures: Sequence[Pixels]) -> Reference:
    """Run the original once; raises EngineRefused where it does not run."""
    return Reference(form, pictures, _answers(form, pictures))


def compare(before: Reference, after: Form) -> Difference:
    """The largest difference of the outputs over all pictures; raises EngineRefused where the form does not run."""
    largest, equal = 0.0, True
    for expected, found in zip(before.answers, _answers(after, before.pictures), strict=True):
        for one, other in zip(expected, found, strict=True):
            apart, same = _apart(one, other)
            largest, equal = max(largest, apart), equal and same
    return Difference(largest, equal, "" if equal else first_difference(before.form, after, before.pictures[0]))


def _answers(form: Form, pictures: Sequence[Pixels]) -> list[list[Array]]:
    run = session(form.onnx)
    try:
        return [run.run(list(form.outputs), {form.picture: form.tensor(pixels)}) for pixels in pictures]
    except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
        raise EngineRefused(f"onnxruntime cannot run a form: {str(error)[:500]}") from error


def first_difference(before: Form, after: Form, pixels: Pixels) -> str:
    """The first node, in the rewritten graph's order, whose result differs from that of the same name before.

    A rewrite keeps the names of what it does not touch, so the fault lies in that node or in new ones before it.
    """
    one, other = load_model_from_string(before.onnx), load_model_from_string(after.onnx)
    known = {name for node in one.graph.node for name in node.output}
    shared = [(node, name) for node in other.graph.node for name in node.output if name in known]
    for start in range(0, len(shared), _EXPOSED_AT_ONCE):
        part = shared[start : start + _EXPOSED_AT_ONCE]
        names = [name for _, name in part]
        try:
            expected = _run_exposed(one, names, before, pixels)
            found = _run_exposed(other, names, after, pixels)
        except EngineRefused:
            return "unknown: the inner tensors cannot be read"
        for (node, name), left, right in zip(part, expected, found, strict=True):
            apart, same = _apart(left, right)
            if not same:
                return f"{node.op_type} {node.name or name!r} (its result {name!r} is off by {apart:.3g})"
    return "the outputs themselves"


def session(onnx: bytes) -> onnxruntime.InferenceSession:
    """A session on one thread; raises EngineRefused in ONNX Runtime's words."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    try:
        graph = for_onnxruntime(onnx, saturates=saturates())
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base but Exception
        raise EngineRefused(f"onnxruntime, which compares the forms, cannot load one: {str(error)[:500]}") from error


def generated_pictures(height: int, width: int, batch: int, seed: int) -> list[Pixels]:
    """Pictures (batch, height, width, 3) to compare on where there are no real ones; the same for a seed.

    Soft colours with sharp shapes on them, pure noise and plain grey: together they reach far more of an INT8 model's
    range than grey alone.
    """
    random = np.random.default_rng(seed)
    soft = cv2.resize(
        random.integers(0, 256, (6, 8, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC
    )
    scene = soft.astype(np.uint8)
    for _ in range(12):
        corner = int(random.integers(0, width)), int(random.integers(0, height))
        size = int(random.integers(8, max(9, width // 4))), int(random.integers(8, max(9, height // 3)))
        colour = [int(value) for value in random.integers(0, 256, 3)]
        cv2.rectangle(scene, corner, (corner[0] + size[0], corner[1] + size[1]), colour, cv2.FILLED)
        cv2.ellipse(scene, corner, size, 30, 0, 360, colour[::-1], 3)
    noise = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    grey = np.full((height, width, 3), 114, dtype=np.uint8)
    return [np.stack([picture] * batch) for picture in (scene, noise, grey)]


def _apart(one: Array, other: Array) -> tuple[float, bool]:
    if one.shape != other.shape:
        return float("inf"), False
    if not one.size:
        return 0.0, True
    if (one.dtype == np.uint8 and other.dtype == np.int8) or (one.dtype == np.int8 and other.dtype == np.uint8):
        return float("inf"), False
    left, right = one.astype(np.float64), other.astype(np.float64)
    apart = np.abs(left - right)
    if not np.isfinite(apart).all():
        return float("inf"), bool(np.array_equal(left, right, equal_nan=True))
    return float(apart.max()), bool((apart <= ABSOLUTE + RELATIVE * np.abs(left)).all())


def _run_exposed(proto: ModelProto, names: list[str], form: Form, pixels: Pixels) -> list[Array]:
    exposed = ModelProto()
    exposed.CopyFrom(proto)
    del exposed.graph.output[:]
    exposed.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    try:
        result: list[Array] = session(exposed.SerializeToString()).run(names, {form.picture: form.tensor(pixels)})
    except EngineRefused:
        raise
    except Exception as error:  # as in session
        raise EngineRefused(str(error)[:500]) from error
    return result
