"""`sparsecam models list|show|add|remove`: the models that can be called by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markdown import Markdown

from services.commands.tables import print_table, table_console
from services.config import Config
from services.model_names import registry_folders
from services.process import stdout_to_stderr
from trainer.card_text import card_markdown
from trainer.gate import GateSettings
from trainer.registry import Entry, entries, find, remove

if TYPE_CHECKING:
    from services.admission import Candidate, Outcome


def list_models(config: Config, *, as_json: bool) -> int:
    """All names, those that cannot be used with the reason; 1 when there is such a one."""
    found = entries(registry_folders(config.registry.folder))
    if as_json:
        typer.echo(json.dumps([_plain(entry) for entry in found], indent=2))
    elif not found:
        typer.echo(f"no models in {' or '.join(map(str, registry_folders(config.registry.folder)))}")
    else:
        _print(found)
    return int(any(entry.problem for entry in found))


def show(config: Config, name: str, *, as_json: bool) -> int:
    """A model's card; raises RegistryError."""
    entry = find(name, registry_folders(config.registry.folder))
    assert entry.card is not None
    if as_json:
        typer.echo(json.dumps(_plain(entry), indent=2))
        return 0
    console = Console()
    console.print(Markdown(card_markdown(entry.card)))
    console.print(f"\n{entry.path}", highlight=False, soft_wrap=True)
    return 0


def add_model(
    config: Config, candidate: Candidate, name: str, *, max_map_drop: float | None, replace: bool, as_json: bool
) -> int:
    """Measure and enter a model; 1 when the gate refuses it."""
    from services.admission import admit  # engines and their friends: half of what a listing would take

    given = {} if max_map_drop is None else {"max_map_drop": max_map_drop}
    limits = GateSettings.model_validate({**config.registry.gate.model_dump(), **given})
    console = Console(stderr=True)
    with console.status("reading the model") as status, stdout_to_stderr():
        outcome = admit(
            candidate,
            name,
            config.registry.folder,
            limits,
            replace=replace,
            say=status.update,
        )
    if as_json:
        typer.echo(json.dumps(_outcome(outcome), indent=2))
        return int(outcome.entry is None)
    if outcome.entry is None:
        for reason in outcome.refused:
            console.print(f"refused: {reason}", style="red", markup=False, soft_wrap=True, highlight=False)
        return 1
    Console().print(Markdown(card_markdown(outcome.card)))
    typer.echo(f"\n{outcome.entry.path} is in the registry: --model {name}")
    return 0


def remove_model(config: Config, name: str) -> int:
    """Delete a model and its card from the config's registry; raises RegistryError."""
    for path in remove(config.registry.folder, name):
        typer.echo(f"removed {path}")
    return 0


def default_name(onnx: Path) -> str:
    """The name a model gets when nobody gives it one: its file's."""
    return onnx.name.removesuffix(".onnx")


def _outcome(outcome: Outcome) -> dict[str, object]:
    path = str(outcome.entry.path) if outcome.entry else None
    return {
        "admitted": outcome.entry is not None,
        "refused": outcome.refused,
        "path": path,
        "card": outcome.card.model_dump(mode="json"),
    }


def _plain(entry: Entry) -> dict[str, object]:
    card = entry.card.model_dump(mode="json") if entry.card else None
    return {"name": entry.name, "path": str(entry.path), "problem": entry.problem, "card": card}


def _print(found: list[Entry]) -> None:
    headers = ("name", "classes", "mAP@0.5", "0.5:0.95", "ms", "x dense", "zeros", "MB", "licence")
    rows = list(_rows(found))
    console = table_console()
    if rows:
        print_table(console, headers, rows)
    for entry in found:
        if entry.problem:
            console.print(f"{entry.name}: {entry.problem}", style="red", markup=False, soft_wrap=True, highlight=False)


def _rows(found: list[Entry]) -> Iterator[tuple[str, ...]]:
    """Those that can be used."""
    for entry in found:
        if entry.card is None or entry.problem:
            continue
        score, speed, size = entry.card.measured.scores[0], entry.card.measured.speed, entry.card.measured.size
        classes = entry.card.classes
        yield (
            entry.name,
            ", ".join(classes[:4]) + (f" and {len(classes) - 4} more" if len(classes) > 4 else ""),
            f"{score.map50:.3f}",
            f"{score.map50_95:.3f}",
            f"{speed.ms:.1f} ({speed.engine})",
            f"{speed.ratio:.2f}",
            "" if size.zero_weights is None else f"{size.zero_weights:.0%}",
            f"{size.file_bytes / 1e6:.1f}",
            entry.card.told.licence,
        )
