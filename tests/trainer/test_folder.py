"""The folder of a run belongs to one training at a time, and holds nothing that another one left."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from trainer import results  # noqa: E402
from trainer.errors import TrainerError  # noqa: E402
from trainer.folder import RunFolder, begin, find_folder, new_folder  # noqa: E402
from trainer.hyp import Hyp  # noqa: E402
from trainer.saved import Progress, Saved, read_saved, write_saved  # noqa: E402
from trainer.settings import TrainSettings  # noqa: E402

_FORK = multiprocessing.get_context("fork")


def new(tmp_path: Path, **asked: Any) -> RunFolder:
    """`tmp_path/exp`, for a training."""
    settings = TrainSettings.model_validate({"data": tmp_path / "data.yaml", "project": tmp_path, **asked})
    folder = new_folder(settings)
    begin(folder, settings, Hyp())
    return folder


def saved(value: float, size: int = 100) -> Saved:
    """A checkpoint of numbers that are all the same."""
    return Saved({"a": torch.full((size,), value)}, {"b": torch.zeros(1)}, {"c": 1}, {}, Progress(epoch=1), {})


def _train(path: Path, told: Connection) -> None:
    new(path)
    worker = os.fork()  # as a loader's: it has all that is open here
    if worker:
        told.send(worker)
    signal.pause()


def test_a_run_is_one_process_s_until_it_dies_whatever_lives_on_of_it(tmp_path: Path) -> None:
    here, there = _FORK.Pipe()
    trainer = _FORK.Process(target=_train, args=(tmp_path, there))
    trainer.start()
    worker = here.recv()
    try:
        with pytest.raises(TrainerError, match=f"exp is being trained by process {trainer.pid}; wait for it or stop"):
            new(tmp_path, exist_ok=True)
        trainer.kill()
        trainer.join()
        os.kill(worker, 0)
        folder = new(tmp_path, exist_ok=True)
    finally:
        os.kill(worker, signal.SIGKILL)
    folder.hold()  # as --auto-batch does: its own is no other


def test_what_a_killed_training_left_half_written_goes_with_the_next_one(tmp_path: Path) -> None:
    folder = new(tmp_path)
    (folder.path / ".lock").unlink()
    left = folder.weights / "last.0123.unfinished"
    left.write_bytes(b"half")
    folder.hold()
    assert not left.exists()


def test_two_that_write_one_checkpoint_leave_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"

    def write(size: int) -> None:
        for _ in range(10):
            write_saved(path, saved(float(size), size))

    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(write, size) for size in (300_000, 600_000)]:
            done.result()
    found = read_saved(path).ema["a"]
    assert found.tolist() == [float(len(found))] * len(found)
    assert list(tmp_path.iterdir()) == [path]


@contextmanager
def small_files(most: int) -> Iterator[None]:
    """No file of this process can become larger (bytes), as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("most", [1000, 1_000_000])
def test_a_checkpoint_that_cannot_be_written_is_told_in_words_and_leaves_nothing(tmp_path: Path, most: int) -> None:
    folder = new(tmp_path)
    write_saved(folder.last, saved(1.0))
    with (
        small_files(most),
        pytest.raises(TrainerError, match=r"cannot write .*last\.pt: File too large; .*then .*train --resume .*exp`"),
        folder.writing(folder.last),
    ):
        write_saved(folder.last, saved(2.0, 600_000))
    assert list(folder.weights.iterdir()) == [folder.last]
    assert read_saved(folder.last).ema["a"][0] == 1


def test_a_run_that_cannot_begin_for_want_of_space_says_so(tmp_path: Path) -> None:
    with small_files(100), pytest.raises(TrainerError, match=r"cannot write .*opt\.yaml: .*, then begin again"):
        new(tmp_path)


def test_a_run_in_the_folder_of_another_one_has_nothing_of_it_to_go_on_with(tmp_path: Path) -> None:
    folder = new(tmp_path)
    for path in (folder.last, folder.best):
        write_saved(path, saved(1.0))
    results.append(folder.results, {"epoch": 0})
    (folder.weights / "epoch50.pt").write_bytes(b"a person's own")
    new(tmp_path, exist_ok=True)
    assert [path.name for path in folder.weights.iterdir()] == ["epoch50.pt"]
    assert not folder.results.exists()
    with pytest.raises(TrainerError, match="finished an epoch"):
        find_folder(folder.path)


@pytest.mark.parametrize("name", ["weights", "teacher"])
def test_weights_that_a_run_begins_with_are_not_removed_by_it(tmp_path: Path, name: str) -> None:
    folder = new(tmp_path)
    write_saved(folder.last, saved(1.0))
    write_saved(folder.best, saved(2.0))
    link = tmp_path / "link.pt"
    link.symlink_to(folder.best)
    for path in (folder.last, link):
        with pytest.raises(TrainerError, match=f"--{name} .*: lies in the run's own folder"):
            new(tmp_path, exist_ok=True, **{name: path})
    assert folder.last.exists()
    assert folder.best.exists()


def test_what_no_run_of_ours_wrote_is_not_removed(tmp_path: Path) -> None:
    folder = new(tmp_path)
    for path, write in (
        (folder.best, lambda path: torch.save({"model": {}}, path)),
        (folder.last, lambda path: path.write_bytes(b"no checkpoint")),
        (folder.results, lambda path: path.write_text("epoch, train/box_loss\n0, 1\n")),
        (folder.results, lambda path: path.write_bytes("größe\n1\n".encode("latin-1"))),
    ):
        write(path)
        with pytest.raises(TrainerError, match="not written by a training of ours"):
            new(tmp_path, exist_ok=True)
        path.unlink()
