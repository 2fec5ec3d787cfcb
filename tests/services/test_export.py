"""`sparsecam export` writes a file that workers load at once, and says what it is."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

from detector import engines
from detector.choose import full_shape
from detector.detector import Detector
from detector.model import read_model
from detector.settings import DetectorSettings
from detector.trial import try_model

torch = pytest.importorskip("torch")

from trainer.model import SIZES, YoloV5  # noqa: E402  # only where torch is

Sparsecam = Callable[..., CompletedProcess[str]]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Of a small network with lively outputs; half of one layer is zero."""
    torch.manual_seed(1)
    network = YoloV5(SIZES["n"], 2, activation="hardswish")
    with torch.no_grad():
        for conv in network.model[24].m:
            conv.weight *= 20
        network.model[6].cv1.conv.weight[:32] = 0
    path = tmp_path / "best.pt"
    facts = {"activation": "hardswish", "names": {0: "person", 1: "car"}, "image_size": [96, 96], "dataset": "d1"}
    torch.save({"ema": network.state_dict(), **facts}, path)
    return path


@pytest.fixture
def exported(invoke: Sparsecam, checkpoint: Path) -> Path:
    done = invoke("export", str(checkpoint), "--engine", "none")
    assert done.returncode == 0, done.stderr
    return checkpoint.with_suffix(".onnx")


@pytest.mark.parametrize("engine", engines.installed("onnx"))
def test_every_engine_takes_it_at_another_shape_and_through_its_raw_heads(
    exported: Path, tmp_path: Path, engine: str
) -> None:
    model = read_model(exported)
    verdict = try_model(
        model, engine, num_cores=1, batch=1, height=64, width=96, classes=2, timeout_s=100, cache_dir=tmp_path
    )
    assert verdict.accepted, verdict.reason
    assert verdict.head == "yolov5 (2 classes, strides 8/16/32)"
    # Which form is quicker is this moment's answer; that both say the same is the file's.
    assert verdict.raw is not None or "raw heads take" in verdict.raw_because, verdict.raw_because


def test_workers_load_it_and_know_its_classes_and_sizes(exported: Path, tmp_path: Path) -> None:
    facts = {"model": str(exported), "engine": "onnxruntime", "batch": 1, "cache_dir": tmp_path}
    detector = Detector.load(DetectorSettings.model_validate(facts))
    assert detector.labels == {0: "person", 1: "car"}
    assert (detector.spec.height, detector.spec.width, detector.spec.rectangular) == (96, 96, True)
    for shape in ((96, 96, 3), (50, 96, 3)):
        detector.detect_image(np.full(shape, 90, np.uint8))


def test_it_prints_sparsity_sizes_and_speed_against_dense(invoke: Sparsecam, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "models" / "street.onnx"
    options = ("--out", str(out), "--compress", "--licence", "CC0-1.0", "--img", "64", "96", "--batch", "2")
    done = invoke("export", str(checkpoint), *options, "--engine", "onnxruntime", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["file"], told["input"], told["quantised"]) == (str(out), "uint8 [2, 3, 64, 96]", False)
    assert (told["metadata"]["license"], told["metadata"]["dataset"]) == ("CC0-1.0", "d1")
    zeros = {layer["layer"]: (layer["zeros"], layer["zero_blocks"]) for layer in told["layers"]}
    assert zeros["model.6.cv1.conv"] == (0.5, 0.5)
    assert len(zeros) == 60 and told["zeros"] == pytest.approx(32 * 128 / 1_765_930, rel=0.1)
    packed = Path(f"{out}.gz").read_bytes()
    assert gzip.decompress(packed) == out.read_bytes()
    assert (told["file_bytes"], told["compressed_bytes"]) == (out.stat().st_size, len(packed))
    (speed,) = told["speeds"]
    assert speed["engine"] == "onnxruntime" and speed["ms"] > 0 and speed["dense_ms"] > 0
    assert speed["ratio"] == pytest.approx(speed["dense_ms"] / speed["ms"], abs=0.002)


def test_dynamic_leaves_the_sizes_open_and_says_the_full_one(
    invoke: Sparsecam, checkpoint: Path, tmp_path: Path
) -> None:
    done = invoke("export", str(checkpoint), "--dynamic", "--engine", "none")
    assert done.returncode == 0, done.stderr
    assert "uint8 [batch, 3, height, width]" in done.stdout
    assert "model.6.m.2.cv1.conv" in done.stdout
    model = read_model(tmp_path / "best.onnx")
    assert (model.batch, model.height, model.width) == (None, None, None)
    assert full_shape(model, DetectorSettings()) == (96, 96)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("missing.pt",), "missing.pt: cannot be read: No such file or directory; expected a checkpoint"),
        (("CHECKPOINT", "--img", "90", "96"), "90x96 pixels; expected multiples of 32, such as 96x96"),
        (("CHECKPOINT", "--engine", "tensorrt"), "unknown engine 'tensorrt'"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_words(
    invoke: Sparsecam, checkpoint: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = invoke("export", *(str(checkpoint) if word == "CHECKPOINT" else word for word in arguments))
    assert done.returncode == 1
    assert words in " ".join(done.stderr.split())
    assert not list(tmp_path.glob("*.onnx"))


def test_an_export_can_be_exported_again_beside_itself(invoke: Sparsecam, exported: Path, tmp_path: Path) -> None:
    done = invoke("export", str(exported), "--engine", "none")
    assert done.returncode == 1
    assert "would be written over what is exported; name another file with --out" in " ".join(done.stderr.split())
    again = tmp_path / "again.onnx"
    done = invoke("export", str(exported), "--out", str(again), "--engine", "none", "--licence", "MIT")
    assert done.returncode == 0, done.stderr
    first, second = read_model(exported), read_model(again)
    assert (second.labels, second.image_size) == (first.labels, first.image_size)
    noise = np.random.default_rng(0).integers(0, 256, (1, 3, 96, 96), dtype=np.uint8)
    engine = engines.engine_class("onnxruntime")
    rows = [engine.load(model.with_shape(1, 96, 96), 1).infer(noise)[0] for model in (first, second)]
    np.testing.assert_allclose(*rows, rtol=1e-3, atol=1e-3)
