"""The options of `sparsecam data`; the work is in services/commands/data.py."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Optional

import typer

InWords = Callable[[], AbstractContextManager[None]]
DataArgument = Annotated[Path, typer.Argument(metavar="DATA", help="A data.yaml in YOLO's format, or its folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer, in_words: InWords) -> None:
    """Add the commands; `in_words` turns errors into words and exit codes."""
    data = typer.Typer(no_args_is_help=True, help="Look over data sets for training, or draw one.")
    app.add_typer(data, name="data")

    @data.command("check")
    def check(config: DataArgument, *, as_json: JsonOption = False) -> None:
        """Everything that is wrong with a data set, at once, with file and line; exit code 1 when there are errors."""
        from services.commands import data as command

        with in_words():
            raise typer.Exit(command.check(config, as_json=as_json))

    @data.command("stats")
    def stats(config: DataArgument, *, as_json: JsonOption = False) -> None:
        """Pictures and objects by split and class, and how large they are."""
        from services.commands import data as command

        with in_words():
            command.stats(config, as_json=as_json)

    @data.command("simulate")
    def simulate(
        out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; new or empty.")],
        *,
        pictures: Annotated[int, typer.Option("--pictures", "-n", min=1, help="Pictures for training.")] = 3000,
        val: Annotated[
            Optional[int],  # noqa: UP045
            typer.Option("--val", min=1, help="Pictures for validation. Default: a tenth as many."),
        ] = None,
        seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed, other streets.")] = 0,
        size: Annotated[
            Optional[list[str]],  # noqa: UP045
            typer.Option("--size", metavar="WxH", help="Size of the cameras; repeat for several. Default: 1280x720."),
        ] = None,
        fit: Annotated[
            Optional[int],  # noqa: UP045
            typer.Option(
                "--fit",
                min=64,
                max=4096,
                help="Longer side of the pictures, fitted as the live path does for a model of this size. "
                "Default: the cameras'.",
            ),
        ] = None,
    ) -> None:
        """Draw a data set of the simulated street: what its camera sends, and the truth as labels."""
        from services.commands import data as command

        with in_words():
            command.simulate(out, pictures=pictures, val=val, seed=seed, sizes=size or ["1280x720"], fit=fit)
