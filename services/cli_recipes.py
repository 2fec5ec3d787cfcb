"""The options of `sparsecam recipes`; the work is in services/commands/recipes.py."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated

import typer

InWords = Callable[[], AbstractContextManager[None]]

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A name of `recipes list`, or a file.")]
ArgsOption = Annotated[
    str, typer.Option("--recipe-args", metavar="JSON", help='Values in place of the recipe\'s: {"num_epochs": 20}')
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def register(app: typer.Typer, in_words: InWords) -> None:
    """Add the commands; `in_words` turns errors into words and exit codes."""
    recipes = typer.Typer(no_args_is_help=True, help="Recipes of pruning and quantisation: which, what, and whether.")
    app.add_typer(recipes, name="recipes")

    @recipes.command("list")
    def list_(*, as_json: JsonOption = False) -> None:
        """The recipes that come with Sparsecam, and when to use each."""
        from services.commands import recipes as command

        with in_words():
            raise typer.Exit(command.show_all(as_json=as_json))

    @recipes.command("show")
    def show(recipe: RecipeArgument, *, recipe_args: ArgsOption = "{}", as_json: JsonOption = False) -> None:
        """A recipe's text, its parameters, and every modifier with its values worked out."""
        from services.commands import recipes as command

        with in_words():
            raise typer.Exit(command.show(recipe, recipe_args, as_json=as_json))

    @recipes.command("lint")
    def lint(
        recipe: RecipeArgument,
        *,
        cfg: Annotated[str, typer.Option("--cfg", help="The network it is for, such as yolov5n.")] = "yolov5n",
        recipe_args: ArgsOption = "{}",
        as_json: JsonOption = False,
    ) -> None:
        """Check a recipe against a network before epoch 0. Exit code 1 when training with it would fail."""
        from services.commands import recipes as command

        with in_words():
            raise typer.Exit(command.lint(recipe, cfg, recipe_args, as_json=as_json))
