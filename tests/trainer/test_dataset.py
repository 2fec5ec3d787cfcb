"""Augmented samples and validation batches: boxes stay on their objects, and nothing depends on who asks when."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.augment import Sample, flip, is_kept, letterbox, mosaic, warp
from trainer.data.dataset import TrainSet, ValSet, collate, train_loader
from trainer.data.pictures import Pictures

SIZE = 96


@dataclass(frozen=True)
class Hyp:
    """Nothing but what a test turns on."""

    hsv_h: float = 0.0
    hsv_s: float = 0.0
    hsv_v: float = 0.0
    degrees: float = 0.0
    translate: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    perspective: float = 0.0
    flipud: float = 0.0
    fliplr: float = 0.0
    mosaic: float = 0.0
    mixup: float = 0.0


STRONG = Hyp(0.015, 0.7, 0.4, 10, 0.2, 0.5, 5, 0.0005, 0.5, 0.5, 1.0, 0.3)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    """Seven dark pictures of several shapes, each with one bright rectangle that its label surrounds."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    paths, labels = [], []
    for number in range(7):
        height, width = (int(side) for side in rng.integers(60, 200, 2))
        left, top = int(width * 0.2), int(height * 0.3)
        right, bottom = int(width * 0.7), int(height * 0.8)
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[top:bottom, left:right] = 255
        paths.append(folder / f"{number}.png")
        cv2.imwrite(str(paths[-1]), pixels)
        box = [(left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height]
        labels.append(np.array([[number % 2, *box]], np.float32))
    return Pictures(paths, labels, SIZE)


def bright(picture: np.ndarray) -> tuple[int, int, int, int]:
    """x1 y1 x2 y2 around what is bright."""
    x, y, width, height = cv2.boundingRect((picture[..., 0] > 200).astype(np.uint8))
    return x, y, x + width, y + height


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    degrees=st.floats(0, 45),
    scale=st.floats(0, 0.6),
    shear=st.floats(0, 15),
    translate=st.floats(0, 0.3),
    perspective=st.sampled_from([0.0, 0.001]),
)
def test_a_warped_box_surrounds_its_warped_object(
    seed: int, degrees: float, scale: float, shear: float, translate: float, perspective: float
) -> None:
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[30:60, 20:70] = 255
    sample: Sample = (pixels, np.array([[1, 20, 30, 70, 60]], np.float32))
    how = Hyp(degrees=degrees, scale=scale, shear=shear, translate=translate, perspective=perspective)
    warped, labels = warp(sample, SIZE, how, np.random.default_rng(seed))
    if len(labels):
        # The grey beside the picture is darker than "bright"; corners cut by the edge may only shrink what is seen.
        seen, box = np.array(bright(warped)), labels[0, 1:]
        assert (seen[:2] >= box[:2] - 2).all() and (seen[2:] <= box[2:] + 2).all()
        whole = (box > 0).all() and (box < SIZE).all()
        assert not whole or np.abs(seen - box).max() <= 2.5


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_a_mosaic_moves_boxes_with_their_pictures(seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = []
    for number in range(4):
        height, width = (SIZE, int(rng.integers(40, SIZE + 1)))
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[20:50, 10:30] = 10 + number
        samples.append((pixels, np.array([[number, 10, 20, 30, 50]], np.float32)))
    canvas, labels = mosaic(samples, SIZE, rng)
    assert canvas.shape == (2 * SIZE, 2 * SIZE, 3) and len(labels) == 4
    for number, *box in labels:
        x1, y1, x2, y2 = (int(edge) for edge in box)
        ours = canvas[..., 0] == 10 + int(number)
        assert ours.sum() == (x2 - x1) * (y2 - y1) and ours[y1:y2, x1:x2].all()


def test_flips_move_boxes_and_come_back() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    sample: Sample = (pixels, np.array([[0, 2, 3, 10, 8]], np.float32))
    both = Hyp(flipud=1.0, fliplr=1.0)
    once = flip(sample, both, np.random.default_rng(0))
    np.testing.assert_array_equal(once[1], [[0, 20, 12, 28, 17]])
    again = flip(once, both, np.random.default_rng(0))
    np.testing.assert_array_equal(again[0], pixels)
    np.testing.assert_array_equal(again[1], sample[1])


def test_boxes_of_which_little_is_left_go() -> None:
    before = np.array([[0, 0, 100, 100]] * 4, np.float32)
    after = np.array([[0, 0, 100, 100], [0, 0, 100, 9], [0, 0, 100, 1.5], [0, 0, 40, 40]], np.float32)
    assert is_kept(before, after).tolist() == [True, False, False, True]


def test_without_augmentation_a_sample_is_its_letterboxed_picture(pictures: Pictures) -> None:
    plain = TrainSet(pictures, Hyp(), SIZE, seed=0)
    for index in range(len(plain)):
        square, labels = letterbox(pictures.load(index), SIZE)
        tensor, rows = plain[index]
        assert tensor.dtype == torch.uint8 and tensor.shape == (3, SIZE, SIZE)
        np.testing.assert_array_equal(tensor.numpy().transpose(1, 2, 0)[..., ::-1], square)
        centre = (labels[:, 1:3] + labels[:, 3:5]) / 2 / SIZE
        np.testing.assert_allclose(rows[:, 1:3], centre, atol=1e-5)


def test_a_sample_depends_on_seed_epoch_and_index_alone(pictures: Pictures) -> None:
    one, other = (TrainSet(pictures, STRONG, SIZE, seed=3) for _ in range(2))
    for dataset in (one, other):
        dataset.set_epoch(5)
    for index in reversed(range(7)):
        other[index]
    assert all(torch.equal(a, b) for index in range(7) for a, b in zip(one[index], other[index], strict=True))
    other.set_epoch(6)
    assert not torch.equal(one[0][0], other[0][0])
    assert not torch.equal(one[0][0], _at_epoch(TrainSet(pictures, STRONG, SIZE, seed=4), 5)[0][0])


def _at_epoch(dataset: TrainSet, epoch: int) -> TrainSet:
    dataset.set_epoch(epoch)
    return dataset


# A process of its own: forking this one, in which other tests have started the threads of every engine, can end it.
WORKERS = """
import sys
import numpy as np
import torch
from pathlib import Path
from trainer.data.dataset import TrainSet, train_loader
from trainer.data.pictures import Pictures
from trainer.hyp import Hyp
paths = sorted(Path(sys.argv[1]).glob("*.png"))
labels = [np.array([[0, 0.45, 0.55, 0.5, 0.5]], np.float32)] * len(paths)
hyp = Hyp(degrees=10, shear=5, perspective=0.0005, flipud=0.5, mixup=0.3)
state = torch.get_rng_state()
here, there = (
    list(train_loader(TrainSet(Pictures(paths, labels, 96), hyp, 96, seed=1), 3, seed=1, epoch=2, workers=count))
    for count in (0, int(sys.argv[2]))
)
assert len(here) == len(there) == 3
assert all(torch.equal(a, b) for x, y in zip(here, there, strict=True) for a, b in zip(x, y, strict=True))
assert torch.equal(state, torch.get_rng_state()), "the training's own random numbers are left alone"
print("the same")
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_the_same_batches(pictures: Pictures, workers: int) -> None:
    command = [sys.executable, "-c", WORKERS, str(pictures.paths[0].parent), str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "the same\n", done.stderr


def test_processes_share_an_epoch_and_get_as_many_each(pictures: Pictures) -> None:
    loaders = [
        train_loader(TrainSet(pictures, STRONG, SIZE, seed=1), 2, seed=1, epoch=0, workers=0, rank=rank, world=2)
        for rank in range(2)
    ]
    orders = [list(loader.sampler) for loader in loaders]
    assert [len(order) for order in orders] == [4, 4] and set(orders[0]) | set(orders[1]) == set(range(7))
    another = train_loader(TrainSet(pictures, STRONG, SIZE, seed=1), 2, seed=1, epoch=1, workers=0, world=2)
    assert list(another.sampler) != orders[0]


def test_collate_numbers_the_pictures_of_each_object() -> None:
    picture = torch.zeros((3, 4, 4), dtype=torch.uint8)
    batch, objects = collate([(picture, torch.ones(2, 5)), (picture, torch.ones(0, 5)), (picture, torch.ones(1, 5))])
    assert batch.shape == (3, 3, 4, 4) and objects[:, 0].tolist() == [0, 0, 2] and objects.shape == (3, 6)


@pytest.mark.parametrize("rectangular", [True, False])
def test_validation_boxes_go_to_the_letterbox_and_back(pictures: Pictures, rectangular: bool) -> None:
    batches = list(ValSet(pictures, batch_size=3, rectangular=rectangular))
    assert sorted(one.index for batch in batches for one in batch.placed) == list(range(7))
    for batch in batches:
        height, width = batch.pictures.shape[2:]
        assert height % 32 == width % 32 == 0 and (rectangular or height == width == SIZE)
        for place, one in enumerate(batch.placed):
            rows = batch.targets[batch.targets[:, 0] == place].numpy()
            centre, side = rows[:, 2:4] * (width, height), rows[:, 4:6] * (width, height)
            inside = np.concatenate([centre - side / 2, centre + side / 2], axis=1).astype(np.float32)
            np.testing.assert_allclose(one.to_original(inside), one.boxes, atol=1e-3)
            seen = np.array(bright(batch.pictures[place].numpy().transpose(1, 2, 0)))
            assert np.abs(seen - inside[0]).max() <= 1.5
    assert not rectangular or any(batch.pictures.shape[2:] != (SIZE, SIZE) for batch in batches)


def test_half_a_stride_more_is_yolov5s_own_validation(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.zeros((96, 96, 3), np.uint8))
    square = Pictures([path], [np.zeros((0, 5), np.float32)], SIZE)
    assert ValSet(square, batch_size=1)[0].pictures.shape == (1, 3, 96, 96)
    assert ValSet(square, batch_size=1, extra=0.5)[0].pictures.shape == (1, 3, 128, 128)


def test_mosaic_may_be_turned_off_for_the_last_epochs(pictures: Pictures) -> None:
    dataset = TrainSet(pictures, replace(Hyp(), mosaic=1.0), SIZE, seed=0)
    dataset.mosaic = 0.0
    plain = TrainSet(pictures, Hyp(), SIZE, seed=0)
    assert torch.equal(dataset[3][0], plain[3][0])
