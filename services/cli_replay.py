"""The options of `sparsecam record` and `sparsecam replay`; the work is in services/commands/."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Optional

import typer

from services.cli_options import ConfigOption, JsonOption, load_config

InWords = Callable[[], AbstractContextManager[None]]


def register(app: typer.Typer, in_words: InWords) -> None:
    """Add the commands; `in_words` turns errors into words and exit codes."""

    @app.command()
    def record(
        *,
        output: Annotated[
            Path, typer.Argument(metavar="OUT", help="A .msgpack file (small) or a .jsonl file (JSON lines).")
        ],
        config: ConfigOption = None,
        camera: Annotated[
            Optional[list[str]],  # noqa: UP045
            typer.Option("--camera", help="Record this camera; may be repeated. Default: all of the config."),
        ] = None,
        stored: Annotated[
            bool, typer.Option("--stored", help="Begin with the frames that Redis still holds, not with the next one.")
        ] = False,
        follow: Annotated[bool, typer.Option(help="Go on with new frames; --no-follow ends after the stored.")] = True,
        seconds: Annotated[
            Optional[float],  # noqa: UP045
            typer.Option("--seconds", min=0.1, help="End after this long. Default: Ctrl-C."),
        ] = None,
        max_mb: Annotated[float, typer.Option("--max-mb", min=0.001, help="End at this size (megabytes).")] = 1000.0,
        force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
        as_json: JsonOption = False,
    ) -> None:
        """Save the detections of cameras, to try other rules on them: `sparsecam replay` needs no model for it."""
        with in_words():
            from services.commands import record as command

            loaded, _ = load_config(config)
            job = command.Job(
                output=output,
                cameras=camera or [],
                stored=stored or not follow,
                follow=follow,
                seconds=seconds,
                max_bytes=round(max_mb * 1e6),
                replace=force,
            )
            raise typer.Exit(command.record(loaded, job, as_json=as_json))
