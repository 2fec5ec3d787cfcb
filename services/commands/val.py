"""`sparsecam val MODEL... --data DATA`: one table of accuracy, a line for each model and engine."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from detector import engines
from detector.cores import topology
from detector.errors import DetectorError
from detector.model import read_model
from services.commands.tables import UNLIMITED
from services.training import MissingExtra

try:
    from services.accuracy import Answer, Question, accuracy
    from trainer.data.config import DataConfig, read_data
    from trainer.errors import TrainerError
except ImportError as error:
    raise MissingExtra(error) from error


@dataclass(frozen=True)
class Job:
    """What is wanted."""

    models: Sequence[Path]
    data: Path
    task: str  # train, val or test
    engines: Sequence[str]  # names, or `all`; none: all
    image_size: tuple[int, int] | None
    batch_size: int
    square: bool
    aspect: str
    num_cores: int | None  # None: all
    verbose: bool


def val(job: Job, *, as_json: bool) -> int:
    """Score and print; 0 when all were scored, 1 when a model or the data could not be used."""
    console = Console(stderr=True)
    answers: list[Answer] = []
    refused: list[dict[str, str]] = []
    try:
        config = read_data(job.data)
        question = _question(job, config)
        turns = [(model, engine) for model in job.models for engine in _engines(model, job.engines)]
    except (TrainerError, DetectorError) as error:
        console.print(f"not scored: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        for model, engine in turns:
            task = bar.add_task(f"{model.name} on {engine}", total=len(question.pictures))
            try:
                answers.append(accuracy(model, engine, question, partial(bar.advance, task)))
            except (TrainerError, DetectorError) as error:
                refused.append({"model": model.name, "engine": engine, "refused": str(error)})
            bar.remove_task(task)
    if answers and not answers[0].scores.objects:
        said = (
            f"{config.path}: no object in the {len(question.pictures)} pictures of {job.task}: nothing to be scored by"
        )
        console.print(said, markup=False, soft_wrap=True)
    if as_json:
        told = {"data": str(job.data), "task": job.task, "scores": [_plain(it) for it in answers], "refused": refused}
        typer.echo(json.dumps(told, indent=2))
    else:
        # Without a terminal: as wide as the names are long.
        width = None if sys.stdout.isatty() else UNLIMITED
        _show(Console(width=width, highlight=False, markup=False), answers, refused, verbose=job.verbose)
    return 1 if refused else 0


def _question(job: Job, config: DataConfig) -> Question:
    pictures = config.split(job.task)
    if job.task == "test" and config.without_test:
        raise TrainerError(f"{config.path}: {config.without_test}")
    if not pictures:
        raise TrainerError(f"{config.path}: no pictures under {job.task}; expected at least one")
    aspect = None
    if job.aspect:
        width, _, height = job.aspect.partition(":")
        if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
            raise TrainerError(f"--aspect {job.aspect}: expected WIDTH:HEIGHT, such as 16:9")
        aspect = int(width) / int(height)
    return Question(
        pictures,
        config.names,
        image_size=job.image_size,
        rectangular=not job.square,
        batch=job.batch_size,
        num_cores=job.num_cores or topology().usable,
        aspect=aspect,
    )


def _engines(path: Path, wanted: Sequence[str]) -> list[str]:
    """Engines for one file; a checkpoint has but one. Raises DetectorError."""
    model = read_model(path)
    if model.format == "checkpoint":
        wanted = ["torch"]
    return engines.asked_for(wanted, model.format, model.name)


def _plain(answer: Answer) -> dict[str, Any]:
    scores = answer.scores
    shares = {name: getattr(scores, name) for name in ("map50", "map50_95", "precision", "recall")}
    return {
        "model": answer.model,
        "engine": answer.engine,
        # NaN where there is no object, for which JSON has no number.
        **{name: None if math.isnan(share) else share for name, share in shares.items()},
        "f1_conf": scores.f1_conf,
        "pictures": scores.pictures,
        "objects": scores.objects,
        "engine_ms": answer.engine_ms,
        "shapes": answer.shapes,
        "notes": answer.notes,
        "per_class": [asdict(it) for it in scores.per_class],
    }


def _show(console: Console, answers: Sequence[Answer], refused: Sequence[dict[str, str]], *, verbose: bool) -> None:
    if answers:
        console.print(_table(answers))
    for answer in answers:
        for note in answer.notes:
            console.print(f"{answer.model} on {answer.engine}: {note}")
        if verbose:
            console.print(_classes(answer))
    for it in refused:
        console.print(f"{it['model']} on {it['engine']}: {it['refused']}")


def _table(answers: Sequence[Answer]) -> Table:
    """The last column is what a model has more than the first one."""
    table = Table("model", "engine")
    for column in ("pictures", "objects", "P", "R", "mAP@0.5", "@0.5:0.95", "gap @0.5", "engine ms"):
        table.add_column(column, justify="right")
    first = answers[0].scores.map50
    for answer in answers:
        scores = answer.scores
        shares = (scores.precision, scores.recall, scores.map50, scores.map50_95)
        table.add_row(
            answer.model,
            answer.engine,
            str(scores.pictures),
            str(scores.objects),
            *(f"{share:.4f}" for share in shares),
            f"{scores.map50 - first:+.4f}" if answer is not answers[0] else "",
            f"{answer.engine_ms:.2f}",
        )
    return table


def _classes(answer: Answer) -> Table:
    table = Table("class", title=f"{answer.model} on {answer.engine}", title_justify="left")
    for column in ("pictures", "objects", "P", "R", "mAP@0.5", "@0.5:0.95"):
        table.add_column(column, justify="right")
    for it in answer.scores.per_class:
        shares = (it.precision, it.recall, it.map50, it.map50_95)
        table.add_row(it.name, str(it.pictures), str(it.objects), *(f"{share:.4f}" for share in shares))
    return table
