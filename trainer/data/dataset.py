"""What training and validation iterate over: augmented samples, and letterboxed batches of one shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from trainer.data.augment import GREY, Augmentation, Sample, colour, flip, letterbox, mixup, mosaic, warp
from trainer.data.labels import Labels
from trainer.data.pictures import Image, Pictures

# Streams of random numbers of one training: the samples of an epoch, and their order.
_SAMPLES, _ORDER = 0, 1


class TrainSet(Dataset[tuple[Tensor, Tensor]]):
    """Augmented samples. What `[i]` gives depends on the seed, the epoch and i alone, in whatever process and order it
    is asked for, so a resumed training sees what an uninterrupted one would have seen."""

    def __init__(self, pictures: Pictures, hyp: Augmentation, img_size: int, seed: int) -> None:
        if pictures.img_size != img_size:
            raise ValueError(f"pictures were opened at {pictures.img_size}, but are wanted at {img_size}")
        self.mosaic = hyp.mosaic  # probability; may be changed between epochs
        self._pictures = pictures
        self._hyp = hyp
        self._img_size = img_size
        self._seed = seed
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._pictures)

    def set_epoch(self, epoch: int) -> None:
        """The epoch (from 0) whose samples are wanted; before a loader's workers start."""
        self._epoch = epoch

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """(3, size, size) uint8 RGB, and float32 (n, 5): class, cx cy w h in 0..1."""
        rng = np.random.default_rng([self._seed, _SAMPLES, self._epoch, index])
        picture, labels = self._sample(index, rng)
        picture = colour(picture, self._hyp, rng)
        picture, labels = flip((picture, labels), self._hyp, rng)
        return _tensor(picture), torch.from_numpy(_shares(labels, self._img_size, self._img_size))

    def _sample(self, index: int, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.mosaic:
            square = letterbox(self._pictures.load(index), self._img_size)
            return warp(square, self._img_size, self._hyp, rng)
        sample = self._mosaic(index, rng)
        if rng.random() < self._hyp.mixup:
            sample = mixup(sample, self._mosaic(int(rng.integers(len(self))), rng), rng)
        return sample

    def _mosaic(self, index: int, rng: np.random.Generator) -> Sample:
        chosen = [index, *rng.integers(len(self), size=3)]
        rng.shuffle(chosen)
        four = mosaic([self._pictures.load(int(one)) for one in chosen], self._img_size, rng)
        return warp(four, self._img_size, self._hyp, rng)


def collate(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Pictures as uint8 (b, 3, s, s), and all their objects as float32 (n, 6): picture's place, class, cx, cy, w, h."""
    pictures, objects = zip(*samples, strict=True)
    return torch.stack(pictures), _with_place(objects)


def train_loader(
    dataset: TrainSet, batch_size: int, *, seed: int, epoch: int, workers: int, rank: int = 0, world: int = 1
) -> DataLoader[tuple[Tensor, Tensor]]:
    """One epoch of batches for one of `world` processes (each gets as many). `batch_size` is that of one process."""
    dataset.set_epoch(epoch)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=_EpochOrder(len(dataset), seed, epoch, rank, world),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        # The loader draws its workers' seeds from here, and so leaves the training's own random numbers alone.
        generator=torch.Generator().manual_seed(seed),
        # Batches a worker has ready; more would only take memory.
        prefetch_factor=4 if workers else None,
    )


def _start_worker(_: int) -> None:
    """Workers are the parallelism; OpenCV's threads in each would only fight over the cores."""
    cv2.setNumThreads(0)


class _EpochOrder(Sampler[int]):
    """A new order every epoch, dealt out to the processes; filled up from its beginning so that all get as many."""

    def __init__(self, length: int, seed: int, epoch: int, rank: int, world: int) -> None:
        order = np.random.default_rng([seed, _ORDER, epoch]).permutation(length)
        self._mine: list[int] = np.resize(order, -(-length // world) * world)[rank::world].tolist()

    def __iter__(self) -> Iterator[int]:
        return iter(self._mine)

    def __len__(self) -> int:
        return len(self._mine)


@dataclass(frozen=True)
class Placed:
    """One picture of a validation batch: its truth in pixels of the picture on disk, and the way back to them."""

    index: int  # in the set's Pictures
    height: int  # of the picture on disk
    width: int
    boxes: NDArray[np.float32]  # (n, 4) x1 y1 x2 y2, in pixels of the picture on disk
    classes: NDArray[np.int64]  # (n,)
    ratio: tuple[float, float]  # letterbox pixels per original pixel, in x and y
    pad: tuple[int, int]  # letterbox pixels left of and above the picture

    def to_original(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Boxes (n, 4) x1 y1 x2 y2 of the letterbox in pixels of the picture on disk, cut at its edges."""
        moved = (boxes - np.array(self.pad * 2, np.float32)) / np.array(self.ratio * 2, np.float32)
        limits = np.array((self.width, self.height) * 2, np.float32)
        return np.clip(moved, 0, limits).astype(np.float32)


@dataclass(frozen=True)
class ValBatch:
    """Letterboxed pictures of one shape."""

    pictures: Tensor  # uint8 (b, 3, h, w) RGB
    targets: Tensor  # float32 (n, 6): picture's place, class, cx cy w h in 0..1 of the letterbox; for the loss
    placed: list[Placed]


class ValSet(Dataset[ValBatch]):
    """Batches for validation: `[i]` is a whole batch. Rectangular: pictures of like shape together, padded to the next
    multiple of the stride (as the live path does), else all to the square."""

    def __init__(
        self, pictures: Pictures, *, batch_size: int, rectangular: bool = True, stride: int = 32, extra: float = 0.0
    ) -> None:
        """`extra`: strides of grey added before rounding up; YOLOv5's own validation has half a stride."""
        self._pictures = pictures
        aspects = np.array([np.divide(*pictures.original_size(index)) for index in range(len(pictures))])
        order = np.argsort(aspects, kind="stable") if rectangular else np.arange(len(pictures))
        self._batches = [order[at : at + batch_size].tolist() for at in range(0, len(order), batch_size)]
        size = pictures.img_size
        self._shapes = []
        for batch in self._batches:
            sides = [(1.0, 1.0)]
            if rectangular:
                sides = [(min(1.0, aspects[index]), min(1.0, 1 / aspects[index])) for index in batch]
            height, width = np.ceil(np.max(sides, axis=0) * size / stride + extra - 1e-6).astype(int) * stride
            self._shapes.append((int(height), int(width)))

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[ValBatch]:
        return (self[index] for index in range(len(self)))

    @property
    def pictures(self) -> Pictures:
        """All of them, by the indices that `Placed` names."""
        return self._pictures

    def __getitem__(self, index: int) -> ValBatch:
        """One batch."""
        height, width = self._shapes[index]
        indices = self._batches[index]
        batch = np.full((len(indices), height, width, 3), GREY, np.uint8)
        placed, targets = [], []
        for place, one in zip(batch, indices, strict=True):
            picture, labels = self._pictures.load(one)
            rows, columns = picture.shape[:2]
            top, left = (height - rows) // 2, (width - columns) // 2
            place[top : top + rows, left : left + columns] = picture
            placed.append(self._placed(one, rows, columns, left, top))
            inside = labels + np.array([0, left, top, left, top], np.float32)
            targets.append(torch.from_numpy(_shares(inside, height, width)))
        pictures = torch.from_numpy(np.ascontiguousarray(batch[..., ::-1].transpose(0, 3, 1, 2)))
        return ValBatch(pictures, _with_place(targets), placed)

    def _placed(self, index: int, rows: int, columns: int, left: int, top: int) -> Placed:
        height, width = self._pictures.original_size(index)
        labels = self._pictures.labels[index]
        half = labels[:, 3:5] / 2
        corners = np.concatenate([labels[:, 1:3] - half, labels[:, 1:3] + half], axis=1)
        boxes = (corners * np.array((width, height) * 2)).astype(np.float32)
        ratio = (columns / width, rows / height)
        return Placed(index, height, width, boxes, labels[:, 0].astype(np.int64), ratio, (left, top))


def _tensor(picture: Image) -> Tensor:
    """BGR (h, w, 3) as RGB (3, h, w)."""
    tensor = np.empty((3, *picture.shape[:2]), np.uint8)
    cv2.split(picture, [tensor[2], tensor[1], tensor[0]])
    return torch.from_numpy(tensor)


def _shares(labels: Labels, height: int, width: int) -> Labels:
    """Class, x1 y1 x2 y2 in pixels to class, cx cy w h in 0..1."""
    sides = np.array((width, height), np.float32)
    centres, sizes = (labels[:, 1:3] + labels[:, 3:5]) / 2, labels[:, 3:5] - labels[:, 1:3]
    rows: Labels = np.concatenate([labels[:, :1], centres / sides, sizes / sides], axis=1).astype(np.float32)
    return rows


def _with_place(objects: Sequence[Tensor]) -> Tensor:
    places = torch.arange(len(objects)).repeat_interleave(torch.tensor([len(rows) for rows in objects]))
    return torch.cat([places[:, None].to(torch.float32), torch.cat(list(objects))], dim=1)
