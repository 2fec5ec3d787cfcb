"""A Detector says what is in a frame, in the source's pixels; and says plainly what it cannot take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import structlog

from detector import engines
from detector.choose import Trials
from detector.detector import Detector
from detector.errors import BadFrame, EngineRefused, EngineUnavailable, HeadError, ModelError
from detector.model import read_model
from detector.settings import DetectorSettings
from wire.messages import FrameHeader, InputSpec

Array = np.ndarray[Any, Any]
Settings = Callable[..., DetectorSettings]
Header = Callable[..., FrameHeader]


@pytest.fixture
def machine_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this a machine that has none but the named engines."""

    def have(*names: str) -> None:
        for name in list(engines.KINDS):
            if name not in names:
                absent = {"distribution": "no_such_package_of_sparsecam", "needs": f"pip install {name}"}
                monkeypatch.setitem(engines.KINDS, name, replace(engines.KINDS[name], **absent))

    return have


def test_painted_objects_are_found_by_name(
    graphs: ModuleType, tmp_path: Path, settings: Settings, painted: Array, engine: str
) -> None:
    detector = Detector.load(settings(graphs.cells(tmp_path / "m.onnx", size=(96, 96)), engine=engine, batch=1))
    found = {
        d.label: (d.class_id, round(d.score, 2), tuple(map(round, d.box)))
        for d in detector.detect_image(painted[:, :, ::-1])
    }
    assert found == {"red": (0, 1.0, (64, 32, 96, 64)), "blue": (1, 1.0, (0, 64, 32, 96))}
    assert detector.spec == InputSpec(96, 96, 32, True)
    assert detector.last.engine_ms > 0


def test_boxes_are_in_pixels_of_the_source_and_clipped_to_it(
    bright_box_model: Path, settings: Settings, header: Header
) -> None:
    detector = Detector.load(settings(bright_box_model))
    pixels = np.full((192, 320, 3), 114, np.uint8)
    pixels[0:40, 100:140] = 255  # from above the picture: the letterbox's padding is 6 rows
    facts = {"source_height": 720, "source_width": 1280, "scale": 0.25, "pad_top": 6, "pad_left": 0}
    (found,) = detector.detect(header(192, 320, **facts), pixels)
    assert found.box == (400.0, 0.0, 560.0, 136.0)
    assert (found.label, found.score) == ("bright", 1.0)


def test_an_object_wholly_in_the_padding_is_none(bright_box_model: Path, settings: Settings, header: Header) -> None:
    detector = Detector.load(settings(bright_box_model))
    pixels = np.full((192, 320, 3), 114, np.uint8)
    pixels[0:4, 100:140] = 255
    assert detector.detect(header(192, 320, source_height=180, pad_top=6), pixels) == []


def test_objects_in_the_padding_do_not_use_up_the_limit(
    graphs: ModuleType, tmp_path: Path, settings: Settings, header: Header, painted: Array
) -> None:
    path = graphs.cells(tmp_path / "m.onnx", size=(96, 96))
    detector = Detector.load(settings(path, rectangular=False, batch=1, max_detections=1))
    (found,) = detector.detect(header(96, 96, source_height=32, pad_top=64), painted)  # red is above the picture
    assert (found.label, found.box) == ("blue", (0, 0, 32, 32))


def test_nor_do_they_where_more_score_than_are_suppressed_at_once(
    cells_model: Path, settings: Settings, header: Header
) -> None:
    detector = Detector.load(settings(cells_model, rectangular=False, batch=1, conf_thres=0.05, max_detections=60))
    white = np.full((320, 320, 3), 255, np.uint8)  # 300 candidates, which are 100 objects
    found = detector.detect(header(320, 320, source_height=192, pad_top=64), white)
    assert len({detection.box for detection in found}) == 60


def test_i420_frames_are_detected(bright_box_model: Path, settings: Settings, header: Header) -> None:
    detector = Detector.load(settings(bright_box_model))
    rgb = np.full((320, 320, 3), 40, np.uint8)
    rgb[32:96, 64:128] = 255
    planes = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420)
    (found,) = detector.detect(header(320, 320, pixel_format="i420"), memoryview(planes).cast("B"))
    assert found.box == (64.0, 32.0, 128.0, 96.0)


def test_the_threshold_and_the_limit_hold(
    graphs: ModuleType, tmp_path: Path, settings: Settings, painted: Array
) -> None:
    path = graphs.cells(tmp_path / "m.onnx", size=(96, 96))
    painted[64:96, 0:32] = (0, 0, 170)  # objectness 0.33, class score 0.67
    bgr = painted[:, :, ::-1]
    assert len(Detector.load(settings(path, rectangular=False, conf_thres=0.2)).detect_image(bgr)) == 2
    assert len(Detector.load(settings(path, rectangular=False)).detect_image(bgr)) == 1
    assert (
        len(Detector.load(settings(path, rectangular=False, conf_thres=0.2, max_detections=1)).detect_image(bgr)) == 1
    )


def test_compiled_shapes_are_bounded_and_the_oldest_goes(
    bright_box_model: Path, settings: Settings, header: Header
) -> None:
    detector = Detector.load(settings(bright_box_model, shapes_cached=2, warm_shapes=[(64, 64), (64, 96)]))
    assert detector.describe()["compiled"] == ["64x64", "64x96"]
    detector.detect(header(64, 64), np.zeros((64, 64, 3), np.uint8))
    detector.prepare(64, 128)
    assert detector.describe()["compiled"] == ["64x64", "64x128"]
    assert not detector.refusal
    detector.prepare(64, 96)  # again: more shapes come in turns than are kept
    assert "more shapes than the 2 of detector.shapes_cached" in detector.refusal


@pytest.mark.parametrize(
    ("full", "usual"),
    [
        ((320, 320), "192x320"),  # 16:9, and up to a whole stride
        ((192, 320), "192x320"),  # 16:9 itself: what was tried at half of it is nobody's shape
        ((96, 320), "96x320"),  # lower than any camera's
    ],
)
def test_the_shape_of_most_cameras_is_compiled_at_start_and_batches_are_tried_there(
    graphs: ModuleType, tmp_path: Path, settings: Settings, full: tuple[int, int], usual: str
) -> None:
    detector = Detector.load(settings(graphs.convolved(tmp_path / "m.onnx"), image_shape=full))
    told = detector.describe()
    assert (told["compiled"], told["rectangular"]) == ([usual], True)
    assert f"at {usual}" in told["batch_because"]


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        ((640, 320), {}),  # larger than the model's
        ((100, 320), {}),  # no multiple of the stride
        ((0, 0), {}),
        ((320, 320), {"scale": 0.0}),
        ((320, 320), {"scale": float("nan")}),
        ((320, 320), {"source_width": 0}),
        ((320, 320), {"pixel_format": "i420"}),  # half the bytes
    ],
)
def test_frames_that_make_no_sense_are_refused(
    bright_box_model: Path, settings: Settings, header: Header, shape: tuple[int, int], changes: dict[str, Any]
) -> None:
    detector = Detector.load(settings(bright_box_model))
    with pytest.raises(BadFrame):
        detector.detect(header(*shape, **changes), np.zeros((*shape, 3), np.uint8))
    assert detector.detect(header(320, 320), np.zeros((320, 320, 3), np.uint8)) == []


def test_a_frozen_grid_makes_the_detector_ask_for_full_frames_only(
    graphs: ModuleType, tmp_path: Path, settings: Settings, painted: Array, header: Header
) -> None:
    detector = Detector.load(settings(graphs.cells(tmp_path / "m.onnx", size=(96, 96), frozen_height=96)))
    assert not detector.spec.rectangular
    assert "outside their grid cells" in detector.describe()["rectangular_because"]
    assert len(detector.detect_image(painted[:, :, ::-1])) == 2
    with pytest.raises(BadFrame, match="96x96 exactly"):
        detector.detect(header(64, 96), painted[:64])


def test_a_graph_that_only_runs_with_its_own_batch_is_fed_one(
    graphs: ModuleType, tmp_path: Path, settings: Settings, painted: Array
) -> None:
    path = graphs.cells(tmp_path / "m.onnx", batch=4, size=(96, 96))
    detector = Detector.load(settings(path, rectangular=False))
    assert detector.choice.verdict.batch == 4
    assert {d.label for d in detector.detect_image(painted[:, :, ::-1])} == {"red", "blue"}


def test_names_come_from_the_config_then_the_model_then_numbers(
    graphs: ModuleType, tmp_path: Path, settings: Settings, painted: Array
) -> None:
    named = graphs.cells(tmp_path / "named.onnx", size=(96, 96))
    nameless = graphs.cells(tmp_path / "nameless.onnx", size=(96, 96), names=None)
    bgr = painted[:, :, ::-1]

    def labels(path: Path, **changes: Any) -> set[str]:
        return {d.label for d in Detector.load(settings(path, rectangular=False, **changes)).detect_image(bgr)}

    assert labels(named) == {"red", "blue"}
    assert labels(named, labels=[]) == labels(named, labels={}) == {"red", "blue"}
    assert labels(named, labels=["rouge", "bleu"]) == {"rouge", "bleu"}
    assert labels(named, labels={1: "bleu"}) == {"0", "bleu"}
    with structlog.testing.capture_logs() as logs:
        assert labels(nameless) == {"0", "1"}
    assert any("no class names" in entry["event"] and entry["log_level"] == "warning" for entry in logs)
    with pytest.raises(HeadError, match="names class 2"):
        labels(named, labels=["a", "b", "c"])


@pytest.mark.parametrize(
    ("names", "count"), [({1: "blue"}, 2), ({0: "a"}, 2), ({4: "red"}, 5), (["a"], 1), (None, 2), ([], 2)]
)
def test_names_for_some_classes_say_only_how_many_there_are_at_least(
    graphs: ModuleType, tmp_path: Path, settings: Settings, names: Any, count: int
) -> None:
    path = graphs.cells(tmp_path / "m.onnx", size=(96, 96))
    assert Trials(read_model(path), settings(path, labels=names), 1)._class_count() == count


def test_auto_falls_back_when_deepsparse_dies_and_says_so(
    graphs: ModuleType,
    tmp_path: Path,
    settings: Settings,
    painted: Array,
    deepsparse: str,
    machine_with: Callable[..., None],
) -> None:
    machine_with(deepsparse, "onnxruntime")
    path = graphs.cells(tmp_path / "m.onnx", size=(96, 96), kills_deepsparse=True)
    detector = Detector.load(settings(path, engine="auto", rectangular=False))
    assert detector.choice.engine == "onnxruntime"
    assert "deepsparse refused the model: the engine ended its process" in detector.choice.because
    assert len(detector.detect_image(painted[:, :, ::-1])) == 2
    accepting = r"ended its process.*Engines that accept it: onnxruntime; set detector.engine"
    with pytest.raises(EngineRefused, match=accepting):
        Detector.load(settings(path, engine="deepsparse", rectangular=False))


def test_auto_takes_what_is_installed(
    bright_box_model: Path, settings: Settings, machine_with: Callable[..., None]
) -> None:
    machine_with("onnxruntime")
    detector = Detector.load(settings(bright_box_model, engine="auto"))
    assert detector.choice.engine == "onnxruntime"
    assert detector.choice.because.startswith("onnxruntime ")
    assert detector.choice.because.endswith(" ms at 320x320 on 1 core; not installed: deepsparse, openvino")


def test_a_missing_engine_is_named_with_those_there_are(
    bright_box_model: Path, settings: Settings, machine_with: Callable[..., None]
) -> None:
    machine_with("onnxruntime")
    with pytest.raises(EngineUnavailable, match=r"deepsparse is not installed \(pip install .*installed: onnxruntime"):
        Detector.load(settings(bright_box_model, engine="deepsparse"))
    machine_with()
    with pytest.raises(EngineUnavailable, match="no engine is installed that runs an ONNX model"):
        Detector.load(settings(bright_box_model, engine="auto"))


def test_what_is_no_detector_is_refused_with_its_shapes(graphs: ModuleType, tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(HeadError, match=r"cls\.onnx: unknown detection head: outputs \[1, 10\]"):
        Detector.load(settings(graphs.classifier(tmp_path / "cls.onnx"), engine="auto"))


def test_a_model_without_a_size_of_its_own_needs_one(graphs: ModuleType, tmp_path: Path, settings: Settings) -> None:
    path = graphs.bright_box(tmp_path / "m.onnx", image_size=None)
    with pytest.raises(ModelError, match=r"set detector\.image_shape"):
        Detector.load(settings(path))
    with pytest.raises(ModelError, match=r"use detector\.image_shape \[128, 192\]"):
        Detector.load(settings(path, image_shape=(100, 170)))
    assert Detector.load(settings(path, image_shape=(128, 192))).spec == InputSpec(128, 192, 32, True)


def test_no_model_is_said_plainly(settings: Settings) -> None:
    with pytest.raises(ModelError, match=r"set detector\.model"):
        Detector.load(DetectorSettings())
