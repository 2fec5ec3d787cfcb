"""`sparsecam keys`: CURVE keys for frames over tcp://."""

from __future__ import annotations

from pathlib import Path

import typer

from wire.curve import generate_keys


def keys(folder: Path) -> int:
    """Write both key pairs into `folder` and say what to do with them; raises LinkError rather than overwrite."""
    for path in generate_keys(folder):
        typer.echo(f"wrote {path}")
    typer.echo(
        "\nSet link.curve_dir to this folder on every host. The broker's host needs all of it; hosts of ingest or "
        "workers need\nbroker.key and client.key_secret. Whoever has client.key_secret can send and receive frames."
    )
    return 0
