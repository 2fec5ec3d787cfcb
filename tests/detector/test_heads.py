"""Heads: real graphs run by a real engine give the boxes that were painted; what is no head is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector import heads
from detector.detector import Detector
from detector.engines.onnxruntime import OnnxRuntimeEngine
from detector.errors import EngineRefused, HeadError
from detector.heads import Candidates, Head
from detector.model import read_model
from detector.settings import DetectorSettings

Array = np.ndarray[Any, Any]
Settings = Callable[..., DetectorSettings]


def run(path: Path, rgb: Array) -> list[Array]:
    model = read_model(path)
    height, width = rgb.shape[:2]
    tensor = model.tensor(1, height, width, 0)
    picture = rgb.transpose(2, 0, 1) if model.layout == "nchw" else rgb
    tensor[0] = picture if model.dtype == "uint8" else picture / 255
    return list(OnnxRuntimeEngine.load(model.with_shape(1, height, width), 1).infer(tensor))


def plain(found: Candidates) -> list[tuple[int, float, list[float]]]:
    order = np.argsort(found.classes)
    return [(int(found.classes[i]), round(float(found.scores[i]), 2), np.round(found.boxes[i]).tolist()) for i in order]


PAINTED = [(0, 1.0, [64.0, 32.0, 96.0, 64.0]), (1, 1.0, [0.0, 64.0, 32.0, 96.0])]


@pytest.mark.parametrize("kind", ["yolov5", "yolov8", "yolov8-transposed"])
@pytest.mark.parametrize(("dtype", "layout"), [("uint8", "nchw"), ("float32", "nhwc"), ("float16", "nchw")])
def test_grid_heads_give_the_painted_boxes(
    graphs: ModuleType, tmp_path: Path, painted: Array, kind: str, dtype: str, layout: str
) -> None:
    outputs = run(graphs.cells(tmp_path / "m.onnx", head=kind, dtype=dtype, layout=layout), painted)
    head = heads.recognise(outputs, 96, 96, None)
    assert (head.kind, head.class_count, head.strides) == (kind, 2, (8, 16, 32))
    assert not heads.fault(head, outputs)
    assert plain(head.decode(outputs, 0.5)) == PAINTED


def test_raw_outputs_beside_the_decoded_one_are_ignored(graphs: ModuleType, tmp_path: Path, painted: Array) -> None:
    outputs = run(graphs.cells(tmp_path / "m.onnx", raw_outputs=True), painted)
    assert len(outputs) == 4
    head = heads.recognise(outputs, 96, 96, 2)
    assert (head.kind, head.outputs) == ("yolov5", (0,))
    assert plain(head.decode(outputs, 0.5)) == PAINTED


@pytest.mark.parametrize("four", [False, True])
def test_end_to_end_heads_give_the_bright_box(graphs: ModuleType, tmp_path: Path, four: bool) -> None:
    picture = np.full((224, 320, 3), 40, np.uint8)
    picture[30:70, 100:180] = 250
    outputs = run(graphs.bright_box(tmp_path / "m.onnx", four_outputs=four), picture)
    head = heads.recognise(outputs, 224, 320, 1)
    assert head.has_nms
    assert not heads.fault(head, outputs)
    assert plain(head.decode(outputs, 0.5)) == [(0, 0.98, [100.0, 30.0, 180.0, 70.0])]
    assert plain(head.decode(run(tmp_path / "m.onnx", picture // 4), 0.5)) == []


def test_four_outputs_are_told_apart_in_any_order() -> None:
    count, boxes = np.array([[2]]), np.array([[[0, 0, 9, 9], [5, 5, 8, 8], [7, 7, 7, 7]]], np.float32)
    scores, classes = np.array([[0.9, 0.4, 0.8]], np.float32), np.array([[3, 1, 2]])
    for outputs in ([count, boxes, scores, classes], [classes, scores, boxes, count]):
        head = heads.recognise(outputs, 320, 320, None)
        found = head.decode(outputs, 0.5)
        assert (found.scores.tolist(), found.classes.tolist()) == ([pytest.approx(0.9)], [3])


CELLS = 2100  # 40*40 + 20*20 + 10*10, of a 320x320 picture


def zeros(*shape: int) -> list[Array]:
    return [np.zeros(shape, np.float32)]


@pytest.mark.parametrize(
    ("shape", "kind", "classes"),
    [
        ((1, 3 * CELLS, 7), "yolov5", 2),
        ((1, 300, 6), "end-to-end", None),
        ((1, 6, CELLS), "yolov8", 2),
        ((1, CELLS, 7), "yolov8-transposed", 3),
        ((1, 84, CELLS), "yolov8", 80),
        ((1, 3 * 2125, 85), "yolov5", 80),  # four levels, to stride 64
    ],
)
def test_the_count_of_predictions_tells_heads_apart(shape: tuple[int, ...], kind: str, classes: int | None) -> None:
    head = heads.recognise(zeros(*shape), 320, 320, None)
    assert (head.kind, head.class_count) == (kind, classes)


# Shapes with as many cells (strides 16 and 32) as an end-to-end head has rows.
AS_MANY = [((192, 320), 300), ((320, 192), 300), ((160, 384), 300), ((160, 128), 100)]


@pytest.mark.parametrize(("size", "count"), AS_MANY)
@pytest.mark.parametrize("names", [None, 1, 2, 80])
def test_boxes_after_nms_are_known_by_their_numbers_where_they_are_as_many_as_cells(
    size: tuple[int, int], count: int, names: int | None
) -> None:
    rows = np.zeros((1, count, 6), np.float32)  # what exporters fill up with
    rows[0, :2] = [[10, 10, 60, 60, 0.01, 0], [30, 30, 90, 90, 0.005, 0]]
    head = heads.recognise([rows], *size, names)
    assert head.kind == "end-to-end" and not heads.fault(head, [rows])


@pytest.mark.parametrize(("size", "count"), AS_MANY)
@pytest.mark.parametrize("names", [None, 2])
def test_cells_are_known_by_their_numbers_where_they_are_as_many_as_boxes_after_nms(
    size: tuple[int, int], count: int, names: int | None
) -> None:
    rows = np.concatenate([middles(*size, stride) for stride in (16, 32)])[None]
    assert rows.shape == (1, count, 6)
    rows[0, :, 4:] = 0.003, 0.001
    head = heads.recognise([rows], *size, names)
    assert (head.kind, head.strides) == ("yolov8-transposed", (16, 32)) and not heads.fault(head, [rows])


def test_one_class_with_objectness_has_six_columns_too_and_is_no_end_to_end_head() -> None:
    rows = np.concatenate([np.tile(middles(320, 320, stride), (3, 1)) for stride in (8, 16, 32)])[None]
    head = heads.recognise([rows], 320, 320, 1)
    assert (head.kind, head.class_count) == ("yolov5", 1) and not heads.fault(head, [rows])


def middles(height: int, width: int, stride: int) -> Array:
    """Rows (cells, 6) of a grid head: each cell's middle, a box of one stride, nothing in it."""
    y, x = np.mgrid[0 : height // stride, 0 : width // stride].reshape(2, -1)
    side = np.full(len(x), stride)
    return np.stack([(x + 0.5) * stride, (y + 0.5) * stride, side, side, 0 * side, 0 * side], 1).astype(np.float32)


def test_a_model_with_nms_inside_bears_rectangles_with_as_many_cells_as_it_gives_boxes(
    graphs: ModuleType, tmp_path: Path, settings: Settings
) -> None:
    path = graphs.bright_box(tmp_path / "m.onnx", boxes=300)
    for full in (320, 320), (192, 320):
        detector = Detector.load(settings(path, image_shape=full, batch=1))
        assert detector.spec.rectangular, detector.choice.rectangular_because
        assert detector.choice.verdict.head.startswith("end-to-end")


@pytest.mark.parametrize("shape", [(1, 10), (1, 100, 7), (1, 3 * CELLS, 5), (1, 3, 40, 40, 85), (1, CELLS + 1, 84), ()])
def test_an_unknown_head_is_refused_with_what_was_found_and_what_is_understood(shape: tuple[int, ...]) -> None:
    with pytest.raises(HeadError) as refused:
        heads.recognise(zeros(*shape), 320, 320, None)
    assert str(list(shape)) in str(refused.value)
    assert "Understood: YOLOv5" in str(refused.value)
    assert "2100 (strides 8/16/32)" in str(refused.value)


def test_raw_yolov5_heads_alone_are_refused_with_the_mend(graphs: ModuleType, tmp_path: Path, painted: Array) -> None:
    outputs = run(graphs.cells(tmp_path / "m.onnx", decoded=False), painted)
    with pytest.raises(HeadError, match="Export again with the detection layer in inference mode"):
        heads.recognise(outputs, 96, 96, None)


def test_two_heads_that_fit_are_told_apart_by_class_names_or_refused() -> None:
    both = [*zeros(1, 84, CELLS), *zeros(1, 6, CELLS)]
    with pytest.raises(HeadError, match="more than one head"):
        heads.recognise(both, 320, 320, None)
    assert heads.recognise(both, 320, 320, 2).outputs == (1,)


def test_an_objectness_column_with_one_anchor_is_not_taken_for_a_class() -> None:
    with pytest.raises(HeadError, match="objectness"):
        heads.recognise(zeros(1, CELLS, 85), 320, 320, 80)


@pytest.mark.parametrize(
    "shape",
    [
        (1, 4 + 3 + 1, CELLS),  # an angle
        (1, 4 + 3 + 51, CELLS),  # 17 points
        (1, CELLS, 4 + 3 + 32),  # coefficients of masks
        (1, 3 * CELLS, 5 + 3 + 32),
    ],
)
def test_more_classes_than_the_model_names_are_none(shape: tuple[int, ...]) -> None:
    outputs = zeros(*shape)
    head = heads.recognise(outputs, 320, 320, 3)
    with pytest.raises(HeadError, match=r"more than the 3 class names .* OBB, pose or .*detector\.labels"):
        heads.check_class_count(head, outputs, 3)
    for named in (None, head.class_count, 100):
        heads.check_class_count(head, outputs, named)


def test_class_names_of_the_config_count_as_the_files_do(
    graphs: ModuleType, tmp_path: Path, settings: Settings
) -> None:
    small: dict[str, Any] = {"rectangular": False, "batch": 1}
    path = graphs.cells(tmp_path / "m.onnx", head="yolov8", size=(96, 96), names="{0: 'red'}")
    with pytest.raises(HeadError, match=r"m\.onnx: .* 1 columns more than the 1 class names .* OBB, pose"):
        Detector.load(settings(path, labels=["rouge"], **small))
    for labels in (["rouge", "bleu"], {1: "bleu"}):
        assert Detector.load(settings(path, labels=labels, **small)).choice.verdict.class_count == 2
    path = graphs.cells(tmp_path / "named.onnx", head="yolov8", size=(96, 96))
    assert Detector.load(settings(path, labels=["rouge"], **small)).choice.verdict.class_count == 2


def test_a_column_that_is_high_where_nothing_is_is_no_class(
    graphs: ModuleType, tmp_path: Path, settings: Settings
) -> None:
    path = graphs.cells(tmp_path / "m.onnx", head="yolov8", size=(96, 96), names=None, angle=0.3)
    with pytest.raises(EngineRefused, match=r"189 of 189 cells .* plain grey picture, most of them as class 2"):
        Detector.load(settings(path, rectangular=False, batch=1))
    path = graphs.cells(tmp_path / "n.onnx", head="yolov8", size=(96, 96), names=None, angle=-0.5)
    with pytest.raises(EngineRefused, match=r"scores run from -0\.5 .* not all of these columns are scores"):
        Detector.load(settings(path, rectangular=False, batch=1))


def test_objectness_of_one_all_over_is_no_class() -> None:
    rows = np.concatenate([middles(320, 320, stride) for stride in (8, 16, 32)])
    rows = np.concatenate([rows[:, :4], np.ones((CELLS, 1)), rows[:, 4:]], axis=1)[None].astype(np.float32)
    head = heads.recognise([rows], 320, 320, None)
    assert "2100 of 2100 cells score above 0.25" in heads.fault(head, [rows])
    rows[0, CELLS // 3 :, 4] = 0.2  # of some cells a network may believe what it likes
    assert not heads.fault(head, [rows])


def test_a_grid_frozen_at_another_shape_is_found_out(graphs: ModuleType, tmp_path: Path, painted: Array) -> None:
    path = graphs.cells(tmp_path / "m.onnx", frozen_height=96)
    whole = run(path, painted)
    assert not heads.fault(heads.recognise(whole, 96, 96, 2), whole)
    half = run(path, painted[:64])
    head = heads.recognise(half, 64, 96, 2)  # the counts are right
    assert "outside their grid cells" in heads.fault(head, half)


def test_numbers_that_no_detector_gives_are_found_out() -> None:
    head = Head("end-to-end", (0,), None, (), 320, 320)
    rows = np.zeros((1, 2, 6), np.float32)
    assert not heads.fault(head, [rows])
    rows[0, 0, 4] = 3.5
    assert "sigmoid" in heads.fault(head, [rows])
    rows[0, 0, 0] = np.nan
    assert "not finite" in heads.fault(head, [rows])


def test_a_grid_of_unknown_levels_with_six_columns_is_no_end_to_end_head(
    graphs: ModuleType, tmp_path: Path, settings: Settings
) -> None:
    path = graphs.cells(tmp_path / "m.onnx", head="yolov8-transposed", strides=(8, 16), image_size=(96, 96))
    with pytest.raises(
        EngineRefused, match=r"unknown detection head: outputs \[1, 180, 6\].* Understood: YOLOv5.* 189 "
    ):
        Detector.load(settings(path))


# left, top, right, bottom, score, class
AFTER_NMS = [[10, 20, 30, 40, 0.9, 1], [5, 5, 5, 5, 0.1, 0], [0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([30, 20, 10, 40, 0.9, 1], "1 of 4 boxes have their right or bottom edge before"),
        ([10, 40, 30, 20, 0.9, 1], "1 of 4 boxes have their right or bottom edge before"),
        ([10, 20, 30, 40, 0.9, 0.3], "no whole numbers from 0, such as 0.3"),  # the score of a second class
        ([10, 20, 30, 40, 0.9, -1], "no whole numbers from 0, such as -1"),
        ([10, 20, 30, 40, 0.9, 2], "class numbers run to 2 and there are 2 class names"),
    ],
)
def test_rows_of_six_that_are_no_boxes_after_nms_are_an_unknown_head(row: list[float], words: str) -> None:
    for rows, wrong in ((AFTER_NMS, False), ([*AFTER_NMS, row], True)):
        one = [np.array([rows], np.float32)]
        head = heads.recognise(one, 320, 320, 2)
        told = heads.fault(head, one)
        assert (words in told and "unknown detection head: outputs [1, 4, 6]" in told) if wrong else not told
        four = [np.array([[len(rows)]]), one[0][..., :4], one[0][..., 4], one[0][..., 5]]
        head = heads.recognise(four, 320, 320, 2)
        assert (words in heads.fault(head, four)) == wrong
        four[0] = np.array([[3]])  # what lies past the count is no box
        assert not heads.fault(head, four)


def test_class_numbers_are_not_bounded_where_no_names_are_known() -> None:
    rows = [np.array([[[10, 20, 30, 40, 0.9, 79]]], np.float32)]
    assert not heads.fault(heads.recognise(rows, 320, 320, None), rows)


def test_a_few_boxes_inside_out_are_what_some_heads_give_where_nothing_is() -> None:
    rows = np.tile(np.array([10, 20, 30, 40, 0.01, 0], np.float32), (1, 300, 1))
    rows[0, :20, 2] = 9
    assert not heads.fault(heads.recognise([rows], 320, 320, None), [rows])


@pytest.mark.parametrize("shape", [(1, 3 * CELLS, 7), (1, 6, CELLS), (1, 300, 6)])
def test_a_broken_inference_is_an_error_and_no_empty_scene(shape: tuple[int, ...]) -> None:
    outputs = zeros(*shape)
    head = heads.recognise(outputs, 320, 320, None)
    assert not len(head.decode(outputs, 0.25).scores)
    outputs[0][0, 4, 4] = np.nan
    with pytest.raises(EngineRefused, match="not finite"):
        head.decode(outputs, 0.25)


# Where a box lies in the output of each head, and its scores.
@pytest.mark.parametrize(
    ("shape", "box", "scores"),
    [
        ((1, 3 * CELLS, 7), np.s_[0, 9, :4], np.s_[0, 9, 4:]),
        ((1, 6, CELLS), np.s_[0, :4, 9], np.s_[0, 4:, 9]),
        ((1, 300, 6), np.s_[0, 9, :4], np.s_[0, 9, 4:5]),
        ((1, 300, 6), np.s_[0, 9, 5:], np.s_[0, 9, 4:5]),  # the class's number
    ],
)
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_box_that_is_no_number_is_an_error_where_it_scores(
    shape: tuple[int, ...], box: Any, scores: Any, broken: float
) -> None:
    outputs = zeros(*shape)
    head = heads.recognise(outputs, 320, 320, None)
    outputs[0][box][-1:] = broken
    assert not len(head.decode(outputs, 0.25).scores)  # of what is not told, nobody asks where it lies
    outputs[0][scores] = 0.9
    with pytest.raises(EngineRefused, match="not finite"):
        head.decode(outputs, 0.25)


def test_a_box_of_four_outputs_that_is_no_number_is_an_error_where_it_scores() -> None:
    count, boxes = np.array([[2]]), np.array([[[0, 0, 9, 9], [5, 5, 8, 8], [7, 7, 7, np.nan]]], np.float32)
    outputs = [count, boxes, np.array([[0.9, 0.4, 0.8]], np.float32), np.array([[3, 1, 2]])]
    head = heads.recognise(outputs, 320, 320, None)
    assert len(head.decode(outputs, 0.25).scores) == 2  # the third lies past the count
    count[0] = 3
    with pytest.raises(EngineRefused, match="not finite"):
        head.decode(outputs, 0.25)


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.99), st.integers(1, 4))
def test_decoding_equals_the_row_by_row_definition(seed: int, conf_thres: float, classes: int) -> None:
    cells = 8 * 8 + 4 * 4 + 2 * 2
    rows = np.random.default_rng(seed).random((1, 3 * cells, 5 + classes)).astype(np.float32)
    head = heads.recognise([rows], 64, 64, None)
    found = head.decode([rows], conf_thres)
    expected = []
    for cx, cy, w, h, objectness, *scores in rows[0]:
        products = [np.float32(objectness * score) for score in scores]
        best = max(range(classes), key=lambda number: products[number])
        if products[best] > np.float32(conf_thres):
            expected.append((best, products[best], [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]))
    assert found.classes.tolist() == [number for number, _, _ in expected]
    assert found.scores.tolist() == [score for _, score, _ in expected]
    assert np.allclose(found.boxes, np.reshape([box for _, _, box in expected], (-1, 4)), atol=1e-6)
