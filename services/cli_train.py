"""The options of `sparsecam train`; the work is in services/commands/train.py."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

InWords = Callable[[], AbstractContextManager[None]]


class Optimizer(str, Enum):
    """--optimizer"""

    SGD = "SGD"
    Adam = "Adam"
    AdamW = "AdamW"


class Precision(str, Enum):
    """--precision"""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


def register(app: typer.Typer, in_words: InWords) -> None:
    """Add the command; `in_words` turns errors into words and exit codes."""

    @app.command("train")
    def train(
        context: typer.Context,
        *,
        data: Annotated[Path | None, typer.Option("--data", help="data.yaml of the data set (YOLO's format).")] = None,
        cfg: Annotated[
            str,
            typer.Option("--cfg", help="yolov5n, s, m, l or x; -hardswish for that activation. Default: as --weights."),
        ] = "",
        weights: Annotated[
            Optional[Path],  # noqa: UP045
            typer.Option("--weights", help="Checkpoint, ONNX export or shipped model to start from."),
        ] = None,
        teacher: Annotated[
            Optional[Path],  # noqa: UP045
            typer.Option("--teacher", help="Trained network whose answers are learnt beside the truth (distillation)."),
        ] = None,
        recipe: Annotated[str, typer.Option("--recipe", help="A name of `recipes list`, or a file.")] = "",
        recipe_args: Annotated[
            str,
            typer.Option("--recipe-args", metavar="JSON", help='Values in place of the recipe\'s: {"num_epochs": 20}'),
        ] = "",
        hyp: Annotated[Optional[Path], typer.Option("--hyp", help="YAML of hyperparameters over the defaults.")] = None,  # noqa: UP045
        img: Annotated[int, typer.Option("--img", "--imgsz", help="Side of the training pictures (pixels).")] = 640,
        batch_size: Annotated[int, typer.Option("--batch-size", help="Pictures a batch.")] = 16,
        epochs: Annotated[int, typer.Option("--epochs", help="Times through the data; a recipe's count wins.")] = 100,
        optimizer: Annotated[Optimizer, typer.Option("--optimizer", help="Rule of the steps.")] = Optimizer.SGD,
        linear_lr: Annotated[bool, typer.Option("--linear-lr", help="A straight line instead of a cosine.")] = False,
        project: Annotated[Path, typer.Option("--project", help="Folder of runs.")] = Path("runs/train"),
        name: Annotated[str, typer.Option("--name", help="The run's own folder in it.")] = "exp",
        exist_ok: Annotated[
            bool, typer.Option("--exist-ok", help="Write into a folder that is there, over its run.")
        ] = False,
        resume: Annotated[
            Optional[Path],  # noqa: UP045
            typer.Option("--resume", metavar="RUN", help="Go on with this run (its folder or weights/last.pt)."),
        ] = None,
        device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or a GPU's number.")] = "auto",
        precision: Annotated[Precision, typer.Option("--precision", help="Of the forward pass.")] = Precision.auto,
        workers: Annotated[int, typer.Option("--workers", help="Processes that prepare pictures.")] = 1,
        cache: Annotated[bool, typer.Option(help="Keep decoded pictures in memory where they fit.")] = True,
        seed: Annotated[int, typer.Option("--seed", help="Of weights and pictures' changes.")] = 0,
        patience: Annotated[
            int, typer.Option("--patience", help="Stop after so many epochs without a better; 0: never.")
        ] = 100,
        val_every: Annotated[int, typer.Option("--val-every", help="Validate every so many epochs.")] = 1,
        auto_batch: Annotated[
            bool, typer.Option("--auto-batch", help="Out of memory: halve the batch and go on from the last epoch.")
        ] = False,
        freeze: Annotated[int, typer.Option("--freeze", help="First layers that stay as they are.")] = 0,
        logger: Annotated[
            str, typer.Option("--logger", help="Loggers: tensorboard, wandb, mlflow, comma-separated.")
        ] = "tensorboard",
    ) -> None:
        """Train a YOLOv5, dense or by a sparsification recipe; weights and results lie in PROJECT/NAME.

        Ctrl-C or SIGTERM stops it; `--resume` goes on after the last finished epoch, to the same numbers. Beside it go
        the options of where it runs: `--data` (the same data, moved), `--batch-size`, `--auto-batch`, `--device`,
        `--workers`, `--cache`, `--logger`. Several GPUs:
        `torchrun --nproc-per-node N -m services.cli train ...`.
        """
        asked: dict[str, Any] = {
            "data": data, "cfg": cfg, "weights": weights, "teacher": teacher, "recipe": recipe,
            "recipe_args": recipe_args, "hyp": hyp, "img": img, "batch_size": batch_size, "epochs": epochs,
            "optimizer": optimizer.value, "linear_lr": linear_lr, "project": project, "name": name,
            "exist_ok": exist_ok, "device": device, "precision": precision.value, "workers": workers, "cache": cache,
            "seed": seed, "patience": patience, "val_every": val_every, "auto_batch": auto_batch, "freeze": freeze,
            "log": tuple(word.strip() for word in logger.split(",") if word.strip()),
        }  # fmt: skip
        given = [name for name in asked if _given(context, "logger" if name == "log" else name)]
        with in_words():
            from services.commands import train as command

            raise typer.Exit(command.train(asked, given=given, resume=resume))


def _given(context: typer.Context, name: str) -> bool:
    """Whether a person has given this option, and not its default."""
    source = context.get_parameter_source(name)
    # By its name: some versions of Typer bring a Click of their own.
    return source is not None and source.name == "COMMANDLINE"
