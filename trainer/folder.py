"""The folder of one run: `PROJECT/NAME`, with the files that YOLOv5's users look for in it."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import yaml

from trainer import results
from trainer.errors import TrainerError
from trainer.hyp import Hyp
from trainer.saved import is_ours
from trainer.settings import TrainSettings

ENDING_S = 3.0  # a training that was killed may be writing to a slow disk still, and then goes
_TRIES = 10_000  # exp, exp2, exp3...
_HELD: dict[tuple[int, int], TextIO] = {}  # locks of runs, by device and inode: this process keeps them until it ends


@dataclass(frozen=True)
class RunFolder:
    """Where each file lies."""

    path: Path

    @property
    def weights(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "weights"

    @property
    def best(self) -> Path:
        """The best epoch, for use."""
        return self.weights / "best.pt"

    @property
    def last(self) -> Path:
        """The last finished epoch, for going on."""
        return self.weights / "last.pt"

    @property
    def results(self) -> Path:
        """A row an epoch."""
        return self.path / "results.csv"

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Around what writes this file of the run: raises TrainerError where that cannot be done."""
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            mend = "free some" if full else "mend that"
            goes_on = f"`sparsecam train --resume {self.path}`" if self.last.is_file() else "begin again"
            raise TrainerError(f"cannot write {path}: {error.strerror or error}; {mend}, then {goes_on}") from error

    def hold(self) -> None:
        """Keep the run for this process until it ends, however it ends; raises TrainerError where another one has it.

        A lock of `fcntl` and not of `flock`: that one lives on in the loader's workers of a training that was killed.
        """
        path = self.path / ".lock"
        if path.exists() and _key(path) in _HELD:
            return  # to close it once more, after opening it, would let it go
        with self.writing(path):
            file = path.open("a+")
        try:
            _lock(file)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            number = file.read().strip()
            file.close()
            raise TrainerError(
                f"run {self.path} is being trained by {f'process {number}' if number else 'another process'}; wait "
                "for it or stop it"
            ) from None
        except OSError:
            pass  # a file system without locks: as good as there is
        _HELD[_key(path)] = file
        with suppress(OSError):  # a full disk: the lock holds without its words
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"{os.getpid()}\n".encode())
        for left in self.weights.glob("*.unfinished"):  # of a training that was killed while it wrote
            left.unlink(missing_ok=True)


def _lock(file: TextIO) -> None:
    """Raises BlockingIOError or PermissionError where another process keeps it for longer than its end may take."""
    until_s = time.monotonic() + ENDING_S
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except (BlockingIOError, PermissionError):
            if time.monotonic() > until_s:
                raise
        time.sleep(0.1)


def _key(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def new_folder(settings: TrainSettings) -> RunFolder:
    """Make and hold `project/name`, or where that is taken `name2`, `name3`…

    Raises TrainerError where another process trains in a folder that may exist, or `begin` would remove from it what
    it must not.
    """
    for number in range(1, _TRIES):
        path = settings.project / (settings.name if number == 1 else f"{settings.name}{number}")
        try:
            path.mkdir(parents=True, exist_ok=settings.exist_ok)
        except FileExistsError:
            continue
        except OSError as error:
            raise TrainerError(f"{path}: cannot be made: {error.strerror}") from error
        folder = RunFolder(path)
        folder.hold()
        for old in _left(folder):
            _check_removable(old, folder, settings)
        with folder.writing(folder.weights):
            folder.weights.mkdir(exist_ok=True)
        return folder
    raise TrainerError(f"{settings.project}: {_TRIES} runs named {settings.name} already; give another --name")


def begin(folder: RunFolder, settings: TrainSettings, hyp: Hyp) -> None:
    """When all else is ready: remove what an earlier run left, which --resume would go on with under the settings of
    the new one, and write opt.yaml and hyp.yaml."""
    for path in _left(folder):
        with folder.writing(path):
            path.unlink()
    for name, values in (("opt.yaml", settings), ("hyp.yaml", hyp)):
        path = folder.path / name
        with folder.writing(path):
            path.write_text(yaml.safe_dump(values.model_dump(mode="json"), sort_keys=False))


def _left(folder: RunFolder) -> list[Path]:
    return [path for path in (folder.last, folder.best, folder.results) if path.exists()]


def _check_removable(path: Path, folder: RunFolder, settings: TrainSettings) -> None:
    """Raises TrainerError for a file that the new run wants, or that no run of ours wrote."""
    for name, wanted in (("--weights", settings.weights), ("--teacher", settings.teacher)):
        if wanted is not None and wanted.exists() and wanted.samefile(path):
            raise TrainerError(
                f"{name} {wanted}: lies in the run's own folder, where --exist-ok writes over it; copy it elsewhere, "
                "or give another --name"
            )
    if not (results.is_ours(path) if path == folder.results else is_ours(path)):
        raise TrainerError(
            f"{path}: not written by a training of ours, and --exist-ok would write over it; move it away, or give "
            "another --name"
        )


def find_folder(path: Path) -> RunFolder:
    """The run to resume, by its folder or its weights/last.pt; raises TrainerError."""
    folder = RunFolder(path.parent.parent if path.suffix == ".pt" else path)
    if not folder.last.is_file():
        raise TrainerError(
            f"{path}: no {folder.last.name} of a run in it; expected the folder of a run, such as runs/train/exp, "
            "that finished an epoch"
        )
    return folder
