"""Detection heads: recognise one from the shapes of the outputs, and read candidates from it.

What tells heads apart is the number of predictions A, which follows from the input's shape. With levels of stride s, a
grid of (height/s) x (width/s) cells each:
- YOLOv5: A = 3 * sum of cells (three anchors a cell), rows of cx, cy, w, h, objectness, one score a class.
- YOLOv8, v11 and kin: A = sum of cells; cx, cy, w, h, one score a class; (4 + classes, A) or, rarely, the other way.
- end to end: NMS is inside, any number of rows of left, top, right, bottom, score, class; or four outputs (how many,
  boxes, scores, classes).
Any number of rows may be that of a grid's cells as well: of six columns the numbers decide then.
All coordinates are pixels of the input picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from detector.errors import EngineRefused, HeadError

Array = NDArray[Any]
HeadKind = Literal["yolov5", "yolov8", "yolov8-transposed", "end-to-end", "end-to-end-4"]

# Strides of the levels in public models: P3-P5 (nearly all), P3-P6 (the large-picture ones), P2-P5, and tiny (P4-P5).
_LEVELS = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32))
ANCHORS = 3  # a cell, in every YOLOv5
NMS_INSIDE = "NMS inside"  # in the description of every head that has it, also in kept verdicts
NOT_FINITE = "the engine's scores or boxes are not finite numbers for this frame"
_EDGE = 1e-3  # what rounding may add to a score of 1
# So large a share of boxes after NMS may be inside out: heads that do not bound their distances (YOLOv6 without DFL,
# RTMDet) give some such where nothing is, and in a grey picture nothing is anywhere. Of centres and sizes that are
# taken for corners nearly all are.
_INSIDE_OUT = 0.1
# Of a plain grey picture most cells of no real detector score so high: nothing is there.
_SEEN_IN_GREY, _MOST = 0.25, 0.5
UNDERSTOOD = (
    "YOLOv5 decoded [1, A, 5+classes] with A = 3 * cells; YOLOv8/v11 [1, 4+classes, A] or [1, A, 4+classes] with "
    "A = cells; end-to-end [1, boxes, 6]; end-to-end in four outputs [1, 1], [1, boxes, 4], [1, boxes], [1, boxes]"
)


@dataclass(frozen=True)
class Candidates:
    """Boxes above the threshold: (n, 4) left, top, right, bottom in input pixels; (n,) scores, classes, and pictures of
    the batch that they are in."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    pictures: NDArray[np.int64]

    def take(self, rows: NDArray[Any]) -> Candidates:
        """Those of these indices, or where this mask is true."""
        return Candidates(self.boxes[rows], self.scores[rows], self.classes[rows], self.pictures[rows])


@dataclass(frozen=True)
class Head:
    """One recognised head at one input shape. `outputs` are the indices of the arrays it reads."""

    kind: HeadKind
    outputs: tuple[int, ...]
    class_count: int | None  # None where the head does not tell
    strides: tuple[int, ...]  # empty for end-to-end heads
    height: int
    width: int
    names: int | None = None  # class names known beforehand, of end-to-end heads: bounds the class numbers

    @property
    def has_nms(self) -> bool:
        """Whether suppression is already done inside the model."""
        return self.kind in ("end-to-end", "end-to-end-4")

    def describe(self) -> str:
        """One line for people."""
        classes = "classes unknown" if self.class_count is None else f"{self.class_count} classes"
        levels = f", strides {'/'.join(map(str, self.strides))}" if self.strides else f", {NMS_INSIDE}"
        return f"{self.kind} ({classes}{levels})"

    def decode(self, outputs: Sequence[Array], conf_thres: float, pictures: int = 1) -> Candidates:
        """Candidates that score above `conf_thres` in the first `pictures` of the batch.

        The score of YOLOv5 is objectness * class score, of the others the class score. Rows below the threshold are
        left before anything is computed of them. Raises EngineRefused where the scores, or boxes of those above the
        threshold, are no numbers.
        """
        arrays = [outputs[index][:pictures] for index in self.outputs]
        if self.kind == "yolov5":
            return _decode_yolov5(arrays[0], conf_thres)
        if self.kind == "yolov8":
            return _decode_yolov8(arrays[0].transpose(0, 2, 1), conf_thres)
        if self.kind == "yolov8-transposed":
            return _decode_yolov8(arrays[0], conf_thres)
        if self.kind == "end-to-end":
            return _listed(*_above(arrays[0], arrays[0][:, :, 4], conf_thres))
        joined, listed = _joined(arrays)
        return _listed(*_above(joined, np.where(listed, arrays[2], 0), conf_thres))


def recognise(outputs: Sequence[Array], height: int, width: int, classes: int | None) -> Head:
    """The head that produced these outputs for an input of height x width pixels.

    `classes` is the number of class names known beforehand, None where there are none. Raises HeadError, listing the
    shapes found and the shapes understood.
    """
    shapes = [tuple(int(size) for size in output.shape) for output in outputs]
    heads = [head for index, shape in enumerate(shapes) for head in _grid_heads(index, shape, height, width)]
    rows = [index for index, shape in enumerate(shapes) if len(shape) == 3 and shape[2] == 6]
    after_nms = Head("end-to-end", (rows[0],), None, (), height, width, classes) if len(rows) == 1 else None
    if after_nms is not None:
        heads = [head for head in heads if not _rather(after_nms, head, outputs)]
    if classes is not None and len(heads) > 1:
        heads = [head for head in heads if head.class_count == classes] or heads
    if len(heads) > 1:
        fits = "; ".join(head.describe() for head in heads)
        raise HeadError(f"outputs {shapes} fit more than one head: {fits}. Set detector.labels to tell them apart")
    if heads:
        return _checked(heads[0], classes, shapes)
    four = _four_outputs(outputs)
    if four is not None:
        return Head("end-to-end-4", four, None, (), height, width, classes)
    if after_nms is not None:
        return after_nms
    raise HeadError(_unknown(shapes, height, width))


def _rather(after_nms: Head, grid: Head, outputs: Sequence[Array]) -> bool:
    """Whether an output that fits both heads by shape holds boxes after NMS, by its numbers on a trial picture.

    The usual 300 boxes are also the cells of strides 16 and 32 at 192x320. Numbers that fit both (a small picture, in
    which all lies within reach of every cell) leave it to the class names.
    """
    if grid.outputs != after_nms.outputs or fault(after_nms, outputs):
        return False
    return after_nms.names not in (None, grid.class_count) or bool(fault(grid, outputs))


def _grid_heads(index: int, shape: tuple[int, ...], height: int, width: int) -> list[Head]:
    """Heads with a grid that one output's shape fits; the count of predictions decides."""
    if len(shape) != 3:
        return []
    heads = []
    _, a, b = shape
    for strides in _LEVELS:
        if height % strides[-1] or width % strides[-1]:
            continue
        cells = sum((height // stride) * (width // stride) for stride in strides)
        if a == ANCHORS * cells and b > 5:
            heads.append(Head("yolov5", (index,), b - 5, strides, height, width))
        if b == cells and a > 4:
            heads.append(Head("yolov8", (index,), a - 4, strides, height, width))
        if a == cells and b > 4:
            heads.append(Head("yolov8-transposed", (index,), b - 4, strides, height, width))
    return heads


def _checked(head: Head, classes: int | None, shapes: list[tuple[int, ...]]) -> Head:
    if head.kind == "yolov8-transposed" and classes is not None and head.class_count == classes + 1:
        raise HeadError(
            f"outputs {shapes} have one column more than the {classes} class names need: it looks like a head with "
            f"objectness and one anchor a cell, which is not understood. Understood: {UNDERSTOOD}"
        )
    return head


def check_class_count(head: Head, outputs: Sequence[Array], named: int | None) -> None:
    """Raise HeadError where a grid head has more classes than the model names: what is left over are none.

    OBB heads have an angle there, pose heads points, segmentation heads the coefficients of masks. `named`: class names
    in the file, or in the config where those are more; None where the file has none.
    """
    if named is None or head.class_count is None or head.class_count <= named:
        return
    shapes = [tuple(int(size) for size in output.shape) for output in outputs]
    more = head.class_count - named
    raise HeadError(
        f"outputs {shapes} have {more} columns more than the {named} class names of the model need: "
        "it looks like an OBB, pose or segmentation head, and only detection heads are understood. If these are "
        "classes, name them all in detector.labels or, as for a model that is deployed or prepared, in the file's "
        "metadata (names)"
    )


def _four_outputs(outputs: Sequence[Array]) -> tuple[int, int, int, int] | None:
    """Indices of (count, boxes, scores, classes), found by shape and type; None where these are no such outputs."""
    if len(outputs) != 4:
        return None
    boxes = [index for index, output in enumerate(outputs) if output.ndim == 3 and output.shape[2] == 4]
    if len(boxes) != 1:
        return None
    many = outputs[boxes[0]].shape[1]
    lists = [index for index, output in enumerate(outputs) if output.ndim == 2 and output.shape[1] == many]
    taken = (*boxes, *lists[-2:])
    counts = [i for i, output in enumerate(outputs) if i not in taken and output.size == len(output)]
    if len(counts) != 1 or len(lists) < 2:
        return None
    first, second = lists[-2:]
    # Class numbers are integers where the exporter keeps types apart; otherwise scores come first (EfficientNMS).
    if np.issubdtype(outputs[first].dtype, np.integer):
        first, second = second, first
    return counts[0], boxes[0], first, second


def _joined(arrays: Sequence[Array]) -> tuple[Array, NDArray[np.bool_]]:
    """Of the four outputs: rows (batch, boxes, 6) as of the single one, and which of them count."""
    counts, boxes, scores, classes = arrays
    # Past the count there is whatever the memory held before.
    listed = np.arange(scores.shape[1]) < counts.reshape(-1, 1)
    return np.concatenate([boxes, scores[:, :, None], classes[:, :, None]], axis=2), listed


def _unknown(shapes: list[tuple[int, ...]], height: int, width: int) -> str:
    found = ", ".join(str(list(shape)) for shape in shapes)
    cells = {
        strides: sum((height // stride) * (width // stride) for stride in strides)
        for strides in _LEVELS
        if not (height % strides[-1] or width % strides[-1])
    }
    counts = ", ".join(f"{count} (strides {'/'.join(map(str, strides))})" for strides, count in cells.items())
    message = f"unknown detection head: outputs {found} for an input of {height}x{width}. Understood: {UNDERSTOOD}"
    message += f"; cells at {height}x{width}: {counts or 'none, the shape is no multiple of a stride'}"
    if shapes and all(len(shape) == 5 and shape[1] == ANCHORS for shape in shapes):
        message += (
            ". These are YOLOv5's raw heads without the decoded output; its anchors are not in the file. "
            "Export again with the detection layer in inference mode"
        )
    return message


def _above(rows: Array, scores: Array, conf_thres: float) -> tuple[Array, NDArray[np.intp]]:
    """Rows (n, values) of (batch, predictions, values) whose score exceeds the threshold, and their pictures.

    Raises EngineRefused for scores (batch, predictions) that are no numbers: those compare as low, and a broken
    inference would pass for an empty scene.
    """
    if scores.size and not np.isfinite(scores.sum()):
        raise EngineRefused(NOT_FINITE)
    pictures, places = np.divmod(np.flatnonzero(scores > conf_thres), max(scores.shape[1], 1))
    return rows[pictures, places], pictures


def _decode_yolov5(rows: Array, conf_thres: float) -> Candidates:
    # Objectness bounds the score from above, so this one strided comparison removes nearly all rows.
    rows, pictures = _above(rows, rows[:, :, 4], conf_thres)
    return best_class(rows[:, :4], rows[:, 5:] * rows[:, 4:5], conf_thres, pictures)


def _decode_yolov8(rows: Array, conf_thres: float) -> Candidates:
    scores = rows[:, :, 4:]
    rows, pictures = _above(rows, scores[:, :, 0] if scores.shape[2] == 1 else scores.max(axis=2), conf_thres)
    return best_class(rows[:, :4], rows[:, 4:], conf_thres, pictures)


def best_class(centred: Array, scores: Array, conf_thres: float, pictures: NDArray[Any]) -> Candidates:
    """One candidate a row: its best class, if that is above the threshold; cx, cy, w, h to corners.

    Raises EngineRefused where the best score, or the box of one above the threshold, is no number.
    """
    if scores.shape[1] == 1:
        classes, best = np.zeros(len(scores), dtype=np.int64), scores[:, 0]
    else:
        classes = scores.argmax(axis=1)
        best = scores[np.arange(len(scores)), classes]
    if not np.isfinite(best.sum()):
        raise EngineRefused(NOT_FINITE)
    half = centred[:, 2:4] / 2
    boxes = np.empty((len(centred), 4), dtype=np.float32)
    np.subtract(centred[:, :2], half, out=boxes[:, :2])
    np.add(centred[:, :2], half, out=boxes[:, 2:])
    found = _candidates(boxes, best, classes, pictures)
    above = best > conf_thres
    if not above.all():
        found = found.take(above)
    _check_finite(found.boxes)
    return found


def _listed(rows: Array, pictures: NDArray[np.intp]) -> Candidates:
    """Candidates of rows (n, 6) after NMS."""
    _check_finite(rows)
    return _candidates(rows[:, :4], rows[:, 4], rows[:, 5], pictures)


def _check_finite(rows: Array) -> None:
    """Raise EngineRefused where what scores above the threshold has a number that is none.

    A box with one is nowhere: further on it would be left out, and a broken inference pass for an empty scene.
    """
    if not np.isfinite(rows).all():
        raise EngineRefused(NOT_FINITE)


def nothing() -> Candidates:
    """No candidates."""
    none = np.empty(0, np.int64)
    return Candidates(np.empty((0, 4), np.float32), np.empty(0, np.float32), none, none)


def _candidates(boxes: Array, scores: Array, classes: Array, pictures: NDArray[Any]) -> Candidates:
    return Candidates(
        boxes.astype(np.float32, copy=False),
        scores.astype(np.float32, copy=False),
        classes.astype(np.int64, copy=False),
        pictures.astype(np.int64, copy=False),
    )


def fault(head: Head, outputs: Sequence[Array]) -> str:
    """What is wrong with a head's numbers on a trial picture; empty when nothing is.

    Not finite, scores that are no probabilities or high all over (the picture is grey), or boxes that do not lie where
    their cells are: an exporter can freeze the grid of the exported shape into the graph, and such a graph may run at
    another shape and misplace every box.
    Six columns that no grid explains are boxes after NMS only if their numbers say so; else the head is unknown.
    """
    arrays = [outputs[index] for index in head.outputs]
    if head.kind == "end-to-end-4":
        joined, listed = _joined(arrays)
        arrays = [joined[listed]]
    if not all(np.isfinite(array).all() for array in arrays):
        return "its outputs are not finite numbers"
    if head.has_nms:
        rows = arrays[0].reshape(-1, 6)
        scores: Array = rows[:, 4]
        unlike = _unlike_nms(rows, head.names)
        if unlike:
            shapes = [tuple(int(size) for size in output.shape) for output in outputs]
            return f"{_unknown(shapes, head.height, head.width)}. By shape it could be {head.kind}, but {unlike}"
    else:
        rows = arrays[0][0].T if head.kind == "yolov8" else arrays[0][0]
        scores = rows[:, 4:]
        misplaced = _misplaced(head, rows[:, :2])
        if misplaced:
            return misplaced
    if scores.size and (scores.min() < -_EDGE or scores.max() > 1 + _EDGE):
        why = "a sigmoid is missing" if head.has_nms else "a sigmoid is missing, or not all of these columns are scores"
        return f"its scores run from {scores.min():.3g} to {scores.max():.3g}, expected 0 to 1 ({why})"
    return "" if head.has_nms or head.kind == "yolov5" else _seen_everywhere(scores)


def _seen_everywhere(scores: Array) -> str:
    """Whether most cells (cells, classes) see something in a grey picture; YOLOv5's objectness stands before that."""
    lit = int((scores.max(axis=1) > _SEEN_IN_GREY).sum())
    if lit <= _MOST * len(scores):
        return ""
    column = int((scores > _SEEN_IN_GREY).sum(axis=0).argmax())
    return (
        f"{lit} of {len(scores)} cells score above {_SEEN_IN_GREY:g} in a plain grey picture, most of them as class "
        f"{column}: that column is no class but objectness or an angle, say, and such heads are not understood"
    )


def _unlike_nms(rows: Array, names: int | None) -> str:
    """Why rows (n, 6) are no boxes after NMS, with `names` class names known; empty where they may be."""
    if not len(rows):
        return ""
    inside_out = int((rows[:, 2:4] < rows[:, :2]).any(axis=1).sum())
    if inside_out > _INSIDE_OUT * len(rows):
        return f"{inside_out} of {len(rows)} boxes have their right or bottom edge before their left or top one"
    classes = rows[:, 5]
    odd = classes[(classes < 0) | (classes % 1 != 0)]
    if len(odd):
        return f"{len(odd)} of {len(rows)} class numbers are no whole numbers from 0, such as {odd[0]:.4g}"
    if names is not None and classes.max() >= names:
        return (
            f"class numbers run to {classes.max():.0f} and there are {names} class names; if the model has more "
            "classes, name them all in detector.labels"
        )
    return ""


def _misplaced(head: Head, centres: Array) -> str:
    """Whether centres stray from their cells further than the head's formula can move them.

    YOLOv5: centre = (cell + 2 * sigmoid - 0.5) * stride, within one stride of the cell's middle. YOLOv8: middle of two
    distances of 0 to 15 strides, within 7.5 strides. Half a stride is left for INT8 rounding.
    """
    grids = []
    for stride in head.strides:
        y, x = np.mgrid[0 : head.height // stride, 0 : head.width // stride]
        grid = np.stack([(x + 0.5) * stride, (y + 0.5) * stride, np.full(x.shape, stride)], axis=-1).reshape(-1, 3)
        # YOLOv5's rows run anchor by anchor inside a level.
        grids.append(np.tile(grid, (ANCHORS, 1)) if head.kind == "yolov5" else grid)
    cells = np.concatenate(grids)
    reach = 1.5 if head.kind == "yolov5" else 8.0
    strays = np.abs(centres - cells[:, :2]).max(axis=1) > reach * cells[:, 2]
    if not strays.any():
        return ""
    return (
        f"{int(strays.sum())} of {len(strays)} boxes lie outside their grid cells: the graph has the grid of another "
        "input shape frozen in, or another order of predictions"
    )
