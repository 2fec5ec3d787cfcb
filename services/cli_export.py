"""The options of `sparsecam export` and `sparsecam val`; the work is in services/commands/."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer

InWords = Callable[[], AbstractContextManager[None]]


class Task(str, Enum):
    """--task"""

    train = "train"
    val = "val"
    test = "test"


# Optional[...] and not `| None` since click's older converters know only that.
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a script instead of tables for a person.")]
SizeOption = Annotated[
    Optional[tuple[int, int]],  # noqa: UP045
    typer.Option("--img", "--imgsz", metavar="HEIGHT WIDTH", help="Input size (pixels). Default: the model's own."),
]


def register(app: typer.Typer, in_words: InWords) -> None:
    """Add the commands; `in_words` turns errors into words and exit codes."""

    @app.command("export")
    def export(
        *,
        checkpoint: Annotated[
            Path,
            typer.Argument(metavar="CHECKPOINT", help="Weights of a training (.pt), an ONNX export of ours or a name."),
        ],
        out: Annotated[
            Optional[Path],  # noqa: UP045
            typer.Option("--out", "-o", help="The ONNX file. Default: beside the checkpoint, under its name."),
        ] = None,
        img: SizeOption = None,
        batch: Annotated[int, typer.Option("--batch", "-b", min=1, max=256, help="Pictures in one run.")] = 1,
        dynamic: Annotated[
            bool, typer.Option("--dynamic", help="Leave batch, height and width open; --img is then the full size.")
        ] = False,
        compress: Annotated[bool, typer.Option("--compress", help="Write the file compressed as well (.gz).")] = False,
        licence: Annotated[
            str, typer.Option("--licence", help="Of the weights, such as AGPL-3.0. Default: the checkpoint's own.")
        ] = "",
        engine: Annotated[
            Optional[list[str]],  # noqa: UP045
            typer.Option(
                "--engine", "-e", help="Measure on it; may be repeated; none: do not. Default: all that are installed."
            ),
        ] = None,
        as_json: JsonOption = False,
    ) -> None:
        """Write a trained network as the ONNX file that workers load; prints sparsity, size, speed against dense.

        The file takes bytes and runs at any size that is a multiple of 32, on every engine. It says its class names,
        size, anchors, data set, recipe and scores. Nothing is written that does not say what the network says.
        From an INT8 export it makes the same network in floats, such as a baseline whose checkpoint is gone.
        """
        with in_words():
            from services.commands import export as command
            from services.model_names import model_file

            job = command.Job(model_file(checkpoint), out, img, batch, dynamic, compress, licence, engine or [])
            raise typer.Exit(command.export(job, as_json=as_json))

    @app.command("val")
    def val(
        *,
        models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="ONNX files, checkpoints (.pt), names.")],
        data: Annotated[Path, typer.Option("--data", help="data.yaml of the data set (YOLO's format), or its folder.")],
        task: Annotated[Task, typer.Option("--task", help="Which pictures of the data set.")] = Task.val,
        engine: Annotated[
            Optional[list[str]],  # noqa: UP045
            typer.Option("--engine", "-e", help="For ONNX files; may be repeated. Default: all that are installed."),
        ] = None,
        img: SizeOption = None,
        batch_size: Annotated[int, typer.Option("--batch-size", min=1, max=32, help="Pictures at once.")] = 1,
        square: Annotated[
            bool, typer.Option("--square", help="Letterbox every picture into the full input shape.")
        ] = False,
        aspect: Annotated[
            str, typer.Option("--aspect", metavar="W:H", help="Only the middle of each picture, such as 16:9.")
        ] = "",
        num_cores: Annotated[
            Optional[int],  # noqa: UP045
            typer.Option("--num-cores", min=1, max=256, help="Physical cores to use. Default: all."),
        ] = None,
        verbose: Annotated[bool, typer.Option("--verbose", "-v", help="A table of the classes as well.")] = False,
        as_json: JsonOption = False,
    ) -> None:
        """COCO mAP of checkpoints and ONNX files on each engine, through the live path's own letterbox and NMS.

        One table, so that a gap between PyTorch and an engine is seen. Settings are those accuracy is published with:
        score above 0.001, NMS at IoU 0.6, 300 boxes a picture. Exit code 1 when a model could not be scored.
        """
        with in_words():
            from services.commands import val as command
            from services.model_names import model_file

            job = command.Job(
                [model_file(one) for one in models],
                data,
                task.value,
                engine or [],
                img,
                batch_size,
                square,
                aspect,
                num_cores,
                verbose,
            )
            raise typer.Exit(command.val(job, as_json=as_json))
