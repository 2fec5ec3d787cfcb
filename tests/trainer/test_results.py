"""results.csv holds each epoch once, in order, whatever was killed and resumed."""

from __future__ import annotations

import csv

import pytest

from trainer.errors import TrainerError
from trainer.results import COLUMNS, append, read


def test_rows_come_back_under_the_names_users_know(tmp_path):
    path = tmp_path / "results.csv"
    append(path, {"epoch": 0, "train/box_loss": 0.0512345678, "metrics/mAP_0.5": 0.5})
    append(path, {"epoch": 1, "train/box_loss": 0.04, "time_s": 12.5})
    assert read(path) == [
        {"epoch": 0, "train/box_loss": 0.0512346, "metrics/mAP_0.5": 0.5},
        {"epoch": 1, "train/box_loss": 0.04, "time_s": 12.5},
    ]
    with path.open() as file:  # as anybody would read it
        assert [row["metrics/mAP_0.5"] for row in csv.DictReader(file)] == ["0.5", ""]


def test_a_resumed_run_cuts_what_came_after(tmp_path):
    path = tmp_path / "results.csv"
    for epoch in range(5):
        append(path, {"epoch": epoch, "time_s": 1})
    append(path, {"epoch": 2, "time_s": 2})
    assert [(row["epoch"], row["time_s"]) for row in read(path)] == [(0, 1), (1, 1), (2, 2)]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["results.csv"]


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_line_cut_off_by_a_kill_is_no_row_and_no_hindrance(tmp_path, cut):
    path = tmp_path / "results.csv"
    append(path, {"epoch": 0, "time_s": 1})
    append(path, {"epoch": 1, "time_s": 1})
    whole = path.read_text()
    path.write_text(whole[:-cut])
    left = [row["epoch"] for row in read(path)]
    assert left == ([0] if cut <= len(whole.splitlines(keepends=True)[-1]) else [])
    append(path, {"epoch": 1, "time_s": 2})
    assert [(row["epoch"], row["time_s"]) for row in read(path)] == [*((epoch, 1) for epoch in left), (1, 2)]


def test_nan_is_a_value(tmp_path):
    append(tmp_path / "r.csv", {"epoch": 0, "metrics/mAP_0.5": float("nan")})
    (row,) = read(tmp_path / "r.csv")
    assert row["metrics/mAP_0.5"] != row["metrics/mAP_0.5"]


def test_yolov5s_own_padded_file_is_read(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("               epoch,      train/box_loss\n                   0,            0.051234\n")
    assert read(path) == [{"epoch": 0, "train/box_loss": 0.051234}]
    with pytest.raises(TrainerError, match="its columns are"):
        append(path, {"epoch": 1})


def test_what_is_no_result_is_named(tmp_path):
    path = tmp_path / "results.csv"
    with pytest.raises(ValueError, match="expected epoch and any of"):
        append(path, {"epoch": 0, "map": 0.5})
    with pytest.raises(ValueError, match="expected epoch"):
        append(path, {"time_s": 1})
    assert not path.exists()
    path.write_text("epoch,time_s\n0,1\n1,soon\n")
    with pytest.raises(TrainerError, match=r"results\.csv:3: .*soon"):
        read(path)
    path.write_text(",".join(COLUMNS) + "\nzero" + "," * 15 + "\n")
    with pytest.raises(TrainerError, match=r"results\.csv:2: .*zero"):
        append(path, {"epoch": 1})
    path.write_text("epoch,time_s\n0\n")
    with pytest.raises(TrainerError, match=r"results\.csv:2: 1 fields; expected 2"):
        read(path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nowhere.csv")


def test_users_columns_come_first_and_in_their_order():
    assert COLUMNS[:14] == (
        *("epoch", "train/box_loss", "train/obj_loss", "train/cls_loss"),
        *("metrics/precision", "metrics/recall", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95"),
        *("val/box_loss", "val/obj_loss", "val/cls_loss", "x/lr0", "x/lr1", "x/lr2"),
    )
