"""A model's accuracy as its card has it: that of `sparsecam val`, on one engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from services.training import MissingExtra
from trainer.card import Score
from trainer.errors import DataError

# The pictures done of all pictures, after each.
Progress = Callable[[int, int], None]
# The model, the engine, the data.yaml, progress: its score.
Scorer = Callable[[Path, str, Path, Progress], Score]


def score(model: Path, engine: str, data: Path, progress: Progress) -> Score:
    """Detect on every picture of the data's `val`; raises DetectorError, DataError or MissingExtra."""
    try:
        from services.accuracy import Question, accuracy
        from trainer.data.config import read_data
    except ImportError as error:
        raise MissingExtra(error) from error
    config = read_data(data)
    done = 0

    def each() -> None:
        nonlocal done
        done += 1
        progress(done, len(config.val))

    answer = accuracy(model, engine, Question(config.val, config.names), each)
    if not answer.scores.objects:
        raise DataError(f"{data}: its `val` has {len(config.val)} pictures and no object; nothing can be scored on it")
    return Score(
        file=model.name,
        engine=answer.engine,
        map50=round(answer.scores.map50, 6),
        map50_95=round(answer.scores.map50_95, 6),
        pictures=answer.scores.pictures,
        objects=answer.scores.objects,
    )
