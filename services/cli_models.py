"""The group `sparsecam models` and `models prepare`, whose work is in services/commands/models.py."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Optional

import typer

from services import cli_deploy, cli_registry

InWords = Callable[[], AbstractContextManager[None]]


def register(app: typer.Typer, in_words: InWords) -> None:
    """Add the commands; `in_words` turns errors into words and exit codes."""
    models = typer.Typer(no_args_is_help=True, help="Look after model files.")
    app.add_typer(models, name="models")

    @models.callback()
    def _group() -> None:
        """Look after model files."""

    cli_registry.register(models, in_words)

    @models.command("prepare")
    def prepare(
        source: Annotated[Path, typer.Argument(metavar="IN", help="Any exported YOLO as ONNX, or a model's name.")],
        target: Annotated[Path, typer.Argument(metavar="OUT", help="Where to write the prepared model.")],
        *,
        engine: Annotated[
            str, typer.Option("--engine", "-e", help="Prepare for this engine; auto: the fastest of those installed.")
        ] = "auto",
        batch: Annotated[int, typer.Option("--batch", "-b", min=1, max=256, help="Pictures in one run.")] = 1,
        image_shape: Annotated[
            Optional[tuple[int, int]],  # noqa: UP045
            typer.Option("--image-shape", metavar="HEIGHT WIDTH", help="Fix the input size. Default: as it was."),
        ] = None,
        images: Annotated[
            Optional[Path],  # noqa: UP045
            typer.Option("--images", help="Folder of pictures to compare on. Default: generated ones."),
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    ) -> None:
        """Rewrite a model into the form an engine runs fastest, with the same output; prints before and after.

        A step that would change the output is left out, and named with the largest difference and its node.
        """
        from services.commands import models as command
        from services.model_names import model_file

        with in_words():
            code = command.prepare(
                model_file(source),
                target,
                engine=engine,
                batch=batch,
                image_shape=image_shape,
                as_json=as_json,
                images=images,
            )
            raise typer.Exit(code)

    cli_deploy.register(models, in_words)
