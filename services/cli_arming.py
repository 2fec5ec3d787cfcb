"""The options of `sparsecam arm`, `disarm` and `armed`; what they do is in services/commands/arming.py."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated, Optional

import typer

from services.cli_options import ConfigOption, JsonOption, load_config

InWords = Callable[[], AbstractContextManager[None]]

CameraOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--camera", metavar="NAME", help="Only on this camera; default: all."),
]
RuleOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--rule", metavar="NAME", help="Only this rule; default: all."),
]


def register(app: typer.Typer, in_words: InWords) -> None:
    """Add the commands; `in_words` turns errors into words and exit codes."""

    @app.command()
    def arm(*, camera: CameraOption = None, rule: RuleOption = None, config: ConfigOption = None) -> None:
        """Let rules raise alerts again that were disarmed. Their `armed` setting and schedule still hold."""
        with in_words():
            from services.commands import arming as command

            raise typer.Exit(command.switch(load_config(config)[0], camera, rule, on=True))

    @app.command()
    def disarm(*, camera: CameraOption = None, rule: RuleOption = None, config: ConfigOption = None) -> None:
        """Keep rules from raising alerts until they are armed again; alerts about the cameras themselves still come.

        It holds over restarts. Rules that are added to the config later are armed.
        """
        with in_words():
            from services.commands import arming as command

            raise typer.Exit(command.switch(load_config(config)[0], camera, rule, on=False))

    @app.command()
    def armed(*, config: ConfigOption = None, as_json: JsonOption = False) -> None:
        """Show which rules are disarmed on which cameras, and since when."""
        with in_words():
            from services.commands import arming as command

            raise typer.Exit(command.armed(load_config(config)[0], as_json=as_json))
