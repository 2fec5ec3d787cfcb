"""`train`: from settings to weights/best.pt, epoch by epoch, in a folder that the next call can go on in."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from trainer import results
from trainer.data.dataset import TrainSet, ValSet, train_loader
from trainer.device import Place
from trainer.errors import OutOfMemory
from trainer.folder import RunFolder
from trainer.outputs import Outputs
from trainer.run import Run, sparsity_of
from trainer.saved import write_saved
from trainer.settings import TrainSettings
from trainer.validate import Postprocess, Validated, validate

T = TypeVar("T")


class Watcher(Protocol):
    """Whoever shows a person how it goes."""

    def epoch_started(self, epoch: int, epochs: int, batches: int) -> None:
        """Epochs are counted from 0."""

    def go_on(self) -> None:
        """Called often; may raise to end the training, which then goes on from its last finished epoch."""

    def batch_done(self, losses: Tensor) -> None:
        """Mean of the parts of the loss so far (3,): box, objectness, class."""

    def epoch_ended(self, row: dict[str, float]) -> None:
        """With its line of results.csv."""

    def say(self, text: str) -> None:
        """Something a person should know, once."""


@dataclass(frozen=True)
class Job:
    """Everything one training needs, made by `start.prepare`."""

    settings: TrainSettings
    names: tuple[str, ...]
    run: Run
    train_set: TrainSet
    val_set: ValSet | None  # of the process that validates
    folder: RunFolder
    facts: dict[str, object]
    outputs: Outputs


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    best: Path
    best_epoch: int
    fitness: float
    epochs: int  # finished


def train(job: Job, postprocess: Postprocess, watch: Watcher) -> Outcome:
    """Go on from the job's epoch to its last; raises TrainerError, OutOfMemory where a smaller batch would help."""
    run, settings, place = job.run, job.settings, job.run.place
    epochs = run.schedule.epochs
    while run.progress.epoch < epochs:
        epoch, began_s = run.progress.epoch, time.monotonic()
        job.train_set.mosaic = run.hyp.mosaic if epoch < epochs - run.hyp.close_mosaic else 0.0
        loader = train_loader(
            job.train_set,
            run.progress.batch_size,
            seed=settings.seed,
            epoch=epoch,
            workers=settings.workers,
            rank=place.rank,
            world=place.world,
        )
        watch.epoch_started(epoch, epochs, run.schedule.batches)
        with _memory(run):
            losses = run.train_epoch(_checked(job.outputs.seen(loader), watch), watch.batch_done)
        last = run.progress.epoch == epochs
        judged = None
        if place.first:
            if job.val_set is not None and (last or run.progress.epoch % settings.val_every == 0):
                judged = validate(
                    run.ema.network,
                    _checked(job.val_set, watch),
                    job.names,
                    postprocess,
                    loss=run.loss,
                    device=place.device,
                    show=job.outputs.validated,
                )
            row = _row(run, epoch, losses, judged, time.monotonic() - began_s)
            _keep(job, row, judged, epoch)
            watch.epoch_ended(row)
        if _patience_is_over(run, settings, place):
            watch.say(f"no better epoch than {run.progress.best_epoch} in {settings.patience}: stopped")
            break
    if place.first:
        job.outputs.finished()
    return Outcome(job.folder.best, run.progress.best_epoch, run.progress.best_fitness, run.progress.epoch)


def _checked(batches: Iterable[T], watch: Watcher) -> Iterator[T]:
    for batch in batches:
        watch.go_on()
        yield batch


def _keep(job: Job, row: dict[str, float], judged: Validated | None, epoch: int) -> None:
    """Write the epoch down: results, best.pt where it is one, and last.pt at the end, which is what makes it count."""
    run, progress = job.run, job.run.progress
    folder = job.folder
    with folder.writing(folder.results):
        results.append(folder.results, row)
    facts = {**job.facts, "results": results.read(folder.results)}
    job.outputs.epoch(row)
    if judged is not None and _counts(run, epoch):
        fitness = judged.scores.fitness
        better = fitness > progress.best_fitness
        if better:
            progress.best_fitness, progress.best_epoch = fitness, epoch
            with folder.writing(folder.best):
                write_saved(folder.best, run.saved(facts, whole=False))
        job.outputs.scored(judged.scores, best=better)
    with folder.writing(folder.last):
        write_saved(folder.last, run.saved(facts, whole=True))


def _counts(run: Run, epoch: int) -> bool:
    """Whether an epoch may be the best one: with a recipe only those that are as sparse and quantised as its end."""
    return run.sparsifier is None or run.sparsifier.complete(epoch)


def _patience_is_over(run: Run, settings: TrainSettings, place: Place) -> bool:
    """The same answer in every process: the first one knows."""
    progress = run.progress
    over = bool(settings.patience) and progress.best_epoch >= 0 and run.sparsifier is None
    over = over and progress.epoch - 1 - progress.best_epoch >= settings.patience
    if place.world > 1:
        told = torch.tensor([int(over)], device=place.device)
        torch.distributed.broadcast(told, 0)
        over = bool(told.item())
    return over


def _row(run: Run, epoch: int, losses: Tensor, judged: Validated | None, time_s: float) -> dict[str, float]:
    row = {"epoch": float(epoch), "train/sparsity": sparsity_of(run.network), "time_s": time_s}
    row |= dict(zip(("train/box_loss", "train/obj_loss", "train/cls_loss"), losses.tolist(), strict=True))
    row |= dict(zip(("x/lr0", "x/lr1", "x/lr2"), run.rates(), strict=True))
    if judged is not None:
        scores = judged.scores
        row |= {"metrics/precision": scores.precision, "metrics/recall": scores.recall}
        row |= {"metrics/mAP_0.5": scores.map50, "metrics/mAP_0.5:0.95": scores.map50_95}
        row |= dict(zip(("val/box_loss", "val/obj_loss", "val/cls_loss"), judged.losses, strict=True))
    return row


@contextmanager
def _memory(run: Run) -> Iterator[None]:
    """Give "out of memory" in all its forms one name."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(_memory_words(run)) from error
    except RuntimeError as error:
        if "allocate memory" in str(error) or "bad_alloc" in str(error) or "out of memory" in str(error):
            raise OutOfMemory(_memory_words(run)) from error
        raise


def _memory_words(run: Run) -> str:
    batch, epoch = run.progress.batch_size, run.progress.epoch
    since = (
        ", when quantisation had started (it wants about twice the memory)"
        if (run.sparsifier is not None and run.sparsifier.quantised(epoch))
        else ""
    )
    smaller = f"--batch-size {max(batch // 2, 1)}"
    # Before its first epoch has ended there is nothing to go on with.
    mend = (
        f"Go on with `sparsecam train --resume RUN {smaller}`, or with --auto-batch beside it"
        if epoch
        else f"Begin again with {smaller}"
    )
    return f"out of memory in epoch {epoch} with batches of {batch}{since}. {mend}"
