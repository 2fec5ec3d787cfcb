"""Data sets in YOLO's format: found as users lay them out, read exactly, and all that is wrong told at once."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.check import Problem, check
from trainer.data.config import digest, read_data
from trainer.data.labels import label_path, parse_labels, read_labels
from trainer.data.pictures import Pictures, open_pictures, read_image
from trainer.errors import DataError


@pytest.fixture
def picture() -> Callable[..., Path]:
    """Writes a noisy picture and its label: `picture(path, "0 .5 .5 .2 .2", seed=1)`; None: no label file."""

    def write(path: Path, label: str | None = "0 0.5 0.5 0.2 0.2", *, seed: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), np.uint8)
        assert cv2.imwrite(str(path), pixels)
        if label is not None:
            target = label_path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(label)
        return path

    return write


@pytest.fixture
def dataset(tmp_path: Path, picture: Callable[..., Path]) -> Path:
    """A right data.yaml with two pictures to train on and one to validate with."""
    for number, split in enumerate(("train", "train", "val")):
        picture(tmp_path / "images" / split / f"{number}.png", seed=number)
    path = tmp_path / "data.yaml"
    path.write_text("path: .\ntrain: images/train\nval: images/val\nnc: 1\nnames: [thing]\n")
    return path


def test_folders_are_found_from_the_file_its_path_and_roboflows_parent(dataset: Path) -> None:
    config = read_data(dataset)
    assert [path.name for path in config.train] == ["0.png", "1.png"] and config.names == ("thing",)
    dataset.write_text("train: ../images/train\nval: ../images/val\nnames: {0: thing}\n")
    assert [path.name for path in read_data(dataset.parent).train] == ["0.png", "1.png"]
    dataset.write_text("path: /another/machine\ntrain: [images/train, images/val]\nval: images/val\nnames: [thing]\n")
    assert len(read_data(dataset).train) == 3


def test_a_byte_order_mark_says_nothing(dataset: Path) -> None:
    (dataset.parent / "train.txt").write_text("images/train/0.png\n", encoding="utf-8-sig")
    dataset.write_text("train: train.txt\nval: images/val\nnames: [thing]\n", encoding="utf-8-sig")
    label = dataset.parent / "labels" / "train" / "0.txt"
    label.write_text(label.read_text(), encoding="utf-8-sig")
    config = read_data(dataset)
    assert [path.name for path in config.train] == ["0.png"] and config.train[0].is_file()
    assert check(config).errors == 0
    assert len(read_labels(label, 1)) == 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_a_list_in_another_encoding_is_refused_in_words(dataset: Path, encoding: str) -> None:
    path = dataset.parent / "train.txt"
    path.write_text("images/train/é.png\n", encoding=encoding)
    dataset.write_text("train: train.txt\nval: images/val\nnames: [thing]\n")
    with pytest.raises(DataError, match=r"train\.txt: expected a list of pictures in UTF-8"):
        read_data(dataset)


def test_folders_behind_links_are_found_once_and_circles_end(dataset: Path, picture: Callable[..., Path]) -> None:
    train, other = dataset.parent / "images" / "train", dataset.parent / "other"
    picture(other / "inner" / "3.png", seed=3)
    picture(train / "own" / "4.png", seed=4)
    (train / "linked").symlink_to(other)
    (train / "again").symlink_to(train / "own")
    (other / "inner" / "round").symlink_to(train)
    (train / "gone").symlink_to(dataset.parent / "nowhere")
    (train / "itself").symlink_to(train / "itself")
    found = [path.relative_to(train).as_posix() for path in read_data(dataset).train]
    assert found == ["0.png", "1.png", "linked/inner/3.png", "own/4.png"]


def test_lists_of_pictures_are_read_relative_to_themselves_or_the_data_set(dataset: Path) -> None:
    (dataset.parent / "lists").mkdir()
    (dataset.parent / "lists" / "train.txt").write_text("images/train/0.png\n../images/train/1.png\n\n")
    dataset.write_text("train: lists/train.txt\nval: images/val\nnames: [thing]\n")
    config = read_data(dataset)
    assert len(config.train) == 2 and all(path.is_file() for path in config.train)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: images/train\nval: images/val\nnc: 2\nnames: [thing]\n", "nc is 2, but names has 1"),
        ("train: images/train\nval: images/nowhere\nnames: [thing]\n", "val: images/nowhere is not there"),
        ("train: images/train\nnames: [thing]\n", "val: expected a folder"),
        ("train: images/train\nval: images/val\nnames: {1: thing}\n", "must be 0 to 0"),
        ("train: images/train\nval: images/val\nnames: [a, a]\n", "a given more than once"),
        ("train: images/train\nval: images/val\nnames: {0: helmet, 1: no}\n", "class 1 reads as False"),
        ("train: images/train\nval: images/val\nnames: [helmet, null]\n", "put the name in quotes"),
        ("train: [\n", "not YAML"),
        ("path: ~alice/sets\ntrain: images/train\nval: images/val\nnames: [a]\n", "path: ~alice/sets: whose folder"),
        ("train: images/train\nval: images/val\nnames: [a, 2021-99-99]\n", "'2021-99-99' reads as a timestamp, but is"),
        (f"names: {'[' * 3000}", "not YAML: lists or mappings hundreds deep"),
        ("- train\n", "expected the keys"),
    ],
)
def test_a_wrong_description_is_refused_in_words(dataset: Path, text: str, words: str) -> None:
    dataset.write_text(text)
    with pytest.raises(DataError, match=r"data\.yaml") as caught:
        read_data(dataset)
    assert words in str(caught.value)


def test_the_digest_is_of_the_content_and_not_of_the_place(
    dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = digest(read_data(dataset))
    moved = tmp_path_factory.mktemp("elsewhere") / "set"
    dataset.parent.rename(moved)
    assert digest(read_data(moved)) == before
    (moved / "labels" / "val" / "2.txt").write_text("0 0.5 0.5 0.2 0.3")
    assert digest(read_data(moved)) != before


_share = st.floats(0.05, 0.95)
_row = st.tuples(st.integers(0, 4), _share, _share, st.floats(0.01, 0.1), st.floats(0.01, 0.1))


@given(st.lists(_row, unique=True, max_size=8))
def test_what_is_written_is_read(rows: list[tuple[float, ...]]) -> None:
    read, faults = parse_labels("\n".join(" ".join(f"{value}" for value in row) for row in rows), classes=5)
    assert not faults
    np.testing.assert_allclose(read, np.array(rows).reshape(-1, 5), atol=1e-6)


@given(st.text(alphabet="0123456789.-+e nainf\n", max_size=200))
def test_whatever_a_label_file_holds_boxes_lie_inside_the_picture(text: str) -> None:
    rows, faults = parse_labels(text, classes=3)
    assert len(rows) + len(faults) >= sum(bool(line.strip()) for line in text.splitlines())
    half = rows[:, 3:5] / 2
    assert (rows[:, 1:3] - half >= -1e-6).all() and (rows[:, 1:3] + half <= 1 + 1e-6).all()
    assert (rows[:, 3:5] > 0).all() and set(rows[:, 0]) <= {0, 1, 2}


def test_a_polygon_becomes_its_box_and_a_box_over_the_edge_is_cut() -> None:
    rows, faults = parse_labels("1 0.2 0.3 0.6 0.3 0.4 0.7\n0 0.95 0.5 0.2 0.2\n", classes=2)
    np.testing.assert_allclose(rows, [[1, 0.4, 0.5, 0.4, 0.4], [0, 0.925, 0.5, 0.15, 0.2]], atol=1e-6)
    assert [(fault.line, fault.error) for fault in faults] == [(2, False)]


def test_a_label_that_cannot_be_used_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("0 0.5 0.5 0.1 0.1\n7 0.5 0.5 0.1 0.1\n")
    with pytest.raises(DataError, match=r"a\.txt:2: class 7; data.yaml names the classes 0 to 0"):
        read_labels(path, 1)
    assert read_labels(tmp_path / "none.txt", 1).shape == (0, 5)


def test_everything_wrong_is_told_at_once_with_file_and_line(dataset: Path, picture: Callable[..., Path]) -> None:
    root = dataset.parent
    bad = "x 1\n\n9 0.5 0.5 0.1 0.1\n0 100 50 20 20\n0 0.5 0.5 0.1\n0 0.5 0.5 0 0.1\n0 .5 .5 .1 .1\n0 .5 .5 .1 .1\n"
    picture(root / "images" / "train" / "bad.png", bad, seed=7)
    (root / "images" / "train" / "text.png").write_text("no picture")
    (root / "images" / "train" / "empty.jpg").touch()
    whole = picture(root / "images" / "train" / "whole.jpg", seed=8).read_bytes()
    (root / "images" / "train" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    picture(root / "images" / "val" / "leak.png", seed=0)  # the pixels of train's 0.png
    (root / "labels" / "val" / "lonely.txt").write_text("")
    (root / "test.txt").write_text("./images/gone.png\n")
    dataset.write_text(dataset.read_text() + "test: test.txt\n")
    report = check(read_data(dataset))
    found = {(problem.file.name, problem.line, problem.error): problem.what for problem in report.problems}
    labels = [(line, error) for name, line, error in sorted(found, key=str) if name == "bad.txt"]
    assert labels == [(1, True), (3, True), (4, True), (5, True), (6, False), (8, False)]
    assert "not a picture" in found["text.png", None, True] and found["empty.jpg", None, True] == "empty"
    assert "breaks off" in found["cut.jpg", None, False] and "also in train" in found["leak.png", None, False]
    assert "no picture" in found["lonely.txt", None, False] and "No such file" in found["gone.png", None, True]
    assert report.errors == 8  # four lines, three pictures, and a test split without an object
    assert report.counts["train"].objects == {"thing": 4} and report.counts["train"].backgrounds == 3


def test_a_test_split_that_is_not_there_is_no_more_than_a_warning(dataset: Path) -> None:
    dataset.write_text(dataset.read_text() + "test: ../test/images\n")
    config = read_data(dataset)
    assert (len(config.train), config.test) == (2, ())
    report = check(config)
    (problem,) = report.problems
    assert not report.errors and problem.what.startswith("test: ../test/images is not there; looked for ")


def test_an_empty_set_and_one_without_objects_are_errors(dataset: Path, picture: Callable[..., Path]) -> None:
    root = dataset.parent
    (root / "nothing").mkdir()
    for number in range(2):
        picture(root / "images" / "train" / f"{number}.png", None if number else "", seed=number)
        (root / "labels" / "train" / "1.txt").unlink(missing_ok=True)
    dataset.write_text("train: images/train\nval: nothing\nnames: [thing]\n")
    report = check(read_data(dataset))
    assert report.problems == [
        Problem(dataset, None, "train: 2 pictures, but no object in any of their labels"),
        Problem(dataset, None, "val: no pictures in it"),
    ]
    assert (report.counts["train"].backgrounds, report.counts["train"].unlabelled) == (2, 1)


def test_pictures_come_at_training_size_with_boxes_in_their_pixels(dataset: Path) -> None:
    config = read_data(dataset)
    pictures = open_pictures(config.train, 1, 30, training=True)
    pixels, labels = pictures.load(0)
    assert pixels.shape == (20, 30, 3) and pictures.original_size(0) == (40, 60)
    np.testing.assert_allclose(labels, [[0, 12, 8, 18, 12]], atol=1e-5)


def test_a_picture_whose_name_is_no_utf8_is_read_as_any_other(dataset: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    for kind, suffix in (("images", ".png"), ("labels", ".txt")):
        file = dataset.parent / kind / "train" / f"0{suffix}"
        file.rename(file.with_name(name + suffix))
    config = read_data(dataset)
    assert check(config).errors == 0 and digest(config)
    pixels, labels = open_pictures(config.train, 1, 30, training=True).load(1)
    assert pixels.shape == (20, 30, 3) and len(labels) == 1


def test_a_picture_of_too_many_pixels_is_named_by_check_and_by_training(dataset: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    bomb = dataset.parent / "images" / "train" / "1.png"
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b""))
    config = read_data(dataset)
    assert Problem(bomb, None, "not a picture that OpenCV reads") in check(config).problems
    with pytest.raises(DataError, match=r"1\.png: missing, or not a picture"):
        open_pictures(config.train, 1, 30, training=True)


def test_a_picture_is_turned_upright_as_its_exif_says(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :20] = 255
    # Orientation (0x0112) 6: to be turned by a quarter clockwise, so that what was left is above.
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b"Exif\0\0" + tiff
    jpeg = cv2.imencode(".jpg", pixels)[1].tobytes()
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:])
    picture = read_image(path)
    assert picture is not None and picture.shape == (60, 40, 3)
    assert picture[:15].min() > 200 and picture[30:].max() < 50


def test_pictures_from_memory_and_from_disk_are_the_same(dataset: Path) -> None:
    config = read_data(dataset)
    cached = open_pictures(config.train, 1, 30, training=True, cache_bytes=20 * 30 * 3)
    fresh = Pictures(config.train, cached.labels, 30)
    assert cached.fill(20 * 30 * 3) == 1 and cached.fill() == 2
    for index in range(2):
        np.testing.assert_array_equal(cached.load(index)[0], fresh.load(index)[0])


def test_the_reference_sets_are_in_order(shared: Path) -> None:
    config = read_data(shared / "datasets" / "pistols" / "data.yaml")
    assert (len(config.train), len(config.val), config.names) == (2471, 500, ("pistol",))
    coco = check(read_data(shared / "datasets" / "coco128"))
    assert coco.errors == 0 and sum(coco.counts["train"].objects.values()) == 929
