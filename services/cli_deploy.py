"""The options of `sparsecam models deploy`, `deployed` and `rollback`; the work is in services/commands/deploy.py."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated

import typer

from services.cli_options import ConfigOption, JsonOption, load_config

InWords = Callable[[], AbstractContextManager[None]]

WaitOption = Annotated[
    bool, typer.Option(help="Follow it to its end; --no-wait returns at once, the workers go on by themselves.")
]


def register(models: typer.Typer, in_words: InWords) -> None:
    """Add the commands to the group; `in_words` turns errors into words and exit codes."""

    @models.command("deploy")
    def deploy(
        model: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A model of the registry, or a model file.")],
        *,
        config: ConfigOption = None,
        canary_s: Annotated[
            float,
            typer.Option(
                "--canary-s", min=0, max=86_400, help="How long one worker tries it first (seconds); 0: no trial."
            ),
        ] = 30.0,
        max_latency_ratio: Annotated[
            float,
            typer.Option(
                "--max-latency-ratio",
                min=0.01,
                max=1000,
                help="Roll back when a frame takes more than so many times as long as with the current model.",
            ),
        ] = 1.5,
        force: Annotated[
            bool,
            typer.Option("--force", help="Also when it is slower, or rules name classes it lacks. Errors still count."),
        ] = False,
        wait: WaitOption = True,
        as_json: JsonOption = False,
    ) -> None:
        """Give the running detector workers another model, without losing a frame.

        One worker is the canary: it loads the model while it goes on detecting, takes it up between two frames and is
        compared with the others. On trouble it goes back by itself; otherwise all change, one by one. Workers that
        start later begin with it, in the place of detector.model. The file must lie at the same path on every host.
        Exit code 1: rolled back, with the reason; 78: refused before any worker heard of it.
        """
        with in_words():
            from services.commands import deploy as command

            loaded, path = load_config(config)
            wish = command.Wish(canary_s=canary_s, max_latency_ratio=max_latency_ratio, force=force)
            raise typer.Exit(command.deploy(loaded, path, model, wish, wait=wait, as_json=as_json))

    @models.command("deployed")
    def deployed(*, config: ConfigOption = None, as_json: JsonOption = False) -> None:
        """Show which model is deployed, how far a deployment is, and what each worker runs."""
        with in_words():
            from services.commands import deploy as command

            raise typer.Exit(command.deployed(load_config(config)[0], as_json=as_json))

    @models.command("rollback")
    def rollback(*, config: ConfigOption = None, wait: WaitOption = True, as_json: JsonOption = False) -> None:
        """End a deployment that is under way, or else give the workers the model before back, one by one."""
        with in_words():
            from services.commands import deploy as command

            raise typer.Exit(command.rollback(load_config(config)[0], wait=wait, as_json=as_json))
