"""`sparsecam val` scores what the live path would find, whatever the shapes, and refuses what does not fit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType

import cv2
import numpy as np
import pytest

pytest.importorskip("faster_coco_eval")

from services.accuracy import cut, read_picture  # only where the trainer's packages are
from trainer.errors import DataError
from trainer.metrics import Truth

Sparsecam = Callable[..., CompletedProcess[str]]
SHAPES = ((240, 320), (320, 320), (480, 640), (300, 160), (240, 320))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A bright rectangle in each picture of several shapes, and its label."""
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for number, (height, width) in enumerate(SHAPES):
        picture = np.full((height, width, 3), 40, np.uint8)
        picture[height // 4 : height // 2, width // 4 : width // 2] = 250
        cv2.imwrite(str(tmp_path / f"images/{number}.png"), picture)
        (tmp_path / f"labels/{number}.txt").write_text("0 0.375 0.375 0.25 0.25\n")
    path = tmp_path / "data.yaml"
    path.write_text("train: images\nval: images\nnames: [bright]\n")
    return path


def scored(done: CompletedProcess[str]) -> dict[str, object]:
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["scores"]
    return row


@pytest.mark.parametrize("options", [(), ("--square",), ("--batch-size", "2"), ("--img", "160", "160")])
def test_a_model_that_finds_everything_scores_one(
    invoke: Sparsecam, bright_box_model: Path, data: Path, options: tuple[str, ...]
) -> None:
    done = invoke("val", str(bright_box_model), "--data", str(data), "--engine", "onnxruntime", *options, "--json")
    row = scored(done)
    assert (row["pictures"], row["objects"], row["engine"]) == (5, 5, "onnxruntime")
    assert row["map50"] == pytest.approx(1)
    assert row["map50_95"] > 0.8


def test_without_an_object_there_is_no_score_and_the_json_is_valid(
    invoke: Sparsecam, bright_box_model: Path, data: Path
) -> None:
    for label in (data.parent / "labels").iterdir():
        label.write_text("")
    done = invoke("val", str(bright_box_model), "--data", str(data), "--engine", "onnxruntime", "--json")
    row = scored(done)
    assert "NaN" not in done.stdout
    assert [row[name] for name in ("map50", "map50_95", "precision", "recall", "objects")] == [None] * 4 + [0]
    assert "no object in the 5 pictures of val: nothing to be scored by" in done.stderr


def test_every_engine_has_a_line_and_the_gap_is_shown(invoke: Sparsecam, bright_box_model: Path, data: Path) -> None:
    for name in ("2", "3"):
        (data.parent / f"labels/{name}.txt").write_text("0 0.8 0.8 0.1 0.1\n")  # not there
    done = invoke("val", str(bright_box_model), "--data", str(data.parent), "--engine", "onnxruntime", "--verbose")
    assert done.returncode == 0, done.stderr
    assert "mAP@0.5" in done.stdout and "gap @0.5" in done.stdout and "onnxruntime" in done.stdout
    assert done.stdout.count("bright") >= 2, "the class has a line of its own"
    assert "1.0000" not in done.stdout


def test_engines_that_are_named_have_their_lines_in_that_order(
    invoke: Sparsecam, bright_box_model: Path, data: Path
) -> None:
    wanted = ["openvino", "onnxruntime", "openvino"]
    asked = [part for name in wanted for part in ("--engine", name)]
    done = invoke("val", str(bright_box_model), "--data", str(data), *asked, "--json")
    assert done.returncode == 0, done.stderr
    assert [row["engine"] for row in json.loads(done.stdout)["scores"]] == ["openvino", "onnxruntime"]


def test_classes_are_taken_by_name_where_their_number_differs(
    invoke: Sparsecam, graphs: ModuleType, data: Path, tmp_path: Path
) -> None:
    model = graphs.bright_box(tmp_path / "other.onnx", label="lamp")
    row = scored(invoke("val", str(model), "--data", str(data), "--engine", "onnxruntime", "--json"))
    assert row["notes"] == ["classes taken by number, though names differ: lamp is bright"]
    data.write_text("train: images\nval: images\nnames: [bright, dark]\n")
    done = invoke("val", str(model), "--data", str(data), "--engine", "onnxruntime")
    assert done.returncode == 1
    assert "finds 1 classes, the data set has 2, of which the model does not know bright, dark" in " ".join(
        done.stdout.split()
    )


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda folder: (folder / "images/1.png").write_bytes(b"no"), "1.png: missing, or not a picture"),
        (lambda folder: (folder / "labels/1.txt").write_text("3 0.5 0.5 0.1 0.1\n"), "1.txt:1:"),
    ],
)
def test_a_picture_or_label_that_cannot_be_read_is_named(
    invoke: Sparsecam, bright_box_model: Path, data: Path, break_it: Callable[[Path], object], words: str
) -> None:
    break_it(data.parent)
    done = invoke("val", str(bright_box_model), "--data", str(data), "--engine", "onnxruntime")
    assert done.returncode == 1
    assert words in " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--aspect", "16x9"), "--aspect 16x9: expected WIDTH:HEIGHT"), (("--task", "test"), "no pictures under test")],
)
def test_what_cannot_be_asked_is_refused_in_words(
    invoke: Sparsecam, bright_box_model: Path, data: Path, options: tuple[str, ...], words: str
) -> None:
    done = invoke("val", str(bright_box_model), "--data", str(data), *options)
    assert done.returncode == 1
    assert words in " ".join(done.stderr.split())


def test_a_test_split_that_is_not_there_is_missed_by_who_asks_for_it(
    invoke: Sparsecam, bright_box_model: Path, data: Path
) -> None:
    data.write_text(data.read_text() + "test: held/out\n")
    given = ("val", str(bright_box_model), "--data", str(data), "--engine", "onnxruntime")
    assert invoke(*given).returncode == 0
    done = invoke(*given, "--task", "test")
    assert done.returncode == 1
    assert "test: held/out is not there; looked for" in " ".join(done.stderr.split())


def test_a_name_of_the_registry_does_for_a_file(invoke: Sparsecam, data: Path) -> None:
    done = invoke("val", "street-yolov5x", "--data", str(data))
    assert "no model 'street-yolov5x'" in done.stderr and "did you mean 'street-yolov5n'?" in done.stderr


def test_a_picture_comes_with_its_objects_in_its_pixels(data: Path) -> None:
    picture, truth = read_picture(data.parent / "images/3.png", 1)
    assert picture.shape == (300, 160, 3)
    assert truth.boxes == pytest.approx(np.array([[40, 75, 80, 150]]), abs=1e-4)
    with pytest.raises(DataError, match=r"9\.png: missing"):
        read_picture(data.parent / "images/9.png", 1)


def test_a_picture_whose_name_is_no_utf8_is_read_and_told(sparsecam: Sparsecam, data: Path) -> None:
    odd = data.parent / "images" / os.fsdecode(b"caf\xe9.png")
    odd.write_bytes((data.parent / "images/3.png").read_bytes())
    assert read_picture(odd, 1)[0].shape == (300, 160, 3)
    # As where the terminal's language is an English or a German one, and not plain C.
    done = sparsecam("data", "check", str(data), env={"PYTHONIOENCODING": "utf-8:strict"})
    assert done.returncode == 0, done.stderr
    assert "the same picture as" in done.stdout and "caf\\udce9.png" in done.stdout


def test_a_cut_picture_keeps_the_objects_that_mostly_remain() -> None:
    boxes = np.array([[0.0, 0, 100, 10], [40, 40, 60, 60], [0, 10, 10, 30]])
    picture, truth = cut(np.zeros((100, 100, 3), np.uint8), Truth(boxes, np.array([0, 1, 2])), 2.0)
    assert picture.shape == (50, 100, 3)  # rows 25 to 75
    assert truth.classes.tolist() == [1]
    assert truth.boxes.tolist() == [[40, 15, 60, 35]]
