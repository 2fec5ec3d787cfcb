"""The options of `sparsecam deadletters`; what it does is in services/commands/deadletters.py."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated, Optional

import typer

from services.cli_options import ConfigOption, JsonOption, load_config

InWords = Callable[[], AbstractContextManager[None]]

OutputArgument = Annotated[str, typer.Argument(metavar="OUTPUT", help="Name of the output in the config.")]
IdsArgument = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(metavar="[ID]...", help="Which ones, as `deadletters list` shows them."),
]


def register(app: typer.Typer, in_words: InWords) -> None:
    """Add the commands; `in_words` turns errors into words and exit codes."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Alerts that an output gave up: refused by the receiver, tried too often, or too old.",
    )
    app.add_typer(group, name="deadletters")

    @group.command("list")
    def list_(
        *,
        output: Annotated[
            Optional[str],  # noqa: UP045
            typer.Argument(metavar="[OUTPUT]", help="Name of an output in the config; default: all."),
        ] = None,
        config: ConfigOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Print them, the oldest first, each with the reason."""
        with in_words():
            from services.commands import deadletters as command

            raise typer.Exit(command.list_(load_config(config)[0], output, as_json=as_json))

    @group.command("replay")
    def replay(*, output: OutputArgument, ids: IdsArgument = None, config: ConfigOption = None) -> None:
        """Deliver them now from here, by the config as it is now; all of them when no ID is given.

        Each is removed when the receiver has taken it. Exit code 1 when one was not taken.
        """
        with in_words():
            from services.commands import deadletters as command

            raise typer.Exit(command.replay(load_config(config)[0], output, ids or []))

    @group.command("drop")
    def drop(
        *,
        output: OutputArgument,
        ids: IdsArgument = None,
        everything: Annotated[bool, typer.Option("--all", help="Drop all of them.")] = False,
        config: ConfigOption = None,
    ) -> None:
        """Delete them without delivery."""
        with in_words():
            from services.commands import deadletters as command

            raise typer.Exit(command.drop(load_config(config)[0], output, ids or [], everything=everything))
