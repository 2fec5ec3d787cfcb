"""The options of `sparsecam record` and `sparsecam replay`; the work is in services/commands/."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Optional

import typer

from services.cli_options import MODEL_HELP, ConfigOption, Engine, JsonOption, load_config

# A fixed time, so that the same input gives the same alerts; a Monday at noon, when most schedules are armed.
DEFAULT_START = "2001-01-01T12:00:00Z"

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
        """Save the detections of cameras, to try other rules on them: `sparsecam replay` needs no model for it.

        Where none came no file is written, and the exit code is 1.
        """
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

    @app.command()
    def replay(
        *,
        inputs: Annotated[
            list[str],
            typer.Argument(
                metavar="[CAMERA=]VIDEO... | RECORDING",
                help="Video files or folders of images, or a recording of `sparsecam record`. CAMERA says whose rules "
                "and scene apply, where the config has several.",
                show_default=False,
            ),
        ],
        config: ConfigOption = None,
        model: Annotated[
            str, typer.Option("--model", "-m", help=f"Another model than the config's. {MODEL_HELP}")
        ] = "",
        engine: Annotated[
            Optional[Engine],  # noqa: UP045
            typer.Option("--engine", "-e", help="Another engine than the config's; torch for a checkpoint."),
        ] = None,
        num_cores: Annotated[
            Optional[int],  # noqa: UP045
            typer.Option("--num-cores", min=1, max=256, help="Physical cores to use. Default: cores_per_worker."),
        ] = None,
        start: Annotated[
            str,
            typer.Option("--start", metavar="TIME", help="When a video begins, for rules with a schedule (RFC 3339)."),
        ] = DEFAULT_START,
        timeline: Annotated[
            Optional[Path],  # noqa: UP045
            typer.Option("--timeline", metavar="PNG", help="Draw the incidents over time into this picture."),
        ] = None,
        as_json: JsonOption = False,
    ) -> None:
        """Print what the rules of a config would have told of a video or a recording. Nothing is sent anywhere.

        The same input gives the same alerts, byte for byte. With --json each alert is a line of its JSON.
        """
        with in_words():
            from services.commands import replay as command

            loaded, path = load_config(config)
            job = command.Job(
                inputs=inputs,
                config_file=path,
                model=model,
                engine=engine.value if engine else "",
                num_cores=num_cores,
                start=_time(start),
                timeline=timeline,
            )
            raise typer.Exit(command.replay(loaded, job, as_json=as_json))


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00"))  # Python 3.10 does not know the Z
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a time such as 2026-01-31T22:00:00+01:00", param_hint="--start"
        ) from None
