"""Everything that is wrong with a data set, found in one go over all of its files."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from trainer.data.config import SPLITS, DataConfig
from trainer.data.labels import ENCODING, Labels, label_path, parse_labels
from trainer.data.pictures import decode_image

_LEAST_SIDE = 10  # pixels; what is smaller than one cell of the finest grid (8) shows nothing


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. Errors must be mended before training; training lives with the others as told."""

    file: Path
    line: int | None  # from 1
    what: str
    error: bool = True

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else str(self.file)
        return f"{place}: {'' if self.error else 'warning: '}{self.what}"


@dataclass
class Counts:
    """What one split holds."""

    pictures: int = 0
    backgrounds: int = 0  # pictures without an object
    unlabelled: int = 0  # of these, without a label file
    objects: dict[str, int] = field(default_factory=dict)  # by class


@dataclass
class Report:
    """All problems, by split and file, and the counts of each split."""

    problems: list[Problem]
    counts: dict[str, Counts]

    @property
    def errors(self) -> int:
        """How many problems keep the set from being used."""
        return sum(problem.error for problem in self.problems)


@dataclass(frozen=True)
class _Seen:
    """What one picture and its label gave."""

    problems: list[Problem]
    digest: str  # of the picture's bytes; "" when it is missing
    rows: Labels
    labelled: bool


def check(config: DataConfig, each: Callable[[], None] = lambda: None) -> Report:
    """Read every picture and label; `each` is called after each picture, for a progress bar."""
    problems: list[Problem] = []
    counts: dict[str, Counts] = {}
    first: dict[str, tuple[str, Path]] = {}  # by content: where it was met first
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        for split in SPLITS:
            pictures = config.split(split)
            counts[split] = count = Counts(pictures=len(pictures))
            objects: Counter[int] = Counter()
            look = partial(_look, classes=len(config.names))
            for picture, seen in zip(pictures, pool.map(look, pictures), strict=True):
                problems += seen.problems
                problems += _met_before(picture, split, seen.digest, first, config)
                count.backgrounds += not len(seen.rows)
                count.unlabelled += not seen.labelled
                objects.update(seen.rows[:, 0].astype(int).tolist())
                each()
            count.objects = {name: objects[number] for number, name in enumerate(config.names)}
            problems += _of_split(config, split, count)
    problems += _lonely_labels(config)
    return Report(problems, counts)


def _look(picture: Path, *, classes: int) -> _Seen:
    problems = []
    label = label_path(picture)
    rows, labelled = np.zeros((0, 5), np.float32), label.is_file()
    if labelled:
        try:
            rows, faults = parse_labels(label.read_text(encoding=ENCODING), classes)
            problems += [Problem(label, fault.line, fault.what, fault.error) for fault in faults]
        except (OSError, UnicodeDecodeError) as error:
            problems.append(Problem(label, None, f"cannot be read as text: {error}"))
    try:
        data = picture.read_bytes()
    except OSError as error:
        problems.append(Problem(picture, None, error.strerror or str(error)))
        return _Seen(problems, "", rows, labelled)
    problems += [Problem(picture, None, what, error) for what, error in _picture_faults(data)]
    return _Seen(problems, hashlib.sha256(data).hexdigest(), rows, labelled)


def _picture_faults(data: bytes) -> Iterator[tuple[str, bool]]:
    """What is wrong with a picture file's bytes, and whether it is an error."""
    pixels = decode_image(data)
    if pixels is None:
        yield ("empty" if not data else "not a picture that OpenCV reads"), True
        return
    height, width = pixels.shape[:2]
    if min(height, width) < _LEAST_SIDE:
        yield f"{width}x{height} pixels; at least {_LEAST_SIDE} each way are wanted", True
    # Inside a JPEG's scans FF D9 cannot occur, so it ends the file after the last start of a scan, FF DA.
    if data.startswith(b"\xff\xd8") and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        yield "a JPEG that breaks off; its lower part is grey", False


def _met_before(
    picture: Path, split: str, digest: str, first: dict[str, tuple[str, Path]], config: DataConfig
) -> Iterator[Problem]:
    if not digest:
        return
    where, other = first.setdefault(digest, (split, picture))
    if where != split:
        # coco128 and the like name one folder for both on purpose: told once, by _of_split.
        if config.split(where) != config.split(split):
            what = f"also in {where}, as {other}: scores on what was learned say nothing"
            yield Problem(picture, None, what, error=False)
    elif other != picture:
        yield Problem(picture, None, f"the same picture as {other}", error=False)


def _of_split(config: DataConfig, split: str, count: Counts) -> Iterator[Problem]:
    if not count.pictures:
        if split != "test":
            yield Problem(config.path, None, f"{split}: no pictures in it")
        elif config.without_test:
            yield Problem(config.path, None, config.without_test, error=False)
        return
    if not any(count.objects.values()):
        yield Problem(config.path, None, f"{split}: {count.pictures} pictures, but no object in any of their labels")
        return
    if missing := [name for name, number in count.objects.items() if not number]:
        shown = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        yield Problem(config.path, None, f"{split}: no object of class {shown}", error=False)
    if split == "val" and config.val == config.train:
        what = "val: the same pictures as train: its scores say how well they were learned, and nothing else"
        yield Problem(config.path, None, what, error=False)


def _lonely_labels(config: DataConfig) -> Iterator[Problem]:
    """Labels beside the set's own that belong to no picture; only where labels have folders of their own."""
    wanted = {label_path(picture) for split in SPLITS for picture in config.split(split)}
    folders = {picture.parent for split in SPLITS for picture in config.split(split)}
    for folder in sorted({path.parent for path in wanted} - folders):
        yield from _without_picture(folder, wanted)


def _without_picture(folder: Path, wanted: Iterable[Path]) -> Iterator[Problem]:
    for label in sorted(set(folder.glob("*.txt")).difference(wanted)):
        if label.name != "classes.txt":  # labelling tools leave it there
            yield Problem(label, None, "no picture for this label", error=False)
