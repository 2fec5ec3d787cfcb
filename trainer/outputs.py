"""What a training writes down for people beside its weights: curves, pictures of batches, loggers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import Tensor

from trainer.data.dataset import ValBatch
from trainer.data.pictures import Pictures
from trainer.folder import RunFolder
from trainer.metrics import Found, Scores
from trainer.report.batches import draw_batch, truths_of
from trainer.report.confusion import plot_confusion
from trainer.report.loggers import Logger, open_loggers
from trainer.report.plots import plot_curves, plot_labels, plot_results
from trainer.settings import TrainSettings

_BATCHES = 3  # pictures of the first ones, as YOLOv5's users expect


class Outputs:
    """One run's; does nothing where not `active` (the other processes of several)."""

    def __init__(self, folder: RunFolder, settings: TrainSettings, names: tuple[str, ...], *, active: bool) -> None:
        """Raises TrainerError for a logger that is not known or not installed."""
        self._folder, self._names, self._active = folder, names, active
        self._drawn = self._shown = 0
        self._scores: Scores | None = None
        self._loggers: list[Logger] = []
        if active:
            self._loggers = open_loggers(settings.log, folder.path, settings.model_dump(mode="json"))

    def data(self, pictures: Pictures) -> None:
        """Before the first epoch: how the labels lie."""
        if self._active:
            rows = np.concatenate([np.zeros((0, 5), np.float32), *pictures.labels])
            with self._picture("labels.png") as path:
                plot_labels(rows, self._names, path)

    def seen(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The same training batches; pictures of the first ones are kept."""
        for pictures, targets in batches:
            if self._active and self._drawn < _BATCHES:
                height, width = pictures.shape[2:]
                marks = truths_of(targets.numpy(), len(pictures), height, width)
                with self._picture(f"train_batch{self._drawn}.jpg") as path:
                    draw_batch(pictures.numpy(), marks, self._names, path)
                self._drawn += 1
            yield pictures, targets

    def validated(self, batch: ValBatch, found: Sequence[Found]) -> None:
        """A validation batch, what was found in it in its own pixels; pictures of the first ones are kept, by epoch."""
        if not self._active or self._shown >= _BATCHES:
            return
        height, width = batch.pictures.shape[2:]
        pictures = batch.pictures.numpy()
        truths = truths_of(batch.targets.numpy(), len(pictures), height, width)
        for kind, marks in (("labels", truths), ("pred", found)):
            with self._picture(f"val_batch{self._shown}_{kind}.jpg") as path:
                draw_batch(pictures, marks, self._names, path)
        self._shown += 1

    def epoch(self, row: dict[str, float]) -> None:
        """After each epoch."""
        self._shown = 0  # the next one's predictions replace these
        for logger in self._loggers:
            logger.scalars(int(row["epoch"]), {key: value for key, value in row.items() if key != "epoch"})

    def scored(self, scores: Scores, *, best: bool) -> None:
        """After each validation: the best one's are drawn at the end."""
        if best or self._scores is None:
            self._scores = scores

    def finished(self) -> None:
        """After the last epoch."""
        if not self._active:
            return
        with self._picture("results.png") as path:
            plot_results(self._folder.results, path)
        pictures = [path]
        if self._scores is not None:
            with self._folder.writing(self._folder.path):
                pictures += plot_curves(self._scores, self._folder.path)
            with self._picture("confusion_matrix.png") as path:
                plot_confusion(self._scores.confusion, self._names, path)
            pictures.append(path)
        for logger in self._loggers:
            for picture in pictures:
                logger.picture(picture.stem, picture)
            logger.close()

    @contextmanager
    def _picture(self, name: str) -> Iterator[Path]:
        path = self._folder.path / name
        with self._folder.writing(path):
            yield path
