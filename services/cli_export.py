"""The options of `sparsecam export`; the work is in services/commands/export.py."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Optional

import typer

InWords = Callable[[], AbstractContextManager[None]]

# Optional[...] and not `| None` since click's older converters know only that.
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a script instead of tables for a person.")]
SizeOption = Annotated[
    Optional[tuple[int, int]],  # noqa: UP045
    typer.Option("--img", "--imgsz", metavar="HEIGHT WIDTH", help="Input size (pixels). Default: the model's own."),
]


def register(app: typer.Typer, in_words: InWords) -> None:
    """Add the commands; `in_words` turns errors into words and exit codes."""

    @app.command("export")
    def export(
        *,
        checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Weights of a training (.pt).")],
        out: Annotated[
            Optional[Path],  # noqa: UP045
            typer.Option("--out", "-o", help="The ONNX file. Default: beside the checkpoint, under its name."),
        ] = None,
        img: SizeOption = None,
        batch: Annotated[int, typer.Option("--batch", "-b", min=1, max=256, help="Pictures in one run.")] = 1,
        dynamic: Annotated[
            bool, typer.Option("--dynamic", help="Leave batch, height and width open; --img is then the full size.")
        ] = False,
        compress: Annotated[bool, typer.Option("--compress", help="Write the file compressed as well (.gz).")] = False,
        licence: Annotated[
            str, typer.Option("--licence", help="Of the weights, such as AGPL-3.0. Default: the checkpoint's own.")
        ] = "",
        engine: Annotated[
            str, typer.Option("--engine", "-e", help="Measure on this engine, or all that are installed, or none.")
        ] = "all",
        as_json: JsonOption = False,
    ) -> None:
        """Write a trained network as the ONNX file that workers load; prints sparsity, size, speed against dense.

        The file takes bytes and runs at any size that is a multiple of 32, on every engine. It says its class names,
        size, anchors, data set, recipe and scores. Nothing is written that does not say what the network says.
        """
        with in_words():
            from services.commands import export as command

            job = command.Job(checkpoint, out, img, batch, dynamic, compress, licence, engine)
            raise typer.Exit(command.export(job, as_json=as_json))
