"""AP is what the COCO reference program computes, and pictures and labels are read as they were written."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.average_precision import Found, Truth, average_precision, mean_average_precision
from benchmarks.yolo_dataset import BadDataset, cut, pictures, read_label

# Small scenes with overlapping objects, equal scores, doubled objects and wrong classes, and pycocotools' AP for them.
ANSWERS = json.loads(Path(__file__).with_name("coco_answers.json").read_text())


def _rows(rows: list[list[float]], width: int) -> np.ndarray:
    return np.array(rows, np.float64).reshape(-1, width)


@pytest.mark.parametrize("case", ANSWERS["cases"])
def test_ap_equals_the_reference_programs(case):
    objects = [_rows(picture["objects"], 5) for picture in case["pictures"]]
    detections = [_rows(picture["detections"], 6) for picture in case["pictures"]]
    truths = [Truth(rows[:, 1:], rows[:, 0].astype(np.int64)) for rows in objects]
    found = [Found(rows[:, 2:], rows[:, 0].astype(np.int64), rows[:, 1]) for rows in detections]
    by_class = average_precision(truths, found)
    assert by_class.keys() == {int(number) for number in case["ap"]}
    for number, expected in case["ap"].items():
        assert by_class[int(number)] == pytest.approx(expected, abs=1e-8)


def test_nothing_found_scores_zero_and_nothing_to_find_scores_nothing():
    none = Found(np.empty((0, 4)), np.empty(0, np.int64), np.empty(0))
    one = Truth(np.array([[0.0, 0, 10, 10]]), np.array([0]))
    assert mean_average_precision(average_precision([one], [none])) == (0, 0)
    assert np.isnan(
        mean_average_precision(average_precision([Truth(np.empty((0, 4)), np.empty(0, int))], [none]))
    ).all()


def test_truth_and_detections_of_different_pictures_are_refused():
    with pytest.raises(ValueError, match="1 pictures of truth, but 0"):
        average_precision([Truth(np.empty((0, 4)), np.empty(0, int))], [])


def test_a_folder_is_read_with_labels_in_pixels(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    cv2.imwrite(str(tmp_path / "images/b.png"), np.zeros((100, 200, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "images/a.png"), np.zeros((10, 10, 3), np.uint8))
    (tmp_path / "labels/b.txt").write_text("3 0.5 0.5 0.1 0.2\n\n")
    (_, without), (picture, truth) = pictures(tmp_path, None)
    assert len(without.classes) == 0
    assert picture.shape == (100, 200, 3)
    assert truth.classes.tolist() == [3]
    assert truth.boxes == pytest.approx(np.array([[90, 40, 110, 60]]))


def test_a_bad_label_is_named_by_file_and_line(tmp_path):
    label = tmp_path / "x.txt"
    label.write_text("0 0.5 0.5 0.1 0.1\n0 0.5 zero 0.1 0.1\n")
    with pytest.raises(BadDataset, match=r"x\.txt:2: expected"):
        read_label(label, 10, 10)


def test_a_cut_picture_keeps_the_objects_that_mostly_remain():
    boxes = np.array([[0.0, 0, 100, 10], [40, 40, 60, 60], [0, 10, 10, 30]])
    picture, truth = cut(np.zeros((100, 100, 3), np.uint8), Truth(boxes, np.array([0, 1, 2])), 2.0)
    assert picture.shape == (50, 100, 3)  # rows 25 to 75
    assert truth.classes.tolist() == [1]
    assert truth.boxes.tolist() == [[40, 15, 60, 35]]
