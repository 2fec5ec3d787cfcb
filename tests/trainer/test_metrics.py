"""mAP is what COCO's reference program computes; precision, recall and confusion are what a person would count."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.matching import iou, match_by_overlap, match_by_score
from trainer.metrics import Evaluation, Found, Scores, Truth, evaluate

# Small scenes with overlapping objects, equal scores, doubled objects and wrong classes, and pycocotools' AP for them.
ANSWERS = json.loads(Path(__file__).with_name("coco_answers.json").read_text())
NONE = Found(np.empty((0, 4)), np.empty(0, np.int64), np.empty(0))
NOTHING = Truth(np.empty((0, 4)), np.empty(0, np.int64))


def _truth(*rows: tuple[float, ...]) -> Truth:
    table = np.array(rows, np.float64).reshape(-1, 5)
    return Truth(table[:, 1:], table[:, 0])


def _found(*rows: tuple[float, ...]) -> Found:
    """Rows of class, score, x1, y1, x2, y2."""
    table = np.array(rows, np.float64).reshape(-1, 6)
    return Found(table[:, 2:], table[:, 0], table[:, 1])


def _scenes(seed: int, pictures: int, detections: int, classes: int) -> tuple[list[Truth], list[Found]]:
    rng = np.random.default_rng(seed)
    truths, founds = [], []
    for _ in range(pictures):
        corners = rng.uniform(0, 400, (rng.integers(0, 6), 2))
        boxes = np.hstack([corners, corners + rng.uniform(10, 120, corners.shape)])
        numbers = rng.integers(0, classes, len(boxes))
        truths.append(Truth(boxes, numbers))
        near = np.repeat(boxes, 3, axis=0) + rng.normal(0, 5, (3 * len(boxes), 4))
        corners = rng.uniform(0, 400, (max(0, detections - len(near)), 2))
        far = np.hstack([corners, corners + rng.uniform(10, 120, corners.shape)])
        of_class = np.concatenate([np.repeat(numbers, 3), rng.integers(0, classes, len(far))])
        scores = rng.integers(1, 1000, len(of_class)) / 1000  # many equal ones
        founds.append(Found(np.vstack([near, far]), of_class, scores))
    return truths, founds


@pytest.mark.parametrize("case", ANSWERS["cases"])
def test_ap_equals_the_reference_programs(case):
    truths = [_truth(*picture["objects"]) for picture in case["pictures"]]
    founds = [_found(*picture["detections"]) for picture in case["pictures"]]
    scores = evaluate(truths, founds, [f"class {number}" for number in range(20)])
    assert [score.number for score in scores.per_class] == sorted(int(number) for number in case["ap"])
    for score in scores.per_class:
        expected = case["ap"][str(score.number)]
        assert score.map50 == pytest.approx(expected[0], abs=1e-8)
        assert score.map50_95 == pytest.approx(np.mean(expected), abs=1e-8)
    assert scores.map50_95 == pytest.approx(np.mean(list(case["ap"].values())), abs=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_ap_equals_that_of_the_benchmarks(seed):
    own = pytest.importorskip("benchmarks.average_precision", reason="the benchmarks' own mAP is gone")
    truths, founds = _scenes(seed, pictures=30, detections=40, classes=3)
    scores = evaluate(truths, founds, ["a", "b", "c"])
    by_class = own.average_precision(
        [own.Truth(truth.boxes, truth.classes) for truth in truths],
        [own.Found(found.boxes, found.classes, found.scores) for found in founds],
    )
    assert (scores.map50, scores.map50_95) == pytest.approx(own.mean_average_precision(by_class), abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 3))
def test_the_truth_itself_scores_one(seed, pictures, classes):
    truths, _ = _scenes(seed, pictures, 0, classes)
    founds = [Found(truth.boxes, truth.classes, np.full(len(truth.classes), 0.9)) for truth in truths]
    scores = evaluate(truths, founds, [str(number) for number in range(classes)])
    if not scores.objects:
        assert np.isnan([scores.map50, scores.map50_95, scores.precision, scores.recall, scores.f1]).all()
        return
    assert (scores.map50, scores.map50_95, scores.fitness) == pytest.approx((1, 1, 1))
    assert (scores.precision, scores.recall, scores.f1) == pytest.approx((1, 1, 1))
    assert scores.confusion.trace() == scores.confusion.sum() == scores.objects


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_figures_stay_in_their_bounds_and_every_object_is_in_the_confusion_once(seed):
    truths, founds = _scenes(seed, pictures=4, detections=12, classes=3)
    scores = evaluate(truths, founds, ["a", "b", "c"])
    curves = scores.curves
    for values in (curves.precision, curves.recall, curves.f1, curves.precision_at_recall):
        assert ((values >= 0) & (values <= 1)).all()
    assert (np.diff(curves.recall, axis=1) <= 0).all()  # who is surer finds less
    assert (np.diff(curves.precision_at_recall, axis=1) <= 1e-12).all()
    assert scores.map50 >= scores.map50_95 or not scores.objects
    objects = np.bincount(np.concatenate([truth.classes for truth in truths]), minlength=3)
    assert scores.confusion[:, :3].sum(axis=0).tolist() == objects.tolist()
    shown = np.concatenate([found.classes[found.scores >= 0.25] for found in founds])
    assert scores.confusion[:3].sum(axis=1).tolist() == np.bincount(shown, minlength=3).tolist()
    assert [score.objects for score in scores.per_class] == [count for count in objects if count]


def test_precision_and_recall_are_those_at_the_best_f1():
    # Of two objects a sure detection finds one, a middling one the other; an unsure one finds nothing.
    truth = _truth((0, 0, 0, 10, 10), (0, 50, 50, 60, 60))
    found = _found((0, 0.9, 0, 0, 10, 10), (0, 0.6, 50, 50, 60, 60), (0, 0.2, 100, 100, 110, 110))
    scores = evaluate([truth], [found], ["thing"])
    assert (scores.precision, scores.recall, scores.f1) == (1, 1, 1)
    assert 0.2 < scores.f1_conf < 0.6
    curves = scores.curves
    at = [int(np.searchsorted(curves.confidences, confidence)) for confidence in (0.1, 0.7, 0.95)]
    assert curves.precision[0, at] == pytest.approx([2 / 3, 1, 1])
    assert curves.recall[0, at] == pytest.approx([1, 1 / 2, 0])


def test_an_object_found_twice_counts_once():
    truth = _truth((0, 0, 0, 10, 10))
    found = _found((0, 0.9, 0, 0, 10, 10), (0, 0.8, 0, 0, 10, 9))
    scores = evaluate([truth], [found], ["thing"])
    assert scores.curves.precision[0, 0] == 0.5
    assert scores.curves.recall[0, 0] == 1
    assert scores.confusion.tolist() == [[1, 1], [0, 0]]


def test_confusion_tells_found_as_by_what_is_there():
    truth = _truth((0, 0, 0, 10, 10), (1, 50, 50, 60, 60), (1, 80, 80, 90, 90))
    found = _found(
        (0, 0.9, 0, 0, 10, 10),  # right
        (0, 0.9, 50, 50, 60, 60),  # a dog taken for a cat
        (1, 0.9, 200, 200, 210, 210),  # nothing there
        (1, 0.1, 80, 80, 90, 90),  # too unsure to be shown: the third is missed
    )
    assert evaluate([truth], [found], ["cat", "dog"]).confusion.tolist() == [[1, 1, 0], [0, 0, 1], [0, 1, 0]]


def test_nothing_found_scores_zero_and_nothing_to_find_scores_nothing():
    scores = evaluate([_truth((0, 0, 0, 10, 10)), NOTHING], [NONE, NONE], ["a", "b"])
    assert (scores.map50, scores.map50_95, scores.recall, scores.f1) == (0, 0, 0, 0)
    assert [(one.name, one.pictures, one.objects) for one in scores.per_class] == [("a", 1, 1)]
    for empty in (evaluate([], [], ["a"]), evaluate([NOTHING], [_found((0, 0.9, 0, 0, 1, 1))], ["a"])):
        assert np.isnan([empty.map50, empty.map50_95, empty.precision]).all()
        assert empty.per_class == ()


def test_the_best_300_of_a_picture_count():
    truth = _truth((0, 0, 0, 10, 10))
    late = _found(*[(0, 0.9, 50, 50, 60, 60)] * 300, (0, 0.5, 0, 0, 10, 10))
    assert evaluate([truth], [late], ["thing"]).map50 == 0
    in_time = _found(*[(0, 0.9, 50, 50, 60, 60)] * 299, (0, 0.5, 0, 0, 10, 10))
    assert evaluate([truth], [in_time], ["thing"]).map50 == pytest.approx(1 / 300)


def test_a_box_turned_inside_out_is_a_wrong_detection():
    truth = _truth((0, 0, 0, 10, 10))
    found = _found((0, 0.9, 60, 50, 50, 60), (0, 0.5, 0, 0, 10, 10))
    assert evaluate([truth], [found], ["thing"]).map50 == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("truth", "found", "words"),
    [
        (_truth((2, 0, 0, 1, 1)), NONE, "picture 0, truth: class 2 to 2; there are 2 names"),
        (_truth((-1, 0, 0, 1, 1)), NONE, "class -1"),
        (NOTHING, _found((0, 0.5, 0, 0, np.nan, 1)), "picture 0, detections: boxes that are not finite"),
        (NOTHING, _found((0, np.nan, 0, 0, 1, 1)), "scores"),
        (Truth(np.zeros((2, 4)), np.zeros(1)), NONE, r"boxes \(2, 4\) and classes \(1,\)"),
    ],
)
def test_what_does_not_fit_is_refused(truth, found, words):
    with pytest.raises(ValueError, match=words):
        Evaluation(["a", "b"]).add(truth, found)


def test_truth_and_detections_of_different_pictures_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        evaluate([NOTHING], [], ["a"])


def test_five_hundred_pictures_take_about_a_second():
    truths, founds = _scenes(0, pictures=500, detections=100, classes=2)
    begun = time.process_time()
    scores = evaluate(truths, founds, ["a", "b"])
    # A third of a second here; CPU time, as other tests run beside this one.
    assert time.process_time() - begun < 3
    assert isinstance(scores, Scores)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 0.95))
def test_pairs_are_one_to_one_and_close_enough(seed, threshold):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 40, (rng.integers(0, 12), 2))
    boxes = np.hstack([corners, corners + rng.uniform(5, 40, corners.shape)])
    overlap = iou(boxes, boxes[: len(boxes) // 2])
    for match in (match_by_score, match_by_overlap):
        mates = match(overlap, threshold)
        paired = np.flatnonzero(mates >= 0)
        assert len(np.unique(mates[paired])) == len(paired)
        assert (overlap[paired, mates[paired]] >= threshold).all()
        # Nobody is left alone beside a free object that is close enough.
        free = np.setdiff1d(np.arange(overlap.shape[1]), mates)
        assert not (overlap[np.ix_(np.flatnonzero(mates < 0), free)] >= threshold).any()
