"""The options of `sparsecam oneshot`; the work is in services/commands/oneshot.py."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Optional

import typer

InWords = Callable[[], AbstractContextManager[None]]


def register(app: typer.Typer, in_words: InWords) -> None:
    """Add the command; `in_words` turns errors into words and exit codes."""

    @app.command("oneshot")
    def oneshot(
        *,
        weights: Annotated[
            Path, typer.Option("--weights", "-w", help="A trained checkpoint, not quantised, or an ONNX export.")
        ],
        data: Annotated[Path, typer.Option("--data", help="data.yaml of pictures like those it will see.")],
        out: Annotated[
            Optional[Path],  # noqa: UP045
            typer.Option("--out", "-o", help="The checkpoint to write. Default: beside the weights, NAME-oneshot.pt."),
        ] = None,
        pictures: Annotated[
            int, typer.Option("--pictures", min=1, help="How many of the training set to watch.")
        ] = 128,
        sparsity: Annotated[
            float,
            typer.Option("--sparsity", min=0, max=0.95, help="Also make this share of weights zero; costs accuracy."),
        ] = 0.0,
        img: Annotated[
            Optional[int],  # noqa: UP045
            typer.Option("--img", "--imgsz", min=32, help="Long side (pixels). Default: the checkpoint's own."),
        ] = None,
    ) -> None:
        """Quantise a trained network from some pictures, without training; export and val take the result.

        Keeps most of the accuracy; `train --recipe yolov5.quantized` keeps more.
        """
        from services.commands import oneshot as command

        with in_words():
            raise typer.Exit(command.oneshot(weights, data, out, pictures=pictures, sparsity=sparsity, img=img))
