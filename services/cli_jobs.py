"""The options of `sparsecam jobs`; what it does is in services/commands/jobs.py."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated, Optional

import typer

from services.cli_options import ConfigOption, JsonOption, load_config

InWords = Callable[[], AbstractContextManager[None]]

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="As `jobs submit` and `jobs list` show it.")]
# Optional[...] and not `| None` since click's older converters know only that.
Text = Optional[str]  # noqa: UP045
Number = Optional[int]  # noqa: UP045


def register(app: typer.Typer, in_words: InWords) -> None:
    """Add the commands; `in_words` turns errors into words and exit codes."""
    group = typer.Typer(no_args_is_help=True, help="Training jobs: handed in here, done by `sparsecam run trainer`.")
    app.add_typer(group, name="jobs")

    @group.command("submit")
    def submit(
        *,
        data: Annotated[str, typer.Option("--data", help="data.yaml, below the trainer's trainer.data_dir.")],
        cfg: Annotated[Text, typer.Option("--cfg", help="yolov5n, s, m, l or x, -hardswish behind it or not.")] = None,
        weights: Annotated[Text, typer.Option("--weights", help="Checkpoint to start from. Default: none.")] = None,
        teacher: Annotated[
            Text, typer.Option("--teacher", help="Trained network to learn from. Default: none.")
        ] = None,
        recipe: Annotated[Text, typer.Option("--recipe", help="A recipe's name, or a file of one.")] = None,
        recipe_args: Annotated[
            Text, typer.Option("--recipe-args", metavar="JSON", help='Numbers for the recipe: {"num_epochs": 20}')
        ] = None,
        hyp: Annotated[Text, typer.Option("--hyp", help="YAML file of hyperparameters.")] = None,
        img: Annotated[Number, typer.Option("--img", help="Side of the pictures (pixels).")] = None,
        batch_size: Annotated[Number, typer.Option("--batch-size", help="Pictures in a batch.")] = None,
        epochs: Annotated[Number, typer.Option("--epochs", help="Times through the data.")] = None,
        optimizer: Annotated[Text, typer.Option("--optimizer", help="SGD, Adam or AdamW.")] = None,
        linear_lr: Annotated[bool, typer.Option("--linear-lr", help="Learning rate falls in a straight line.")] = False,
        device: Annotated[Text, typer.Option("--device", help="auto, cpu, cuda or a GPU's number.")] = None,
        precision: Annotated[Text, typer.Option("--precision", help="auto, fp32, bf16 or fp16.")] = None,
        workers: Annotated[Number, typer.Option("--workers", help="Processes that prepare pictures.")] = None,
        seed: Annotated[Number, typer.Option("--seed", help="Of the weights and of every picture's changes.")] = None,
        patience: Annotated[Number, typer.Option("--patience", help="Stop after so many epochs without gain.")] = None,
        val_every: Annotated[Number, typer.Option("--val-every", help="Validate every so many epochs.")] = None,
        freeze: Annotated[Number, typer.Option("--freeze", help="First layers that stay as they are.")] = None,
        auto_batch: Annotated[bool, typer.Option("--auto-batch", help="Out of memory: halve the batch.")] = False,
        name: Annotated[Text, typer.Option("--name", help="Publish under this name. Default: not at all.")] = None,
        card: Annotated[Text, typer.Option("--card", help="YAML with what only people know of the model.")] = None,
        baseline: Annotated[Text, typer.Option("--baseline", help="Name or file to compare mAP with.")] = None,
        dense: Annotated[Text, typer.Option("--dense", help="Name or ONNX file to compare speed with.")] = None,
        dynamic: Annotated[bool, typer.Option("--dynamic", help="Export for any batch and picture size.")] = False,
        config: ConfigOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Hand a training in; prints its id. The words are those of `sparsecam train`, files are the trainer's.

        The finished model goes through the gate of `sparsecam models add` when --name is given, which wants --card and
        --baseline as well.
        """
        arguments = {
            "data": data,
            "cfg": cfg,
            "weights": weights,
            "teacher": teacher,
            "recipe": recipe,
            "recipe_args": recipe_args,
            "hyp": hyp,
            "img": img,
            "batch_size": batch_size,
            "epochs": epochs,
            "optimizer": optimizer,
            "linear_lr": linear_lr,
            "device": device,
            "precision": precision,
            "workers": workers,
            "seed": seed,
            "patience": patience,
            "val_every": val_every,
            "freeze": freeze,
            "auto_batch": auto_batch,
        }
        publish = {"name": name, "card": card, "baseline": baseline, "dense": dense, "dynamic": dynamic}
        with in_words():
            from services.commands import jobs as command

            raise typer.Exit(command.submit(load_config(config)[0], arguments, publish, as_json=as_json))

    @group.command("list")
    def list_(
        *,
        last: Annotated[int, typer.Option("--last", metavar="N", min=1, max=10_000, help="The newest N.")] = 20,
        config: ConfigOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Print the jobs, the oldest first: state, epoch, mAP, and why one failed."""
        with in_words():
            from services.commands import jobs as command

            raise typer.Exit(command.list_(load_config(config)[0], last, as_json=as_json))

    @group.command("logs")
    def logs(
        *,
        job: IdArgument,
        follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
        config: ConfigOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Print what a job's programs printed. With --follow, exit code 1 when the job fails or is cancelled."""
        with in_words():
            from services.commands import jobs as command

            raise typer.Exit(command.logs(load_config(config)[0], job, follow=follow, as_json=as_json))

    @group.command("cancel")
    def cancel(*, job: IdArgument, config: ConfigOption = None) -> None:
        """Stop a job, or take it out of the queue. Exit code 1 when it has ended already."""
        with in_words():
            from services.commands import jobs as command

            raise typer.Exit(command.cancel(load_config(config)[0], job))
