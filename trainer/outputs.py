"""What a training writes down for people beside its weights: curves, pictures of batches, loggers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from trainer.data.pictures import Pictures
from trainer.folder import RunFolder
from trainer.metrics import Scores
from trainer.settings import TrainSettings

_BATCHES = 3  # pictures of the first ones, as YOLOv5's users expect


class Outputs:
    """One run's; does nothing where not `active` (the other processes of several)."""

    def __init__(self, folder: RunFolder, settings: TrainSettings, names: tuple[str, ...], *, active: bool) -> None:
        self._folder, self._names, self._active = folder, names, active
        self._seen = 0

    def data(self, pictures: Pictures) -> None:
        """Before the first epoch: how the labels lie."""

    def seen(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The same batches; pictures of the first ones are kept."""
        yield from batches

    def epoch(self, row: dict[str, float]) -> None:
        """After each epoch."""

    def finished(self, scores: Scores | None) -> None:
        """After the last."""
