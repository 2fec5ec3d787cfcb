"""Small real detectors, built node by node, whose answers follow from the picture. Loaded by the `graphs` fixture.

`bright_box`: one box around everything bright, scored by its brightness; NMS inside. Any height and width.
`cells`: a YOLO grid head; every 32x32 cell painted red is an object of class 0, blue of class 1, its box the cell.
`yolo_v5`: three convolutions with random weights and the head of a YOLOv5, as PyTorch exports it.
The others are bad on purpose: see their docstrings.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
INPUT_TYPES = {"uint8": TensorProto.UINT8, "float32": FLOAT, "float16": TensorProto.FLOAT16}
# Between the grey of the letterbox (114 of 255) and white, with room for what video compression does to either.
BRIGHT = 0.65
STRIDES = (8, 16, 32)
ANCHORS = (((10, 13), (16, 30), (33, 23)), ((30, 61), (62, 45), (59, 119)), ((116, 90), (156, 198), (373, 326)))


@dataclass
class Graph:
    """Collects nodes; each method adds one and gives its output's name."""

    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def const(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def mul(self, a: str, factor: float) -> str:
        return self.op("Mul", a, self.const(factor))

    def add(self, a: str, term: float) -> str:
        return self.op("Add", a, self.const(term))

    def count(self, like: str, axis: int, *, reverse: bool = False) -> str:
        """1, 2, 3... along an axis of a tensor's shape, whatever its size."""
        return self.op("CumSum", self.add(self.mul(like, 0), 1), self.const(axis, np.int64), reverse=int(reverse))

    def reshape(self, a: str, *shape: int) -> str:
        return self.op("Reshape", a, self.const(shape, np.int64))

    def picture(self, dtype: str, layout: str) -> str:
        """The input as float (batch, 3, height, width) of 0..1."""
        name = "images"
        if dtype != "float32":
            name = self.op("Cast", name, to=FLOAT)
        if dtype == "uint8":
            name = self.mul(name, 1 / 255)
        return self.op("Transpose", name, perm=[0, 3, 1, 2]) if layout == "nhwc" else name

    def save(
        self,
        path: Path,
        outputs: list[tuple[str, int]],
        *,
        dtype: str = "float32",
        shape: tuple[int | None, ...] = (None, 3, None, None),
        metadata: dict[str, str] | None = None,
    ) -> Path:
        names = ("batch", "a", "b", "c")
        dims = [names[i] if size is None else size for i, size in enumerate(shape)]
        graph = helper.make_graph(
            self.nodes,
            "test",
            [helper.make_tensor_value_info("images", INPUT_TYPES[dtype], dims)],
            [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        helper.set_model_props(model, metadata or {})
        onnx.save(model, str(path))
        return path


def bright_box(
    path: Path,
    *,
    label: str | None = "bright",
    dtype: str = "uint8",
    image_size: tuple[int, int] | None = (320, 320),
    four_outputs: bool = False,
    boxes: int = 1,
    one_picture: bool = False,
    refuses_light: bool = False,
    burden: int = 0,
    slowness: int = 0,
    more: dict[str, str] | None = None,
) -> Path:
    """One box of class 0 around the bright pixels of the picture; its score is the brightest pixel's brightness.

    `boxes`: filled up with zeros to so many (not of `four_outputs`), as exporters do.
    `one_picture`: of a batch all but the first are zeros, as in exports whose loop over pictures was traced for one.
    `refuses_light`: an inference error at the first bright pixel. `burden` convolutions of 3 to 3 channels come first
    and change nothing but the time it takes. `slowness`: the side of the square matrices whose product each inference
    must take. `more` is metadata.
    """
    g = Graph()
    picture = g.picture(dtype, "nchw")
    load = picture
    for _ in range(burden):
        load = g.op("Conv", load, g.const(np.full((3, 3, 3, 3), 0.01)), pads=[1, 1, 1, 1])
    if burden:
        picture = g.op("Add", picture, g.mul(load, 0))
    light = g.op("ReduceMax", picture, axes=[1], keepdims=1)
    columns = g.op("ReduceMax", light, axes=[2], keepdims=1)
    rows = g.op("ReduceMax", light, axes=[3], keepdims=1)
    edges = []
    for line, axis in ((columns, 3), (rows, 2)):
        mask = g.op("Cast", g.op("Greater", line, g.const(BRIGHT)), to=FLOAT)
        forward, backward = g.count(line, axis), g.count(line, axis, reverse=True)
        size = g.op("ReduceMax", forward, axes=[1, 2, 3], keepdims=1)
        last = g.op("ReduceMax", g.op("Mul", mask, forward), axes=[1, 2, 3], keepdims=1)
        first = g.op("Sub", size, g.op("ReduceMax", g.op("Mul", mask, backward), axes=[1, 2, 3], keepdims=1))
        # Nothing bright is an empty box at 0, and none that is inside out.
        edges.append((g.op("Mul", first, g.op("ReduceMax", mask, axes=[1, 2, 3], keepdims=1)), last))
    (left, right), (top, bottom) = edges
    mask = g.op("Cast", g.op("Greater", columns, g.const(BRIGHT)), to=FLOAT)
    score = g.op("ReduceMax", g.op("Mul", mask, columns), axes=[1, 2, 3], keepdims=1)
    if refuses_light:  # there is no second element to gather
        lit = g.op("Cast", g.op("ReduceMax", mask, axes=[0, 1, 2, 3], keepdims=0), to=TensorProto.INT64)
        score = g.op("Mul", score, g.op("Gather", g.const([1.0]), lit))
    if one_picture:
        first = g.op("Cast", g.op("Less", g.count(score, 0), g.const(1.5)), to=FLOAT)
        score = g.op("Mul", score, first)
    if slowness:
        weights = np.random.default_rng(3).random((slowness, slowness)) / slowness
        peak = g.op("ReduceMax", score, axes=[0, 1, 2, 3], keepdims=0)
        product = g.op("MatMul", g.op("Mul", g.const(weights), peak), g.const(weights))
        score = g.op("Add", score, g.mul(g.op("ReduceMax", product, keepdims=0), 1e-9))
    box = [g.reshape(edge, 0, 1, 1) for edge in (left, top, right, bottom)]
    metadata = {"names": repr({0: label})} if label else {}
    if image_size:
        metadata["imgsz"] = str(list(image_size))
    metadata |= more or {}
    if four_outputs:
        score = g.reshape(score, 0, 1)
        number = g.op("Cast", g.mul(score, 0), to=TensorProto.INT64)
        count = g.op("Cast", g.op("Greater", score, g.const(0.0)), to=TensorProto.INT64)
        outputs = [
            (count, TensorProto.INT64),
            (g.op("Concat", *box, axis=2), FLOAT),
            (score, FLOAT),
            (number, TensorProto.INT64),
        ]
    else:
        score = g.reshape(score, 0, 1, 1)
        row = g.op("Concat", *box, score, g.mul(score, 0), axis=2)
        if boxes > 1:
            row = g.op("Pad", row, g.const([0, 0, 0, 0, boxes - 1, 0], np.int64))
        outputs = [(row, FLOAT)]
    return g.save(path, outputs, dtype=dtype, metadata=metadata)


def cells(
    path: Path,
    *,
    head: str = "yolov5",
    dtype: str = "uint8",
    layout: str = "nchw",
    batch: int | None = None,
    size: tuple[int | None, int | None] = (None, None),
    names: str | None = "{0: 'red', 1: 'blue'}",
    image_size: tuple[int, int] | None = None,
    raw_outputs: bool = False,
    decoded: bool = True,
    frozen_height: int | None = None,
    one_picture: bool = False,
    strides: tuple[int, ...] = STRIDES,
    angle: float | None = None,
    kills_deepsparse: bool = False,
) -> Path:
    """A grid head: `yolov5`, `yolov8` or `yolov8-transposed`, two classes.

    `frozen_height`: rows are counted from the bottom of a picture of this height, so at any other the graph still runs
    and every box is in the wrong place. `batch`: written into the graph, which then runs with no other.
    `one_picture`: of a batch only the first comes out. `strides`: of its levels. `angle`: a column more.
    `raw_outputs` adds YOLOv5's raw heads; `decoded=False` leaves only those. `kills_deepsparse` (YOLOv5): the three
    anchors are one tensor joined to itself, which is well-formed and which ONNX Runtime runs, but at which DeepSparse
    1.8.0 fails an assertion and ends its process.
    """
    g = Graph()
    picture = g.picture(dtype, layout)
    light = g.op("ReduceMax", picture, axes=[1], keepdims=1)
    red = g.op("Slice", picture, g.const([0], np.int64), g.const([1], np.int64), g.const([1], np.int64))
    blue = g.op("Slice", picture, g.const([2], np.int64), g.const([3], np.int64), g.const([1], np.int64))
    with_raw = raw_outputs or not decoded
    levels, raw = [], []
    for stride in strides:
        pool = {"kernel_shape": [stride, stride], "strides": [stride, stride]}
        brightness = g.op("AveragePool", light, **pool)
        # Grey padding is 0.45: nothing. Only the coarsest level speaks, so that one cell is one object.
        present = g.op("Clip", g.mul(g.add(brightness, -0.5), 2), g.const(0.0), g.const(1.0))
        present = g.mul(present, float(stride == strides[-1]))
        x = g.mul(g.add(g.count(brightness, 3), -0.5), stride)
        if frozen_height is None:
            y = g.mul(g.add(g.count(brightness, 2), -0.5), stride)
        else:
            y = g.add(g.mul(g.add(g.count(brightness, 2, reverse=True), -0.5), -stride), frozen_height)
        side = g.add(g.mul(brightness, 0), stride)
        colours = [g.op("AveragePool", colour, **pool) for colour in (red, blue)]
        if head != "yolov5":
            colours = [g.op("Mul", present, colour) for colour in colours]
        # Of YOLOv5's three anchors the first is the one that matches; the others score too low to be seen.
        matches = [1.0] * 3 if kills_deepsparse else [1.0, 0.2, 0.1]
        for match in matches if head == "yolov5" else [1.0]:
            objectness = [g.mul(present, match)] if head == "yolov5" else []
            turned = [] if angle is None else [g.add(g.mul(brightness, 0), angle)]
            columns = [x, y, side, side, *objectness, *colours, *turned]
            if not (kills_deepsparse and len(levels) % 3):
                level = g.op("Concat", *(g.reshape(c, batch or 0, -1, 1) for c in columns), axis=2)
            levels.append(level)
        if with_raw:
            # Their numbers are never read; their shape (batch, 3, height, width, 7) is what they are here for.
            anchor = g.op("Transpose", g.op("Concat", *columns, axis=1), perm=[0, 2, 3, 1])
            anchor = g.op("Unsqueeze", anchor, g.const([1], np.int64))
            raw.append(g.op("Concat", anchor, anchor, anchor, axis=1))
    predictions = g.op("Concat", *levels, axis=1)
    if one_picture:
        predictions = g.op("Slice", predictions, *(g.const([n], np.int64) for n in (0, 1, 0)))
    if head == "yolov8":
        predictions = g.op("Transpose", predictions, perm=[0, 2, 1])
    outputs = [(predictions, FLOAT)] if decoded else []
    outputs += [(name, FLOAT) for name in raw]
    metadata = {"names": names} if names else {}
    if image_size:
        metadata["imgsz"] = str(list(image_size))
    shape = (batch, 3, *size) if layout == "nchw" else (batch, *size, 3)
    return g.save(path, outputs, dtype=dtype, shape=shape, metadata=metadata)


def convolved(
    path: Path,
    *,
    classes: int = 2,
    size_power: float = 2.0,
    batch: int | None = None,
    dtype: str = "uint8",
    integers: bool = False,
) -> Path:
    """A YOLOv5 head as trained ones have it: random convolutions, then their decoding, in the graph.

    `size_power` other than 2 is another decoding than YOLOv5's. `integers`: the convolutions are quantised, as the
    trainer exports them. What it detects means nothing, but it detects much.
    """
    g = Graph()
    picture = g.picture(dtype, "nchw")
    random = np.random.default_rng(7)
    values = 5 + classes
    levels = []
    for stride, anchors in zip(STRIDES, ANCHORS, strict=True):
        pooled = g.op("AveragePool", picture, kernel_shape=[stride, stride], strides=[stride, stride])
        # Low objectness, so that most cells are silent.
        weights = random.normal(0, 2, (3 * values, 3, 1, 1))
        bias = random.normal(0, 1, 3 * values)
        bias[4::values] -= 2
        if integers:
            raw = integer_convolution(g, pooled, weights, bias)
        else:
            raw = g.op("Conv", pooled, g.const(weights), g.const(bias))
        share = g.op("Sigmoid", raw)
        places = [g.add(g.count(g.op("ReduceMax", share, axes=[1], keepdims=1), axis), -1.5) for axis in (3, 2)]
        channels = []
        for anchor in range(3):
            part = [
                g.op(
                    "Slice", share, *(g.const([n], np.int64) for n in (anchor * values + i, anchor * values + i + 1, 1))
                )
                for i in range(4)
            ]
            channels += [g.mul(g.op("Add", g.mul(part[i], 2), places[i]), stride) for i in range(2)]
            channels += [
                g.mul(g.op("Pow", g.mul(part[2 + i], 2), g.const(size_power)), anchors[anchor][i]) for i in range(2)
            ]
            first, last = anchor * values + 4, (anchor + 1) * values
            channels.append(g.op("Slice", share, *(g.const([n], np.int64) for n in (first, last, 1))))
        rows = g.op("Transpose", g.reshape(g.op("Concat", *channels, axis=1), 0, 3, values, -1), perm=[0, 1, 3, 2])
        levels.append(g.reshape(rows, 0, -1, values))
    metadata = {"names": repr({number: f"kind {number}" for number in range(classes)}), "imgsz": "[128, 128]"}
    return g.save(
        path, [(g.op("Concat", *levels, axis=1), FLOAT)], dtype=dtype, shape=(batch, 3, None, None), metadata=metadata
    )


def integer_convolution(g: Graph, x: str, weights: np.ndarray[Any, Any], bias: np.ndarray[Any, Any]) -> str:
    """A convolution (1x1) of values in 0..1, as the trainer exports it: bytes, and int8 weights with steps."""
    scale = 1 / 255
    steps = np.abs(weights).max((1, 2, 3)) / 127
    middle = g.op("Identity", g.const(0, np.int8))  # as PyTorch names one constant twice
    q = g.op("QuantizeLinear", x, g.const(scale), g.const(0, np.uint8))
    whole = g.const(np.rint(weights / steps.reshape(-1, 1, 1, 1)), np.int8)
    summed = g.op("ConvInteger", q, whole, g.const(0, np.uint8), middle)
    summed = g.op("Add", summed, g.const(np.rint(bias / (scale * steps)).reshape(1, -1, 1, 1), np.int32))
    return g.op("Mul", g.op("Cast", summed, to=FLOAT), g.const((scale * steps).reshape(1, -1, 1, 1)))


def classifier(path: Path) -> Path:
    """A network that is no detector: ten class scores for a 64x64 picture."""
    g = Graph()
    mean = g.op("ReduceMean", "images", axes=[1, 2, 3], keepdims=0)
    scores = g.op("Mul", g.reshape(mean, 0, 1), g.const(np.ones((1, 10))))
    return g.save(path, [(scores, FLOAT)], shape=(None, 3, 64, 64))


def model_of(
    nodes: list[Any],
    values: dict[str, Any],
    *,
    kind: int = FLOAT,
    shape: tuple[Any, ...] = (1, 3, 64, 96),
    out: str = "out",
) -> bytes:
    """A model of these nodes and constants, opset 14, from `images` to one float output."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("images", kind, shape)],
        [helper.make_tensor_value_info(out, FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8).SerializeToString()
    )


def run(onnx_bytes: bytes, tensor: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The first output, from ONNX Runtime."""
    from detector.prepare.verify import session  # here, since most tests that load this module run no model

    made = session(onnx_bytes)
    result: np.ndarray[Any, Any] = made.run(None, {made.get_inputs()[0].name: tensor})[0]
    return result


def kinds(onnx_bytes: bytes) -> Counter[str]:
    """How many nodes of each kind."""
    return Counter(node.op_type for node in onnx.load_model_from_string(onnx_bytes).graph.node)


def float32(value: float) -> np.ndarray[Any, Any]:
    """A constant of one number."""
    return np.array(value, np.float32)


# The constants of x * clamp(x + 3, 0, 6) / 6, as its spellings name them.
HARD_SWISH_NUMBERS = {"three": float32(3), "zero": float32(0), "six": float32(6)}

ANCHORS = (((10, 13), (16, 30), (33, 23)), ((30, 61), (62, 45), (59, 119)), ((116, 90), (156, 198), (373, 326)))
CLASSES = 2


def yolo_v5(path: Path, *, fixed: tuple[int, int] | None = None, raw_outputs: bool = True) -> Path:
    """A YOLOv5 of three convolutions with random weights, float input and hard-swish, written as PyTorch exports it.

    Its grid follows the shape, or is frozen to `fixed` (height, width).
    """
    random = np.random.default_rng(11)
    nodes: list[Any] = []
    values: dict[str, Any] = {"two": float32(2), "half": float32(0.5), **HARD_SWISH_NUMBERS}

    def op(kind: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [f"t{len(nodes)}"], **attributes))
        return f"t{len(nodes) - 1}"

    def const(value: Any) -> str:
        values[f"k{len(values)}"] = np.asarray(value)
        return f"k{len(values) - 1}"

    def convolution(x: str, inputs: int, outputs: int, size: int) -> str:
        weight = random.normal(size=(outputs, inputs, size, size), scale=(inputs * size * size) ** -0.5)
        # With a bias, as every export has: DeepSparse takes the 3 of hard-swish for the bias of one that has none.
        bias = random.normal(size=outputs, scale=0.1).astype(np.float32)
        return op("Conv", x, const(weight.astype(np.float32)), const(bias), strides=[size, size])

    def level(x: str, channels: int, index: int) -> tuple[str, str]:
        per_anchor = 5 + CLASSES
        raw = convolution(x, channels, 3 * per_anchor, 1)
        shape = op("Shape", raw)
        if fixed is None:
            sides = [op("Gather", shape, const(np.int64(axis)), axis=0) for axis in (2, 3)]
            whole = [op("Unsqueeze", side, const(np.array([0]))) for side in sides]
            target = op("Concat", const(np.array([-1, 3, per_anchor])), *whole, axis=0)
            y, x_ = (op("Range", const(np.int64(0)), side, const(np.int64(1))) for side in sides)
            rows = op("Reshape", y, const(np.array([-1, 1])))
            columns = op("Reshape", x_, const(np.array([1, -1])))
            grid_shape = op("Concat", *whole, axis=0)
            pair = [op("Unsqueeze", op("Expand", a, grid_shape), const(np.array([-1]))) for a in (columns, rows)]
            grid = op("Cast", op("Concat", *pair, axis=-1), to=FLOAT)
        else:
            height, width = (side // STRIDES[index] for side in fixed)
            target = const(np.array([1, 3, per_anchor, height, width]))
            grid = const(np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32))
        turned = op("Transpose", op("Reshape", raw, target), perm=[0, 1, 3, 4, 2])
        score = op("Sigmoid", turned)
        parts = [
            op("Slice", score, const(np.array([start])), const(np.array([end])), const(np.array([4])))
            for start, end in ((0, 2), (2, 4), (4, per_anchor))
        ]
        centre = op("Add", op("Sub", op("Mul", parts[0], "two"), "half"), grid)
        centre = op("Mul", centre, const(float32(STRIDES[index])))
        anchor = const(np.array(ANCHORS[index], np.float32).reshape(1, 3, 1, 1, 2))
        size = op("Mul", op("Pow", op("Mul", parts[1], "two"), "two"), anchor)
        box = op("Concat", centre, size, parts[2], axis=-1)
        return op("Reshape", box, const(np.array([1, -1, per_anchor]))), turned

    x, before, found = "images", 3, []
    for index, (channels, size) in enumerate(((16, 8), (24, 2), (32, 2))):
        x = convolution(x, before, channels, size)
        x, before = op("HardSwish", x), channels
        found.append(level(x, channels, index))
    nodes.append(helper.make_node("Concat", [rows for rows, _ in found], ["out"], axis=1))
    shape = (1, 3, *(fixed or ("height", "width")))
    proto = onnx.load_model_from_string(model_of(nodes, values, shape=shape))
    if raw_outputs:
        proto.graph.output.extend(helper.make_tensor_value_info(raw, FLOAT, None) for _, raw in found)
    helper.set_model_props(proto, {"names": "{0: 'cat', 1: 'dog'}", "imgsz": "[128, 192]", "author": "me"})
    onnx.save(proto, str(path))
    return path
