"""The options of `sparsecam models list|show|add|remove`; the work is in services/commands/registry.py."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Optional

import typer

from services.cli_options import ConfigOption, JsonOption, load_config

InWords = Callable[[], AbstractContextManager[None]]


def register(models: typer.Typer, in_words: InWords) -> None:
    """Add the commands to the group `models`; `in_words` turns errors into words and exit codes."""

    @models.command("list")
    def list_models(*, config: ConfigOption = None, as_json: JsonOption = False) -> None:
        """The models that can be called by name: those of the config's registry, and those that come with Sparsecam.

        Exit code 1 when one of them cannot be used, as when its file has changed.
        """
        with in_words():
            from services.commands import registry as command

            loaded, _ = load_config(config)
            raise typer.Exit(command.list_models(loaded, as_json=as_json))

    @models.command("show")
    def show(
        name: Annotated[str, typer.Argument(metavar="NAME", help="One of `sparsecam models list`.")],
        *,
        config: ConfigOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Print a model's card: data, recipe, scores on each engine, sparsity, sizes, speed, licence."""
        with in_words():
            from services.commands import registry as command

            loaded, _ = load_config(config)
            raise typer.Exit(command.show(loaded, name, as_json=as_json))

    @models.command("add")
    def add(
        onnx: Annotated[Path, typer.Argument(metavar="ONNX", help="The exported model.")],
        *,
        card: Annotated[
            Path,
            typer.Option("--card", help="YAML with what only its trainer knows; docs/models.md has an example."),
        ],
        data: Annotated[Path, typer.Option("--data", help="data.yaml whose `val` the models are scored on.")],
        baseline: Annotated[
            Path, typer.Option("--baseline", help="Whose accuracy it must nearly keep: ONNX, a checkpoint or a name.")
        ],
        dense: Annotated[
            Optional[Path],  # noqa: UP045
            typer.Option("--dense", help="The dense model that it must be faster than, as ONNX. Default: --baseline."),
        ] = None,
        checkpoint: Annotated[
            Optional[Path],  # noqa: UP045
            typer.Option("--checkpoint", help="What it was exported from (.pt), scored for the card as well."),
        ] = None,
        name: Annotated[str, typer.Option("--name", help="What to call it. Default: the file's name.")] = "",
        engine: Annotated[
            str,
            typer.Option("--engine", "-e", help="Judge on this engine alone; auto: on the fastest, and score on all."),
        ] = "auto",
        max_map_drop: Annotated[
            Optional[float],  # noqa: UP045
            typer.Option("--max-map-drop", min=0, max=1, help="mAP@0.5 it may lose. Default: the config's."),
        ] = None,
        replace: Annotated[bool, typer.Option("--replace", help="Replace a model of that name.")] = False,
        config: ConfigOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Measure a model and enter it into the registry, with a card of what was measured.

        It is refused (exit code 1, with both figures) when it lost too much accuracy against its baseline, or is not
        faster than its dense form on this CPU. Nothing that the card file says takes the place of measuring.
        """
        with in_words():
            from services.admission import Candidate
            from services.commands import registry as command
            from services.model_names import model_file
            from trainer.card import read_told

            loaded, _ = load_config(config)
            folder = loaded.registry.folder
            base = model_file(baseline, folder)
            candidate = Candidate(
                onnx=onnx,
                told=read_told(card),
                data=data,
                baseline=base,
                dense=model_file(dense, folder) if dense else base,
                checkpoint=checkpoint,
                engine=engine,
            )
            code = command.add_model(
                loaded,
                candidate,
                name or command.default_name(onnx),
                max_map_drop=max_map_drop,
                replace=replace,
                as_json=as_json,
            )
            raise typer.Exit(code)

    @models.command("remove")
    def remove(
        name: Annotated[str, typer.Argument(metavar="NAME", help="One of `sparsecam models list`.")],
        *,
        config: ConfigOption = None,
    ) -> None:
        """Delete a model and its card from the config's registry; what runs has read it already and goes on."""
        with in_words():
            from services.commands import registry as command

            loaded, _ = load_config(config)
            raise typer.Exit(command.remove_model(loaded, name))
