"""`sparsecam train`: a training with progress on a terminal, lines in a log, and an end on SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from services.model_names import model_file
from services.training import MissingExtra, network_postprocess

try:
    import torch

    from trainer.errors import OutOfMemory, TrainerError
    from trainer.settings import CHANGEABLE, option, parse_settings
    from trainer.start import prepare_new, prepare_resumed
    from trainer.train import Job, Outcome
    from trainer.train import train as run_training
except ImportError as error:
    raise MissingExtra(error) from error

EXIT_FAILED, EXIT_STOPPED = 1, 143  # 143: what a shell tells of SIGTERM
_SMALLEST_BATCH = 1


_STOPPED = "stopped; --resume goes on after the last finished epoch"
_STOP_S = 4.0  # SIGTERM promises five


class _Stopped(Exception):
    """SIGTERM came."""


class Shown:
    """The progress: a bar where there is a terminal, and a line an epoch."""

    def __init__(self) -> None:
        # Under torchrun the first process speaks for all.
        self._console = Console(stderr=True, quiet=os.environ.get("RANK", "0") != "0")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._task: TaskID | None = None
        self.stop = threading.Event()

    def __enter__(self) -> Shown:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def epoch_started(self, epoch: int, epochs: int, batches: int) -> None:
        """A new bar."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._epochs = epochs
        self._label = f"epoch {epoch}/{epochs - 1}"
        self._task = self._bar.add_task(self._label, total=batches)

    def go_on(self) -> None:
        """Raises where SIGTERM came."""
        if self.stop.is_set():
            raise _Stopped

    def batch_done(self, losses: torch.Tensor) -> None:
        """The bar moves."""
        if self._console.is_terminal and self._task is not None:
            box, obj, cls = losses.tolist()
            self._bar.update(
                self._task, advance=1, description=f"{self._label} box {box:.4f} obj {obj:.4f} cls {cls:.4f}"
            )

    def epoch_ended(self, row: dict[str, float]) -> None:
        """A line that stays."""
        losses = " ".join(f"{part} {row[f'train/{part}_loss']:.4f}" for part in ("box", "obj", "cls"))
        scores = ""
        if "metrics/mAP_0.5" in row:
            scores = (
                f"  P {row['metrics/precision']:.3f} R {row['metrics/recall']:.3f} "
                f"mAP@0.5 {row['metrics/mAP_0.5']:.4f} @0.5:0.95 {row['metrics/mAP_0.5:0.95']:.4f}"
            )
        zeros = (
            f"  zeros {row['train/sparsity']:.1%}" if row["train/sparsity"] > 0.001 else ""
        )  # chance alone makes none
        self.say(f"epoch {row['epoch']:.0f}/{self._epochs - 1}  {losses}{scores}{zeros}  {row['time_s']:.0f} s")

    def say(self, text: str) -> None:
        """A line."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def train(asked: dict[str, Any], *, given: Collection[str], resume: Path | None) -> int:
    """Train as asked, or go on with the run `resume`; `given`: those of `asked` that a person has. The exit code."""
    with Shown() as shown, _stoppable(shown.stop):
        try:
            job = _prepare(asked, given, resume, shown)
            outcome = _train(job, shown)
        except _Stopped:
            shown.say(_STOPPED)
            return EXIT_STOPPED
        except TrainerError as error:
            shown.say(f"sparsecam: {error}")
            return EXIT_FAILED
        except RuntimeError:
            # A SIGTERM for the whole group ends the loader's workers as well, which it takes for their fault.
            if not shown.stop.is_set():
                raise
            shown.say(_STOPPED)
            return EXIT_STOPPED
    best = f"best epoch {outcome.best_epoch}: {outcome.best}" if outcome.best_epoch >= 0 else "no epoch was complete"
    sys.stdout.write(f"{best}\n")
    return 0


def _prepare(asked: dict[str, Any], given: Collection[str], resume: Path | None, shown: Shown) -> Job:
    if resume is not None:
        if others := [name for name in given if name not in CHANGEABLE]:
            raise TrainerError(
                f"{', '.join(map(option, others))}: no effect beside --resume, which goes on as {resume} began; "
                f"leave it out, or begin anew with --weights. Beside --resume go {', '.join(map(option, CHANGEABLE))}"
            )
        return prepare_resumed(resume, shown.say, {name: asked[name] for name in given})
    if asked["data"] is None:
        raise TrainerError("--data is missing; expected the data.yaml of a data set, such as --data pistols/data.yaml")
    try:
        recipe_args = json.loads(asked["recipe_args"] or "{}")
    except ValueError as error:
        raise TrainerError(f'--recipe-args is no JSON: {error}; expected such as {{"num_epochs": 20}}') from error
    for key in ("weights", "teacher"):
        if asked[key] is not None:
            asked = {**asked, key: model_file(asked[key])}
    return prepare_new(parse_settings({**asked, "recipe_args": recipe_args}), shown.say)


def _train(job: Job, shown: Shown) -> Outcome:
    """With --auto-batch, again from the last epoch with half the batch for as long as memory is short."""
    names = len(job.names)
    while True:
        try:
            return run_training(job, network_postprocess(names), shown)
        except OutOfMemory:
            batch = job.run.progress.batch_size // 2
            if not job.settings.auto_batch or batch < _SMALLEST_BATCH or not job.folder.last.is_file():
                raise
        folder = job.folder.path
        # Until an epoch has ended, the run's own file knows nothing of what was changed.
        changed = {name: getattr(job.settings, name) for name in CHANGEABLE} | {"batch_size": batch}
        del job  # its memory is what is wanted
        shown.say(f"out of memory: going on with batches of {batch}")
        job = prepare_resumed(folder, shown.say, changed)


@contextmanager
def _stoppable(stop: threading.Event) -> Iterator[None]:
    """SIGTERM sets `stop`, and where nobody looks in time ends the process: what counts is written whole by epoch."""

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if os.getpid() != trainer:
            os._exit(EXIT_STOPPED)  # a loader's worker, forked with this handler
        stop.set()
        hurry = threading.Timer(_STOP_S, os._exit, [EXIT_STOPPED])
        hurry.daemon = True
        hurry.start()

    trainer = os.getpid()
    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
