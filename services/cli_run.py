"""The options of `sparsecam run`, which starts one process in the foreground; each is services/<role>.py."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import typer

from services.cli_options import (
    ConfigOption,
    FormatOption,
    IndexOption,
    Level,
    LevelOption,
    LogStyle,
    Role,
    load_config,
    log_options,
)

InWords = Callable[[], AbstractContextManager[None]]


def register(app: typer.Typer, in_words: InWords) -> None:
    """Add the commands; `in_words` turns errors into words and exit codes."""
    run = typer.Typer(
        no_args_is_help=True,
        help="Run one process in the foreground; containers and service managers start these. They may be started in "
        "any order and wait for each other.",
    )
    app.add_typer(run, name="run")

    def start(role: Role, config: Path | None, index: int | None, level: Level, style: LogStyle) -> None:
        with in_words():
            import importlib
            import os

            from services.config import FILE_VARIABLE
            from services.process import run_process

            loaded, found = load_config(config)
            if found is not None:  # the commands that a trainer starts are to read the same config
                os.environ[FILE_VARIABLE] = str(found.absolute())
            module = importlib.import_module(f"services.{role.value}")
            code = run_process(role.value, loaded, module.run, index=index, logs=log_options(level, style))
            raise typer.Exit(code)

    @run.command("broker")
    def broker(
        *,
        config: ConfigOption = None,
        index: IndexOption = None,
        log_level: LevelOption = Level.info,
        log_format: FormatOption = LogStyle.console,
    ) -> None:
        """Hand frames from ingest to free workers: newest first, cameras in fair turns."""
        start(Role.broker, config, index, log_level, log_format)

    @run.command("ingest")
    def ingest(
        *,
        config: ConfigOption = None,
        index: IndexOption = None,
        log_level: LevelOption = Level.info,
        log_format: FormatOption = LogStyle.console,
    ) -> None:
        """Read all cameras of the config and send their frames to the broker."""
        start(Role.ingest, config, index, log_level, log_format)

    @run.command("detector")
    def detector(
        *,
        config: ConfigOption = None,
        index: IndexOption = None,
        log_level: LevelOption = Level.info,
        log_format: FormatOption = LogStyle.console,
    ) -> None:
        """Run the model on one worker's own CPU cores. Start as many as there are cores to use."""
        start(Role.detector, config, index, log_level, log_format)

    @run.command("sink")
    def sink(
        *,
        config: ConfigOption = None,
        index: IndexOption = None,
        log_level: LevelOption = Level.info,
        log_format: FormatOption = LogStyle.console,
    ) -> None:
        """Turn detections into alerts by the rules of the config."""
        start(Role.sink, config, index, log_level, log_format)

    @run.command("trainer")
    def trainer(
        *,
        config: ConfigOption = None,
        index: IndexOption = None,
        log_level: LevelOption = Level.info,
        log_format: FormatOption = LogStyle.console,
    ) -> None:
        """Take training jobs (`sparsecam jobs`), one at a time, and publish their models. Not part of `sparsecam up`.

        Works at the lowest priority, so it may run beside the cameras. Killed, it takes its job up where it was.
        """
        start(Role.trainer, config, index, log_level, log_format)
