"""A data set in YOLO's format as its data.yaml describes it.

    path: .                # optional: where the rest is relative to; the file's own folder when missing
    train: images/train    # a folder of pictures, a .txt with one picture a line, or a list of them
    val: images/val
    test: images/test      # optional; exports name it also where they leave its folder out
    names: [person, car]   # or {0: person, 1: car}; `nc`, when given, must agree

Roboflow's exports write `../train/images` although the folder lies beside the file; it is found there. A `download:`
key is never acted upon.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainer import plain_yaml
from trainer.data.labels import ENCODING, label_path
from trainer.errors import DataError

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
SPLITS = ("train", "val", "test")


class _NotThere(DataError):
    """A folder or list that a data.yaml names is not there."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path}: {what}")
        self.what = what


@dataclass(frozen=True)
class DataConfig:
    """A data set: its pictures by split, sorted, and its classes. Pictures that a .txt lists need not be there."""

    path: Path  # of the data.yaml
    train: tuple[Path, ...]
    val: tuple[Path, ...]
    test: tuple[Path, ...]
    names: tuple[str, ...]  # by class number
    without_test: str = ""  # why `test` is empty although the file names some

    def split(self, name: str) -> tuple[Path, ...]:
        """The pictures of `train`, `val` or `test`."""
        pictures: tuple[Path, ...] = getattr(self, name)
        return pictures


def read_data(path: Path) -> DataConfig:
    """Read a data.yaml (or the one in a folder) and list its pictures; raises DataError."""
    if path.is_dir():
        path = path / "data.yaml"
    try:
        content: Any = plain_yaml.load(path.read_text(encoding=ENCODING))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); a data.yaml in YOLO's format is wanted") from error
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not YAML: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected the keys train, val and names, found {type(content).__name__}")
    names = _names(content, path)
    roots = _roots(content, path)
    train, val = (_pictures(content.get(split), split, roots, path) for split in ("train", "val"))
    try:
        test, without_test = _pictures(content.get("test"), "test", roots, path), ""
    except _NotThere as error:  # nobody trains on it: only who asks for it misses it
        test, without_test = (), error.what
    return DataConfig(path=path, train=train, val=val, test=test, names=names, without_test=without_test)


def digest(config: DataConfig) -> str:
    """sha256 over the class names, every picture's name and size in bytes, and every label: the same data, the same
    digest, wherever the set lies. Raises DataError when a picture is missing."""
    sha = hashlib.sha256("\0".join(config.names).encode())
    for split in SPLITS:
        for picture in config.split(split):
            label = label_path(picture)
            try:
                size = picture.stat().st_size
                rows = label.read_bytes() if label.exists() else b""
            except OSError as error:
                raise DataError(
                    f"{picture}: {error.strerror}; `sparsecam data check` lists all that is wrong"
                ) from error
            sha.update(f"\n{split}\0{picture.name}\0{size}\0".encode(errors="surrogateescape") + rows)
    return sha.hexdigest()


def _names(content: dict[Any, Any], path: Path) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict):
        numbers = sorted(names, key=str)
        if set(names) != set(range(len(names))):
            raise DataError(f"{path}: names: the numbers must be 0 to {len(names) - 1}, found {numbers}")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{path}: names: expected the class names, [person, car] or {{0: person, 1: car}}")
    for number, name in enumerate(names):
        if isinstance(name, bool) or not isinstance(name, str | int | float):
            raise DataError(
                f"{path}: names: class {number} reads as {name!r}, which is no text; YAML takes a bare no, yes, on or "
                "null for a value of its own: put the name in quotes, such as 'no'"
            )
    words = tuple(str(name).strip() for name in names)
    if twice := sorted({word for word in words if words.count(word) > 1}):
        raise DataError(f"{path}: names: {', '.join(twice)} given more than once; each class wants a name of its own")
    count = content.get("nc", len(words))
    if count != len(words):
        raise DataError(f"{path}: nc is {count}, but names has {len(words)} classes; make them agree, or drop nc")
    return words


def _roots(content: dict[Any, Any], path: Path) -> list[Path]:
    """Where relative paths may start, likeliest first."""
    given = content.get("path")
    if given is None:
        return [path.parent]
    if not isinstance(given, str):
        raise DataError(f"{path}: path: expected a folder, found {given!r}")
    try:
        folder = Path(given).expanduser()
    except RuntimeError as error:  # ~somebody who is not known here, or ~ where no home is
        raise DataError(
            f"{path}: path: {given}: whose folder that is is not known here; expected a folder, such as . for the "
            "file's own"
        ) from error
    # An absolute folder of another machine: the set was copied, and the file's own folder is the likely place.
    return [folder, path.parent] if folder.is_absolute() else [path.parent / folder, folder, path.parent]


def _pictures(value: object, split: str, roots: list[Path], path: Path) -> tuple[Path, ...]:
    if value is None and split == "test":
        return ()
    places: list[Any] = value if isinstance(value, list) else [value]
    if not places or not all(isinstance(place, str) and place for place in places):
        raise DataError(
            f"{path}: {split}: expected a folder, a .txt list of pictures, or a list of them, found {value!r}"
        )
    found: set[Path] = set()
    for place in places:
        found.update(_of_place(_find(place, split, roots, path), roots))
    return tuple(sorted(found))


def _find(place: str, split: str, roots: list[Path], path: Path) -> Path:
    tries = [root / place for root in roots]
    # Roboflow: `../train/images` is meant from a folder that the export does not have.
    tries += [root / place.removeprefix("../") for root in roots if place.startswith("../")]
    for candidate in tries:
        if candidate.exists():
            return candidate
    looked = ", ".join(dict.fromkeys(str(candidate) for candidate in tries))
    raise _NotThere(path, f"{split}: {place} is not there; looked for {looked}")


def _of_place(place: Path, roots: list[Path]) -> Iterable[Path]:
    if place.is_dir():
        return (file for file in _files(place) if file.suffix.lower() in PICTURE_SUFFIXES and file.is_file())
    if place.suffix.lower() != ".txt":
        raise DataError(f"{place}: expected a folder or a .txt list of pictures")
    lines = (line.strip() for line in _list_text(place).splitlines())
    return (_listed(line, [place.parent, *roots]) for line in lines if line)


def _list_text(path: Path) -> str:
    try:
        text = path.read_text(encoding=ENCODING)
    except OSError as error:
        raise DataError(f"{path}: the list of pictures cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # UTF-16 without a mark reads as UTF-8 with a NUL after each letter
        raise DataError(
            f"{path}: expected a list of pictures in UTF-8; this is another encoding, perhaps the UTF-16 that "
            "PowerShell's `>` writes: save it as UTF-8 (`| Out-File -Encoding utf8`)"
        )
    return text


def _files(folder: Path) -> Iterator[Path]:
    """All files below, also behind links to folders: each folder once, by its own path here where it has one."""
    seen: set[Path] = set()
    waiting = [folder]
    while waiting:
        links: list[Path] = []  # looked into when all that is reached with fewer links is known
        for start in waiting:
            for name, folders, files in os.walk(start):
                here = Path(name)
                real = here.resolve()
                if real in seen:
                    folders.clear()
                    continue
                seen.add(real)
                yield from (here / file for file in files)
                links += [link for one in sorted(folders) if (link := here / one).is_symlink()]
        waiting = links


def _listed(line: str, roots: list[Path]) -> Path:
    """A line of a list: relative to the list itself (as `./` means in YOLOv5's lists), or to the data set."""
    tries = [root / line for root in roots]
    return next((candidate for candidate in tries if candidate.exists()), tries[0])
