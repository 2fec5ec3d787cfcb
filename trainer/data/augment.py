"""Augmentation as YOLOv5 publishes it: mosaic of four, random affine, colour, flips, mixup. Pure functions of a random
generator; pictures are BGR uint8 (h, w, 3), objects float32 (n, 5): class, x1 y1 x2 y2 in pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from trainer.data.labels import Labels
from trainer.data.pictures import Image

GREY = 114  # what lies beside pictures, in training as in the letterbox of the live path

# An object is kept when this much of it is left after a warp: sides in pixels, share of its area, and no mere sliver.
_LEAST_SIDE, _LEAST_SHARE, _MOST_ASPECT = 2.0, 0.1, 100.0
# Both parameters of the beta distribution of mixup's weight: narrowly about one half.
_MIXUP_BETA = 32.0

Sample = tuple[Image, Labels]
Matrix = NDArray[np.float64]


class Augmentation(Protocol):
    """How strongly to augment; YOLOv5's hyperparameters of these names."""

    @property
    def hsv_h(self) -> float:
        """Hue: most change, as a share of the circle."""

    @property
    def hsv_s(self) -> float:
        """Saturation: most change, as a share."""

    @property
    def hsv_v(self) -> float:
        """Brightness: most change, as a share."""

    @property
    def degrees(self) -> float:
        """Rotation: most, in degrees either way."""

    @property
    def translate(self) -> float:
        """Shift: most, as a share of the picture."""

    @property
    def scale(self) -> float:
        """Size: 1 - scale to 1 + scale."""

    @property
    def shear(self) -> float:
        """Shear: most, in degrees either way."""

    @property
    def perspective(self) -> float:
        """Perspective: most, 0 to 0.001."""

    @property
    def flipud(self) -> float:
        """Probability of turning upside down."""

    @property
    def fliplr(self) -> float:
        """Probability of a mirror picture."""

    @property
    def mosaic(self) -> float:
        """Probability of four pictures in one."""

    @property
    def mixup(self) -> float:
        """Probability of laying two mosaics over each other."""


def mosaic(samples: Sequence[Sample], size: int, rng: np.random.Generator) -> Sample:
    """Four samples (longer side `size`) around a random point of a canvas of (2 size, 2 size), cut at its edges.

    The point lies in the middle half of the canvas; `warp` with the canvas' middle as its output follows.
    """
    canvas = np.full((2 * size, 2 * size, 3), GREY, np.uint8)
    centre_x, centre_y = (int(at) for at in rng.uniform(size / 2, 3 * size / 2, 2))
    objects = []
    for place, (picture, labels) in enumerate(samples):
        height, width = picture.shape[:2]
        # Each picture touches the point with one corner: left or right of it, above or below.
        left = centre_x - width if place % 2 == 0 else centre_x
        top = centre_y - height if place < 2 else centre_y
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + width, 2 * size), min(top + height, 2 * size)
        canvas[y0:y1, x0:x1] = picture[y0 - top : y1 - top, x0 - left : x1 - left]
        objects.append(_moved(labels, left, top))
    labels = np.concatenate(objects)
    np.clip(labels[:, 1:], 0, 2 * size, out=labels[:, 1:])
    return canvas, labels


def letterbox(sample: Sample, size: int) -> Sample:
    """A sample whose longer side is `size`, in the middle of a grey square."""
    picture, labels = sample
    height, width = picture.shape[:2]
    if height == width == size:
        return sample
    top, left = (size - height) // 2, (size - width) // 2
    square = np.full((size, size, 3), GREY, np.uint8)
    square[top : top + height, left : left + width] = picture
    return square, _moved(labels, left, top)


def warp(sample: Sample, size: int, how: Augmentation, rng: np.random.Generator) -> Sample:
    """Rotate, scale, shear, shift (and bend by perspective) about the sample's middle, into a picture of (size, size).

    Boxes become those around their moved corners; see `is_kept` for which stay.
    """
    picture, labels = sample
    matrix, scale = _random_matrix(picture.shape[1], picture.shape[0], size, how, rng)
    grey = (GREY, GREY, GREY)
    if how.perspective:
        warped = cv2.warpPerspective(picture, matrix, (size, size), borderValue=grey)
    else:
        warped = cv2.warpAffine(picture, matrix[:2], (size, size), borderValue=grey)
    boxes = np.clip(_moved_boxes(labels[:, 1:], matrix), 0, size)
    kept = is_kept(labels[:, 1:] * scale, boxes)
    return np.asarray(warped, np.uint8), np.concatenate([labels[kept, :1], boxes[kept]], axis=1)


def is_kept(before: Labels, after: Labels) -> NDArray[np.bool_]:
    """Which boxes (n, 4) are still worth learning, given them at full and as they were cut (both x1 y1 x2 y2)."""
    full = before[:, 2:] - before[:, :2]
    left = after[:, 2:] - after[:, :2]
    share = left.prod(1) / np.maximum(full.prod(1), 1e-9)
    aspect = left.max(1) / np.maximum(left.min(1), 1e-9)
    kept: NDArray[np.bool_] = (left > _LEAST_SIDE).all(1) & (share > _LEAST_SHARE) & (aspect < _MOST_ASPECT)
    return kept


def mixup(first: Sample, second: Sample, rng: np.random.Generator) -> Sample:
    """Both pictures (of one shape) laid over each other, with the objects of both."""
    weight = float(rng.beta(_MIXUP_BETA, _MIXUP_BETA))
    mixed = cv2.addWeighted(first[0], weight, second[0], 1 - weight, 0)
    return np.asarray(mixed, np.uint8), np.concatenate([first[1], second[1]])


def colour(picture: Image, how: Augmentation, rng: np.random.Generator) -> Image:
    """Hue, saturation and brightness each multiplied by 1 +- its share; by tables, as OpenCV's are bytes."""
    if not (how.hsv_h or how.hsv_s or how.hsv_v):
        return picture
    hue, saturation, brightness = rng.uniform(-1, 1, 3) * (how.hsv_h, how.hsv_s, how.hsv_v) + 1
    levels = np.arange(256)
    tables = np.stack(
        [levels * hue % 180, np.clip(levels * saturation, 0, 255), np.clip(levels * brightness, 0, 255)], axis=-1
    ).astype(np.uint8)
    hsv = cv2.cvtColor(picture, cv2.COLOR_BGR2HSV)
    cv2.LUT(hsv, tables[None], dst=hsv)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR, dst=hsv), np.uint8)


def flip(sample: Sample, how: Augmentation, rng: np.random.Generator) -> Sample:
    """Perhaps upside down, perhaps mirrored."""
    picture, labels = sample
    height, width = picture.shape[:2]
    upside_down, mirrored = rng.random(2) < (how.flipud, how.fliplr)
    if not (upside_down or mirrored):
        return sample
    labels = labels.copy()
    if upside_down:
        labels[:, [2, 4]] = height - labels[:, [4, 2]]
    if mirrored:
        labels[:, [1, 3]] = width - labels[:, [3, 1]]
    code = -1 if upside_down and mirrored else 0 if upside_down else 1
    return np.asarray(cv2.flip(picture, code), np.uint8), labels


def _moved(labels: Labels, right: float, down: float) -> Labels:
    moved: Labels = labels + np.array([0, right, down, right, down], np.float32)
    return moved


def _random_matrix(
    width: int, height: int, size: int, how: Augmentation, rng: np.random.Generator
) -> tuple[Matrix, float]:
    """The 3x3 matrix from a picture's pixels to those of its warped square, and the scale in it."""
    bend = rng.uniform(-how.perspective, how.perspective, 2)
    angle = math.radians(rng.uniform(-how.degrees, how.degrees))
    scale = rng.uniform(1 - how.scale, 1 + how.scale)
    lean = np.tan(np.radians(rng.uniform(-how.shear, how.shear, 2)))
    shift = rng.uniform(0.5 - how.translate, 0.5 + how.translate, 2) * size
    to_middle = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]])
    perspective = np.array([[1, 0, 0], [0, 1, 0], [bend[0], bend[1], 1]])
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    shear = np.array([[1, lean[0], 0], [lean[1], 1, 0], [0, 0, 1]])
    place = np.array([[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1]])
    return place @ shear @ turn @ perspective @ to_middle, float(scale)


def _moved_boxes(boxes: Labels, matrix: Matrix) -> Labels:
    """The boxes (n, 4) around the moved corners of boxes."""
    corners = np.ones((len(boxes), 4, 3))
    corners[:, :, :2] = boxes[:, [0, 1, 2, 3, 0, 3, 2, 1]].reshape(-1, 4, 2)
    corners = corners @ matrix.T
    points = corners[:, :, :2] / corners[:, :, 2:]
    around: Labels = np.concatenate([points.min(1), points.max(1)], axis=1).astype(np.float32)
    return around
