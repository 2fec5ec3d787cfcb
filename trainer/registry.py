"""A folder of models by name: `NAME.onnx` beside `NAME.card.yaml`, and the same card to read as `NAME.card.md`.

A model is in the registry when both are there and the card's digest is the file's; whatever else lies in the folder is
left alone. Several folders are looked through in order, the first that has the name wins.
"""

from __future__ import annotations

import difflib
import fcntl
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainer.card import NAME_PATTERN, Card, Told, card_yaml, read_card
from trainer.card_text import card_markdown
from trainer.errors import CardError, RegistryError

MODEL_SUFFIX, CARD_SUFFIX, TEXT_SUFFIX = ".onnx", ".card.yaml", ".card.md"
_FILE_SUFFIXES = (".onnx", ".pt", ".pth")  # who writes one means a file
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One name in the registry. Without a card, or with a `problem`, it cannot be used by its name."""

    name: str
    path: Path  # of the ONNX file
    card: Card | None
    problem: str = ""


def shipped_folder() -> Path:
    """The models that come with Sparsecam: inside the installed package, or at the top of the checkout."""
    packaged = Path(__file__).with_name("shipped")
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[1] / "models"


def is_name(text: str) -> bool:
    """Whether `text` can be the name of a model: no path, and no file's name."""
    return re.fullmatch(NAME_PATTERN, text) is not None and not text.lower().endswith(_FILE_SUFFIXES)


def check_name(name: str) -> None:
    """Raise RegistryError where `name` can be no model's, saying what was expected."""
    if is_name(name):
        return
    if re.fullmatch(NAME_PATTERN, name):
        raise RegistryError(f"{name!r} is no name for a model: it reads as a file's; leave the suffix out")
    raise RegistryError(
        f"{name!r} is no name for a model: expected up to 64 letters, digits, '.', '_' and '-', a letter or digit "
        "first, such as street-yolov5n; give one with --name"
    )


def taken(folder: Path, name: str) -> Path | None:
    """The file by which `folder` has the name already; None where it is free."""
    files = (folder / f"{name}{suffix}" for suffix in (MODEL_SUFFIX, CARD_SUFFIX))
    return next((path for path in files if path.exists()), None)


def check_free(folder: Path, name: str, digest: str, told: Told) -> None:
    """Raise RegistryError where `folder` has the name already.

    The same model, told of in the same words, is no other: who was killed while adding it adds it again.
    """
    there = taken(folder, name)
    if there and not _same(folder, name, digest, told):
        raise RegistryError(f"{there} is there already; take another name, or replace it with --replace")


def entries(folders: Sequence[Path]) -> list[Entry]:
    """All models by name, also those with something wrong: a card without its file, a file without its card."""
    found: dict[str, Entry] = {}
    for folder in folders:
        names: set[str] = set()
        for suffix in (MODEL_SUFFIX, CARD_SUFFIX):
            names |= {path.name.removesuffix(suffix) for path in folder.glob(f"*{suffix}") if path.is_file()}
        for name in names - found.keys():
            if is_name(name):
                found[name] = _entry(folder, name)
    return [found[name] for name in sorted(found)]


def find(name: str, folders: Sequence[Path]) -> Entry:
    """The model of this name, with its card; raises RegistryError, saying what is there."""
    for folder in folders:
        if is_name(name) and any((folder / f"{name}{suffix}").is_file() for suffix in (MODEL_SUFFIX, CARD_SUFFIX)):
            entry = _entry(folder, name)
            if entry.problem:
                raise RegistryError(f"the model {name!r} cannot be used: {entry.problem}")
            return entry
    there = [entry.name for entry in entries(folders) if not entry.problem]
    looked = ", ".join(map(str, folders))
    # 0.6 lets one or two slips of a short name through; and a name is often called by its beginning.
    near = difflib.get_close_matches(name, there, n=1, cutoff=0.6) or [one for one in there if name in one]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    has = ", ".join(there) or "no model"
    raise RegistryError(f"no model {name!r}: there is no such file, and the registry ({looked}) has: {has}{hint}")


def add(folder: Path, onnx: bytes, card: Card, *, replace: bool = False) -> Entry:
    """Write a model and its card, the card last; raises RegistryError where the name is taken, or the digest another's.

    A reader meanwhile finds the old model, the new one, or (between the two files) one that its card refuses.
    """
    digest = hashlib.sha256(onnx).hexdigest()
    if digest != card.sha256:
        raise RegistryError(f"the card of {card.name} is of another file: {card.sha256}, not {digest}")
    check_name(card.name)
    with _locked(folder):
        model, described = folder / f"{card.name}{MODEL_SUFFIX}", folder / f"{card.name}{CARD_SUFFIX}"
        if not replace:
            check_free(folder, card.name, digest, card.told)
        _write(model, onnx)
        _write(folder / f"{card.name}{TEXT_SUFFIX}", card_markdown(card).encode())
        _write(described, card_yaml(card).encode())
    return Entry(card.name, model, card)


def _same(folder: Path, name: str, digest: str, told: Told) -> bool:
    """Whether this very model lies there, without a card yet or with one in which people say the same."""
    model, described = folder / f"{name}{MODEL_SUFFIX}", folder / f"{name}{CARD_SUFFIX}"
    try:
        if sha256(model) != digest:
            return False
    except OSError:  # not there, no file, or not ours to read
        return False
    there = _entry(folder, name)
    return not described.exists() or (there.card is not None and there.card.told == told)


def remove(folder: Path, name: str) -> list[Path]:
    """Delete a model with its card, whatever state they are in; returns what was deleted. Raises RegistryError."""
    if not is_name(name):
        raise RegistryError(f"{name!r} is no name of a model")
    # The card first: a model without one cannot be used by its name.
    paths = [folder / f"{name}{suffix}" for suffix in (CARD_SUFFIX, TEXT_SUFFIX, MODEL_SUFFIX)]
    with _locked(folder):
        there = [path for path in paths if path.is_file()]
        # A file without a card is none of ours to delete.
        if not paths[0].is_file():
            raise RegistryError(f"{folder} has no model {name!r} with a card")
        for path in there:
            path.unlink()
    return there


def sha256(path: Path) -> str:
    """Digest of a file's content; raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _entry(folder: Path, name: str) -> Entry:
    path, described = folder / f"{name}{MODEL_SUFFIX}", folder / f"{name}{CARD_SUFFIX}"
    if not described.is_file():
        return Entry(name, path, None, f"{path} has no card; give its path, or enter it with `sparsecam models add`")
    try:
        card = read_card(described)
        digest = sha256(path)
    except CardError as error:
        return Entry(name, path, None, str(error))
    except OSError as error:
        return Entry(name, path, None, f"{path} cannot be read ({error.strerror}), but its card is there")
    if card.name != name:
        return Entry(name, path, card, f"{described} is the card of {card.name!r}")
    if digest != card.sha256:
        return Entry(
            name,
            path,
            card,
            f"{path} has changed since its card was written (SHA-256 {digest[:12]}..., the card says "
            f"{card.sha256[:12]}...); bring the file back, or enter the new one with `sparsecam models add --replace`",
        )
    return Entry(name, path, card)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer a folder, as when a person adds a model while a training ends; the kernel ends the lock with us."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise RegistryError(f"{folder}: no folder for models: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    except OSError as error:
        raise RegistryError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        os.close(descriptor)


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".model-", delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).chmod(0o644)  # workers may be another user
            Path(file.name).replace(path)
        except OSError:
            Path(file.name).unlink(missing_ok=True)
            raise
