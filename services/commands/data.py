"""`sparsecam data check|stats|simulate`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.table import Table

from ingest.sim.scene_url import parse
from services.bench.progress import steps
from services.commands.tables import table_console
from services.street_set import Options
from services.street_set import simulate as draw
from trainer.data.check import Report
from trainer.data.check import check as check_data
from trainer.data.config import SPLITS, DataConfig, digest, read_data
from trainer.data.labels import label_path, read_labels

_SHOWN = 200  # problems on a terminal; --json has all


def check(path: Path, *, as_json: bool) -> int:
    """Print all problems and counts; 1 when there are errors, else 0."""
    config = read_data(path)
    with steps(sum(len(config.split(split)) for split in SPLITS)) as bar:
        report = check_data(config, lambda: bar.next("reading pictures and labels"))
    if as_json:
        typer.echo(json.dumps(_as_plain(report), indent=2))
    else:
        _print(report)
    return int(report.errors > 0)


def stats(path: Path, *, as_json: bool) -> None:
    """Print what the set holds; raises DataError at the first label that cannot be used."""
    config = read_data(path)
    facts = {split: _facts(config, split) for split in SPLITS if config.split(split)}
    if as_json:
        typer.echo(json.dumps({"digest": digest(config), "splits": facts}, indent=2))
        return
    typer.echo(f"digest {digest(config)}")
    for split, fact in facts.items():
        title = f"{split}: {fact['pictures']} pictures, {fact['backgrounds']} of them without an object"
        table = Table(title=title, title_justify="left")
        table.add_column("class")
        for heading in ("objects", "pictures", "median width", "median height"):
            table.add_column(heading, justify="right")
        for name, one in fact["classes"].items():
            table.add_row(
                name, str(one["objects"]), str(one["pictures"]), f"{one['width']:.1%}", f"{one['height']:.1%}"
            )
        table_console().print(table)


def simulate(out: Path, *, pictures: int, val: int | None, seed: int, sizes: list[str], fit: int | None) -> None:
    """Draw a data set of the simulated street into `out`."""
    # The scene's own reader says what sizes there are.
    specs = [parse(f"sim://street?size={size}") for size in sizes]
    held_out = max(1, round(pictures / 10)) if val is None else val
    options = Options(pictures, held_out, seed, tuple((spec.width, spec.height) for spec in specs), fit)
    with steps(pictures + held_out) as bar:
        path = draw(out, options, lambda: bar.next("drawing the street"))
    typer.echo(f"{path}: {pictures} pictures for training, {held_out} for validation", err=True)


def _as_plain(report: Report) -> dict[str, Any]:
    problems = [{**asdict(problem), "file": str(problem.file)} for problem in report.problems]
    counts = {split: asdict(count) for split, count in report.counts.items()}
    return {"errors": report.errors, "problems": problems, "counts": counts}


def _print(report: Report) -> None:
    # Errors first: of a long list the end is left out.
    for problem in sorted(report.problems, key=lambda problem: not problem.error)[:_SHOWN]:
        typer.echo(str(problem))
    if len(report.problems) > _SHOWN:
        typer.echo(f"and {len(report.problems) - _SHOWN} more; --json lists all")
    for split, count in report.counts.items():
        if count.pictures:
            objects = sum(count.objects.values())
            empty = f"{count.backgrounds} pictures without an object ({count.unlabelled} without a label file)"
            typer.echo(f"{split}: {count.pictures} pictures, {objects} objects, {empty}")
    warnings = len(report.problems) - report.errors
    typer.echo(f"{report.errors} errors, {warnings} warnings")


def _facts(config: DataConfig, split: str) -> dict[str, Any]:
    labels = [read_labels(label_path(picture), len(config.names)) for picture in config.split(split)]
    rows = np.concatenate(labels)
    classes: dict[str, Any] = {}
    for number, name in enumerate(config.names):
        of_class = rows[rows[:, 0] == number]
        width, height = (
            (round(float(side), 4) for side in np.median(of_class[:, 3:5], 0)) if len(of_class) else (0.0, 0.0)
        )
        classes[name] = {
            "objects": len(of_class),
            "pictures": sum(bool((one[:, 0] == number).any()) for one in labels),
            "width": width,  # medians, as shares of the picture
            "height": height,
        }
    backgrounds = sum(not len(one) for one in labels)
    return {"pictures": len(labels), "backgrounds": backgrounds, "objects": len(rows), "classes": classes}
