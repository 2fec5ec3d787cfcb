"""A training set of the simulated street: pictures as the live path would see them, and the truth as labels.

Each picture has gone the way of a live frame: drawn, compressed by the simulated camera's own encoder as a keyframe or
one of the frames after it, decoded, and fitted by ingest's own letterboxing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from ingest.letterbox import Letterboxer
from ingest.sim.encode import open_encoder, video_frame
from ingest.sim.scene import LABELS, Street, TruthBox
from ingest.sim.scene_url import Light, SceneSpec
from trainer.errors import DataError
from wire.messages import InputSpec

# What is to be found. A fifth is a head and shoulders at the picture's edge, or a car's front; less shows too little of
# what it is. Narrower than one part in 128 of the longer side is 3 pixels at 416, less than stride 8 can place.
LEAST_VISIBLE, LEAST_SIDE = 0.2, 1 / 128
# A new scene costs 0.5 s, a picture of it 0.06 s; fewer scenes would show too few houses, trees and crossings.
_PICTURES_A_SCENE = 24
# The demo's cameras show day; the others so that the model is of use elsewhere too.
_LIGHTS: tuple[tuple[Light, float], ...] = (("day", 0.6), ("dusk", 0.2), ("night", 0.2))
_MOST_OBJECTS = 14  # the default is 6; with more than this the street is a jam
_MOST_NOISE = 6  # grey levels; the default is 2
_MOST_AFTER_KEYFRAME = 1  # frames: one shows what coding by differences does, and each costs as much as a picture
_HOURS_FRAMES = 90_000  # an hour at 25 fps: moments of a scene have nothing in common
# Seeds that people watch (the demo's, and examples'); a model must not have learned those very streets.
_RESERVED_SEEDS = 1000
_JPEG_QUALITY = 95  # the camera's own compression is to be learned, not the file's

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Options:
    """What to draw."""

    pictures: int  # for training
    val: int
    seed: int
    sizes: tuple[tuple[int, int], ...]  # (width, height) of the cameras
    fit: int | None  # longer side of the pictures written; None: the camera's own


def simulate(out: Path, options: Options, drawn: Callable[[], None] = lambda: None) -> Path:
    """Write the set into the folder `out` (new, or empty) and return its data.yaml; the same options, the same files.

    `drawn` is called after each picture. Raises DataError when the folder holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: is there and not an empty folder; give a new one, or empty it")
    for stream, (split, count) in enumerate((("train", options.pictures), ("val", options.val))):
        for kind in ("images", "labels"):
            (out / kind / split).mkdir(parents=True)
        # Streams of random numbers of their own: more training pictures leave those of validation as they were.
        samples = _samples(np.random.default_rng([options.seed, stream]), stream, options)
        for number, (picture, lines) in enumerate(islice(samples, count)):
            name = f"{number:06d}"
            path = out / "images" / split / f"{name}.jpg"
            if not cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]):
                raise DataError(f"{path}: cannot be written")
            (out / "labels" / split / f"{name}.txt").write_text("".join(lines))
            drawn()
    path = out / "data.yaml"
    path.write_text(_description(options))
    return path


def _samples(rng: np.random.Generator, stream: int, options: Options) -> Iterator[tuple[Image, list[str]]]:
    """Pictures (BGR) and their label lines, scene after scene without end."""
    while True:
        spec = _scene(rng, stream, options.sizes)
        yield from _of_scene(Street(spec), rng, options.fit or max(spec.width, spec.height))


def _scene(rng: np.random.Generator, stream: int, sizes: tuple[tuple[int, int], ...]) -> SceneSpec:
    width, height = sizes[int(rng.integers(len(sizes)))]
    lights, shares = zip(*_LIGHTS, strict=True)
    # Training has the odd seeds and validation the even ones, so no street is in both.
    seed = 2 * int(rng.integers(_RESERVED_SEEDS, 2**31)) + 1 - stream
    return SceneSpec(
        seed=seed,
        width=width,
        height=height,
        objects=int(rng.integers(1, _MOST_OBJECTS + 1)),
        light=lights[int(rng.choice(len(lights), p=shares))],
        noise=int(rng.integers(0, _MOST_NOISE + 1)),
    )


def _of_scene(street: Street, rng: np.random.Generator, fit: int) -> Iterator[tuple[Image, list[str]]]:
    spec = street.spec
    camera = _Camera(street)
    letterboxer = Letterboxer()
    # With a stride of 2 nothing is padded.
    wanted = InputSpec(height=fit, width=fit, stride=2, rectangular=True)
    for moment in np.sort(rng.choice(_HOURS_FRAMES, _PICTURES_A_SCENE, replace=False)):
        index = int(moment) + _MOST_AFTER_KEYFRAME
        frame, truth = camera.frame(index, after_keyframe=int(rng.integers(_MOST_AFTER_KEYFRAME + 1)))
        boxed = letterboxer.frame(frame, 0, wanted)
        picture = np.asarray(cv2.cvtColor(boxed.pixels, cv2.COLOR_YUV2BGR_I420), np.uint8)
        yield picture, [line(box, spec.width, spec.height) for box in truth if is_wanted(box, spec.width, spec.height)]


class _Camera:
    """A scene through the simulated camera's encoder and a decoder."""

    def __init__(self, street: Street) -> None:
        self._street = street
        self._encoder = open_encoder(street.spec)
        self._decoder = av.VideoCodecContext.create("h264", "r")
        self._decoder.extradata = self._encoder.extradata
        self._decoder.thread_count = 1  # more hold frames back

    def frame(self, index: int, *, after_keyframe: int) -> tuple[av.VideoFrame, list[TruthBox]]:
        """Frame `index` as it arrives that many frames after a keyframe, and its truth; indices only grow."""
        first = index - after_keyframe
        for at in range(first, index + 1):
            picture, truth = self._street.render(at)
            sent = video_frame(picture, at, self._street.spec.fps, keyframe=at == first)
            decoded = [frame for packet in self._encoder.encode(sent) for frame in self._decoder.decode(packet)]
        # Neither end holds a frame back: the last one in is the last one out.
        assert len(decoded) == 1 and decoded[0].pts == sent.pts
        return decoded[0], truth


def is_wanted(box: TruthBox, width: int, height: int) -> bool:
    """Whether an object of a picture of this size is to be found: enough of it is to be seen, and it is not tiny."""
    left, top, right, bottom = box.box
    return box.visible >= LEAST_VISIBLE and min(right - left, bottom - top) >= LEAST_SIDE * max(width, height)


def line(box: TruthBox, width: int, height: int) -> str:
    """An object as a line of a label file."""
    left, top, right, bottom = box.box
    shares = ((left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height)
    return f"{LABELS.index(box.label)} {' '.join(f'{share:.6f}' for share in shares)}\n"


def _description(options: Options) -> str:
    sizes = ", ".join(f"{width}x{height}" for width, height in options.sizes)
    content = {"path": ".", "train": "images/train", "val": "images/val", "names": dict(enumerate(LABELS))}
    return (
        f"# The simulated street: {options.pictures} + {options.val} pictures, seed {options.seed}, cameras {sizes}.\n"
        f"# Left out: objects of which less than {LEAST_VISIBLE:.0%} is visible, or a side is less than "
        f"1/{1 / LEAST_SIDE:.0f} of the picture's longer side.\n"
        f"{yaml.safe_dump(content, sort_keys=False)}"
    )
