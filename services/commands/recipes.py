"""`sparsecam recipes list|show|lint`: which recipes there are, what one does, and whether it fits a network."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from services.commands.tables import table_console
from services.training import MissingExtra
from trainer import recipes
from trainer.errors import RecipeError
from trainer.recipes import Recipe


def show_all(*, as_json: bool) -> int:
    """Print every recipe that comes with Sparsecam."""
    found = [recipes.load(name) for name in recipes.names()]
    if as_json:
        rows = [{"name": one.name, "summary": one.summary, "parameters": one.parameters} for one in found]
        typer.echo(json.dumps(rows, indent=2))
        return 0
    table = Table("recipe", "what it gives", "epochs", box=None)
    for one in found:
        table.add_row(one.name, one.summary, str(one.parameters.get("num_epochs", "")))
    table_console().print(table)
    return 0


def show(name: str, arguments: str, *, as_json: bool) -> int:
    """Print a recipe: its text, its parameters, its modifiers."""
    recipe = _load(name, arguments)
    if as_json:
        typer.echo(json.dumps(asdict(recipe), indent=2))
        return 0
    console = Console()
    console.print(Markdown(recipe.text))
    console.print()
    # Not through rich's markup: patterns have square brackets.
    typer.echo(recipes.to_yaml(recipe))
    return 0


def lint(name: str, cfg: str, arguments: str, *, as_json: bool) -> int:
    """Print what is wrong with a recipe for a network, and what it will do; 1 where training would fail."""
    recipe = _load(name, arguments)
    try:
        from trainer.lint import lint as check
        from trainer.model import SIZES, YoloV5
        from trainer.settings import parse_cfg
    except ImportError as error:
        raise MissingExtra(error) from error
    try:
        size, activation = parse_cfg(cfg)
    except ValueError as error:
        raise RecipeError(f"--cfg: {error}") from error
    # The number of classes shapes only the head's last convolutions, which no sensible recipe prunes: COCO's 80.
    report = check(recipe, YoloV5(SIZES[size], 80, activation=activation))
    if as_json:
        typer.echo(json.dumps({**asdict(report), "good": report.good}, indent=2))
        return 0 if report.good else 1
    for finding in report.findings:
        typer.echo(f"{finding.level}: {recipe.name}: {finding.where}: {finding.what}")
    typer.echo(f"{recipe.name} for {cfg}: {len(report.goals)} layers pruned, {100 * report.zeros:.1f} % zeros in all")
    return 0 if report.good else 1


def _load(name: str, arguments: str) -> Recipe:
    try:
        values: Any = json.loads(arguments or "{}")
    except ValueError as error:
        raise RecipeError(f'--recipe-args is no JSON: {error}; expected such as {{"num_epochs": 20}}') from error
    if not isinstance(values, dict):
        raise RecipeError(f'--recipe-args is {arguments}; expected an object such as {{"num_epochs": 20}}')
    return recipes.load(name, **values)
