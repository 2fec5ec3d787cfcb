"""Plots are drawn from real figures, without a display, and sample pictures show their boxes where they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from trainer.errors import TrainerError
from trainer.metrics import Found, Truth, evaluate
from trainer.report.batches import draw_batch, truths_of
from trainer.report.confusion import plot_confusion, shares
from trainer.report.plots import plot_curves, plot_labels, plot_results
from trainer.results import append


def _drawn(path: Path) -> np.ndarray:
    """The picture in the file; a blank one is none."""
    picture = cv2.imread(str(path))
    assert picture is not None
    assert picture.shape[0] > 300
    assert picture.shape[1] > 300
    assert picture.std() > 1
    return picture


def _scores(classes: int):
    rng = np.random.default_rng(0)
    truths, founds = [], []
    for _ in range(20):
        corners = rng.uniform(0, 300, (4, 2))
        boxes, numbers = np.hstack([corners, corners + 50]), rng.integers(0, classes, 4)
        truths.append(Truth(boxes, numbers))
        founds.append(Found(boxes + rng.normal(0, 8, boxes.shape), numbers, rng.uniform(0.01, 1, 4)))
    return evaluate(truths, founds, [f"class {number}" for number in range(classes)])


@pytest.mark.parametrize("classes", [1, 80])
def test_curves_and_confusion_are_drawn(tmp_path, classes):
    scores = _scores(classes)
    files = plot_curves(scores, tmp_path)
    assert [file.name for file in files] == ["F1_curve.png", "P_curve.png", "R_curve.png", "PR_curve.png"]
    for file in files:
        _drawn(file)
    plot_confusion(scores.confusion, [f"class {number}" for number in range(classes)], tmp_path / "confusion.png")
    _drawn(tmp_path / "confusion.png")


def test_curves_of_an_empty_set_say_so(tmp_path):
    for file in plot_curves(evaluate([], [], ["a"]), tmp_path):
        _drawn(file)


def test_shares_are_of_what_is_there():
    assert shares(np.array([[3, 0], [1, 0]])).tolist() == [[0.75, 0], [0.25, 0]]


def test_a_table_of_other_classes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="for 3 names"):
        plot_confusion(np.zeros((3, 3), np.int64), ["a", "b", "c"], tmp_path / "c.png")


def test_results_are_drawn_also_where_columns_are_missing_or_nan(tmp_path):
    for epoch in range(8):
        row = {"epoch": epoch, "train/box_loss": 1 / (epoch + 1), "metrics/precision": float("nan")}
        append(tmp_path / "results.csv", row if epoch else {**row, "metrics/mAP_0.5": 0.1})
    plot_results(tmp_path / "results.csv", tmp_path / "results.png")
    _drawn(tmp_path / "results.png")


def test_results_without_an_epoch_are_named(tmp_path):
    (tmp_path / "results.csv").write_text("epoch\n")
    with pytest.raises(TrainerError, match="no epochs"):
        plot_results(tmp_path / "results.csv", tmp_path / "results.png")


@pytest.mark.parametrize("objects", [0, 1, 5000])
def test_labels_are_drawn(tmp_path, objects):
    rng = np.random.default_rng(0)
    rows = np.hstack([rng.integers(0, 3, (objects, 1)), rng.uniform(0.1, 0.9, (objects, 4))])
    plot_labels(rows, ["a", "b", "c"], tmp_path / "labels.png")
    _drawn(tmp_path / "labels.png")


def test_plots_leave_matplotlibs_shared_state_and_its_displays_alone(tmp_path):
    # A process of its own: another test's import would hide what this one imports.
    code = (
        "import sys; import numpy as np; from pathlib import Path; from trainer.report.plots import plot_labels\n"
        "assert 'matplotlib' not in sys.modules  # only who draws pays for it\n"
        f"plot_labels(np.zeros((1, 5)), ['a'], Path({str(tmp_path / 'l.png')!r}))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    _drawn(tmp_path / "l.png")


def test_a_batchs_labels_become_boxes_in_pixels_by_picture():
    rows = np.array([[1, 2, 0.5, 0.5, 0.2, 0.5], [0, 1, 0.1, 0.2, 0.2, 0.4]], np.float32)
    first, second, third = truths_of(rows, pictures=3, height=100, width=200)
    assert (first.classes.tolist(), second.classes.tolist(), third.classes.tolist()) == ([1], [2], [])
    assert first.boxes == pytest.approx(np.array([[0, 0, 40, 40]]), abs=1e-4)
    assert second.boxes == pytest.approx(np.array([[80, 25, 120, 75]]), abs=1e-4)


def test_boxes_are_drawn_where_they_are_and_unsure_ones_are_not(tmp_path):
    pictures = np.zeros((3, 3, 200, 300), np.uint8)
    pictures[2, 0] = 255  # red
    marks = [
        Truth(np.array([[50.0, 60, 150, 160]]), np.array([0])),
        Found(np.array([[50.0, 60, 150, 160]]), np.array([0]), np.array([0.1])),
        Truth(np.empty((0, 4)), np.empty(0)),
    ]
    draw_batch(pictures, marks, ["thing"], tmp_path / "batch.png")
    canvas = cv2.imread(str(tmp_path / "batch.png"))
    assert canvas.shape == (400, 600, 3)
    box = canvas[159, 60:140]  # the first picture's box, its lower edge
    assert (box.max(axis=1) > 150).all()
    assert not canvas[70:150, 60:140].any()  # inside it, the picture
    assert not canvas[10:190, 310:590].any()  # the second, unsure
    assert (canvas[210:390, 10:290] == (0, 0, 255)).all()  # the third; files hold blue first
    assert (canvas[210:390, 310:590] == 114).all()  # no fourth


def test_a_large_batch_is_shown_in_part_and_made_small(tmp_path):
    pictures = np.zeros((20, 3, 640, 640), np.uint8)
    draw_batch(pictures, truths_of(np.empty((0, 6)), 20, 640, 640), ["a"], tmp_path / "b.jpg")
    assert cv2.imread(str(tmp_path / "b.jpg")).shape == (1920, 1920, 3)


def test_pictures_and_boxes_of_different_number_are_refused(tmp_path):
    with pytest.raises(ValueError, match="2 pictures, but boxes for 0"):
        draw_batch(np.zeros((2, 3, 8, 8), np.uint8), [], ["a"], tmp_path / "b.jpg")
