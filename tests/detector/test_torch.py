"""A checkpoint runs on torch and nothing else does, through the same trials and the same detector as ONNX."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from detector import engines
from detector.detector import Detector
from detector.engines import engine_class
from detector.errors import DetectorError, EngineRefused, EngineUnavailable, ModelError
from detector.model import parse_model, read_model
from detector.settings import DetectorSettings
from detector.trial import try_model
from wire.messages import FrameHeader

pytestmark = pytest.mark.skipif("torch" not in engines.installed(), reason="torch is not installed here")

Settings = Callable[..., DetectorSettings]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YOLOv5n of two classes for pictures up to 96x96; its weights are random, so it finds nothing."""
    import torch

    from trainer.model import SIZES, YoloV5

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "nano.pt"
    state = YoloV5(SIZES["n"], 2).state_dict()
    torch.save({"model": state, "names": {0: "red", 1: "blue"}, "image_size": [96, 96]}, path)
    return path


@pytest.fixture
def public(shared: Path) -> Path:
    return shared / "weights/yolov5n.pt"


def test_a_checkpoint_tells_its_input_and_classes(checkpoint: Path) -> None:
    model = read_model(checkpoint)
    assert (model.format, model.dtype, model.layout, model.stride) == ("checkpoint", "uint8", "nchw", 32)
    assert (model.image_size, model.labels) == ((96, 96), {0: "red", 1: "blue"})
    assert model.with_shape(1, 32, 64) == checkpoint.read_bytes()


def test_a_checkpoint_is_known_by_its_content(checkpoint: Path) -> None:
    assert parse_model(checkpoint.read_bytes(), "renamed.onnx").format == "checkpoint"
    with pytest.raises(ModelError, match=r"old\.pt: no checkpoint as `torch\.save` writes it since PyTorch 1\.6"):
        parse_model(b"\x80\x02}q\x00.", "old.pt")


def test_a_checkpoint_that_names_code_is_refused_by_name() -> None:
    import torch

    file = io.BytesIO()
    torch.save({"model": shutil.rmtree}, file)
    with pytest.raises(ModelError, match=r"evil\.pt: .*names shutil\.rmtree"):
        parse_model(file.getvalue(), "evil.pt")


def test_auto_takes_torch_for_a_checkpoint(checkpoint: Path, settings: Settings) -> None:
    detector = Detector.load(settings(checkpoint, engine="auto", batch=1))
    assert (detector.choice.engine, detector.spec.rectangular) == ("torch", True)
    assert "deepsparse" not in detector.choice.because and "onnxruntime" not in detector.choice.because
    assert detector.labels == {0: "red", 1: "blue"}


def test_auto_never_tries_torch_on_onnx() -> None:
    have = engines.installed()
    assert engines.candidates("auto", "onnx", "m.onnx") == [name for name in have if name != "torch"]
    assert engines.candidates("auto", "checkpoint", "m.pt") == ["torch"]
    assert engines.asked_for([], "checkpoint", "m.pt") == engines.asked_for(["all", "torch"], "checkpoint", "m.pt")


@pytest.mark.parametrize("engine", ["deepsparse", "openvino", "onnxruntime"])
def test_a_checkpoint_on_an_onnx_engine_is_refused_naming_torch(
    engine: str, checkpoint: Path, settings: Settings
) -> None:
    with pytest.raises(EngineRefused) as caught:
        Detector.load(settings(checkpoint, engine=engine))
    assert f"nano.pt is a PyTorch checkpoint, engine {engine} runs an ONNX model" in str(caught.value)
    assert str(caught.value).endswith("Engines that can: torch")


def test_onnx_on_torch_is_refused_naming_the_others(graphs: ModuleType, tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(EngineRefused) as caught:
        Detector.load(settings(graphs.cells(tmp_path / "m.onnx", size=(96, 96)), engine="torch"))
    assert "m.onnx is an ONNX model, engine torch runs a PyTorch checkpoint" in str(caught.value)
    assert all(name in str(caught.value) for name in ("deepsparse", "openvino", "onnxruntime"))


def test_without_torch_a_checkpoint_is_refused_with_what_it_needs(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "installed", lambda reads=None: {"onnxruntime": "1"} if reads != "checkpoint" else {})
    with pytest.raises(EngineUnavailable, match=r"torch is not installed \(pip install torch==2\.13\.0\)"):
        read_model(checkpoint)
    with pytest.raises(EngineUnavailable, match=r"nano\.pt: pip install torch==2\.13\.0"):
        engines.candidates("auto", "checkpoint", "nano.pt")


@pytest.mark.parametrize("engine", [name for name in engines.installed() if name != "torch"])
def test_torch_and_plots_are_not_imported_for_onnx(graphs: ModuleType, tmp_path: Path, engine: str) -> None:
    path = graphs.cells(tmp_path / "m.onnx", size=(96, 96))
    program = f"""
import sys
from pathlib import Path
from detector.detector import Detector
from detector.settings import DetectorSettings
facts = {{"model": {str(path)!r}, "engine": {engine!r}, "cache_dir": Path({str(tmp_path)!r})}}
Detector.load(DetectorSettings(**facts, batch=1, rectangular=False))
print([name for name in sys.modules if name.partition(".")[0] in ("torch", "trainer", "matplotlib")])
"""
    house = Path(engines.__file__).parents[2]
    environment = {"PYTHONPATH": str(house), "HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_trial_in_a_child_judges_a_checkpoint(checkpoint: Path, verdict_dir: Path) -> None:
    verdict = try_model(
        read_model(checkpoint),
        "torch",
        num_cores=1,
        batch=2,
        height=64,
        width=96,
        classes=2,
        timeout_s=60,
        cache_dir=verdict_dir,
    )
    assert (verdict.accepted, verdict.reason, verdict.class_count) == (True, "", 2)
    assert verdict.outputs == [[2, 3 * (8 * 12 + 4 * 6 + 2 * 3), 7]]


def test_a_batch_finds_what_single_pictures_find(checkpoint: Path) -> None:
    engine = engine_class("torch").load(checkpoint.read_bytes(), 1)
    pictures = np.random.default_rng(0).integers(0, 256, (4, 3, 64, 96), np.uint8)
    (together,) = engine.infer(pictures)
    for picture, rows in zip(pictures, together, strict=True):
        assert np.allclose(engine.infer(picture[None])[0][0], rows, rtol=1e-4, atol=1e-3)


def test_it_refuses_in_words(checkpoint: Path) -> None:
    with pytest.raises(EngineRefused, match="torch cannot load the model: the model: no checkpoint"):
        engine_class("torch").load(b"no model", 1)
    with pytest.raises(EngineRefused, match="torch cannot run the model"):
        engine_class("torch").load(checkpoint.read_bytes(), 1).infer(np.zeros((1, 3, 100, 100), np.uint8))


def test_it_says_what_it_is(checkpoint: Path) -> None:
    told = engine_class("torch").load(checkpoint.read_bytes(), 2).describe()
    assert (told["engine"], told["cores"]) == ("torch", 2)
    assert str(told["version"]).startswith("2.")


def test_a_frame_of_another_shape_than_the_model_takes_is_refused(
    checkpoint: Path, settings: Settings, header: Callable[..., FrameHeader]
) -> None:
    detector = Detector.load(settings(checkpoint, engine="torch", batch=1))
    detector.detect(header(64, 96), np.full((64, 96, 3), 114, np.uint8))
    with pytest.raises(DetectorError, match="at most 96x96"):
        detector.detect(header(128, 96), np.full((128, 96, 3), 114, np.uint8))


def test_rectangles_find_what_squares_find(public: Path, shared: Path, settings: Settings) -> None:
    """The grid meets the picture at another offset, so boxes move by a few pixels and some doubtful ones vanish."""
    facts = {"engine": "torch", "batch": 1, "image_shape": (416, 416)}
    square = Detector.load(settings(public, rectangular=False, conf_thres=0.5, **facts))
    rectangle = Detector.load(settings(public, conf_thres=0.25, **facts))
    total = alike = 0
    pictures = [cv2.imread(str(path)) for path in sorted((shared / "datasets/coco128/images/train2017").iterdir())]
    for picture in [one for one in pictures if one.shape[:2] == (480, 640)][:12]:
        found, others = square.detect_image(picture), rectangle.detect_image(picture)
        total += len(found)
        for one in found:
            middle = (one.box[0] + one.box[2]) / 2, (one.box[1] + one.box[3]) / 2
            alike += any(
                other.label == one.label
                and other.box[0] < middle[0] < other.box[2]
                and other.box[1] < middle[1] < other.box[3]
                for other in others
            )
    assert rectangle.describe()["compiled"] == ["256x416", "320x416"]
    assert total >= 20
    assert alike >= 0.9 * total
