"""`sparsecam data`: the drawn street is a right data set, the same for a seed, and looks as its camera sends it."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from ingest.sim.scene import Street, TruthBox
from ingest.sim.scene_url import SceneSpec
from services.cli import app
from services.street_set import Options, _Camera, is_wanted, simulate
from trainer.data.check import check
from trainer.data.config import digest, read_data
from trainer.data.labels import label_path, read_labels
from trainer.errors import DataError

SMALL = Options(pictures=5, val=3, seed=1, sizes=((320, 180),), fit=None)


@pytest.fixture(scope="module")
def street_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small drawn set's data.yaml."""
    return simulate(tmp_path_factory.mktemp("street") / "set", SMALL)


def test_the_drawn_street_is_a_right_data_set(street_set: Path) -> None:
    config = read_data(street_set)
    report = check(config)
    assert report.errors == 0 and config.names == ("person", "bicycle", "car")
    assert (report.counts["train"].pictures, report.counts["val"].pictures) == (5, 3)
    assert sum(report.counts["train"].objects.values()) > 5
    assert cv2.imread(str(config.train[0])).shape == (180, 320, 3)


def test_the_same_seed_draws_the_same_set_and_more_training_leaves_validation_alone(
    street_set: Path, tmp_path: Path
) -> None:
    again = read_data(simulate(tmp_path / "again", Options(6, 3, 1, ((320, 180),), None)))
    first = read_data(street_set)
    for split in ("train", "val"):
        for one, other in zip(first.split(split), again.split(split), strict=False):
            assert one.read_bytes() == other.read_bytes()
            assert label_path(one).read_text() == label_path(other).read_text()
    assert digest(first) != digest(again)


def test_fitted_pictures_are_the_cameras_pictures_scaled(street_set: Path, tmp_path: Path) -> None:
    fitted = read_data(simulate(tmp_path / "fitted", Options(2, 1, 1, ((320, 180),), 160)))
    whole = read_data(street_set)
    small, large = cv2.imread(str(fitted.train[0])), cv2.imread(str(whole.train[0]))
    assert small.shape == (90, 160, 3)
    np.testing.assert_array_equal(
        read_labels(label_path(fitted.train[0]), 3), read_labels(label_path(whole.train[0]), 3)
    )
    shrunk = cv2.resize(large, (160, 90), interpolation=cv2.INTER_LINEAR).astype(float)
    assert np.abs(small - shrunk).mean() < 5


@pytest.mark.parametrize("after_keyframe", [0, 1])
def test_a_picture_shows_the_frame_of_its_truth_but_for_compression(after_keyframe: int) -> None:
    street = Street(SceneSpec(seed=5, width=320, height=180))
    frame, truth = _Camera(street).frame(300, after_keyframe=after_keyframe)
    drawn, boxes = street.render(300)
    difference = np.abs(frame.to_ndarray(format="bgr24").astype(float) - drawn).mean()
    assert truth == boxes and 0.5 < difference < 6  # compressed, and nothing else


def test_what_is_hardly_to_be_seen_is_left_out() -> None:
    clear, hidden = TruthBox("car", 1, (0, 0, 60, 40), 0.21), TruthBox("car", 1, (0, 0, 60, 40), 0.19)
    narrow = TruthBox("person", 1, (0, 0, 9, 40), 1.0)
    assert [is_wanted(box, 1280, 720) for box in (clear, hidden, narrow)] == [True, False, False]


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(DataError, match="not an empty folder"):
        simulate(tmp_path, SMALL)


def test_check_answers_with_its_exit_code_and_json(street_set: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["data", "check", str(street_set)])
    assert run.exit_code == 0 and "0 errors" in run.output
    config = tmp_path / "data.yaml"
    config.write_text(street_set.read_text().replace("path: .", f"path: {street_set.parent}").replace("car", "truck"))
    (tmp_path / "empty").mkdir()
    config.write_text(config.read_text().replace("images/val", str(tmp_path / "empty")))
    run = CliRunner().invoke(app, ["data", "check", str(config), "--json"])
    answer = json.loads(run.stdout)
    assert run.exit_code == 1 and answer["errors"] == 1 and answer["problems"][-1]["what"] == "val: no pictures in it"


def test_stats_count_objects_by_class(street_set: Path) -> None:
    run = CliRunner().invoke(app, ["data", "stats", str(street_set), "--json"])
    answer = json.loads(run.stdout)
    config = read_data(street_set)
    assert answer["digest"] == digest(config)
    rows = sum(len(read_labels(label_path(path), 3)) for path in config.train)
    assert sum(one["objects"] for one in answer["splits"]["train"]["classes"].values()) == rows


def test_simulate_refuses_sizes_no_camera_has(tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["data", "simulate", str(tmp_path / "x"), "--size", "13x7"])
    assert run.exit_code == 78 and "WIDTHxHEIGHT" in run.output
    assert not (tmp_path / "x").exists()
