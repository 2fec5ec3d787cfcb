"""The programs of a job, in order: train, export, publish. Each is a command of ours, as a person would give it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services.jobs.arguments import JobError, PublishArguments, checked, publish_words, train_words
from services.jobs.folder import JobFolder
from services.jobs.settings import TrainerSettings
from trainer.registry import taken
from wire.jobs import Job

Command = tuple[str, ...]


@dataclass(frozen=True)
class Stage:
    """One program. `command` is asked anew for each attempt, since a training goes on from where it is."""

    name: str
    command: Callable[[], Command]


@dataclass(frozen=True)
class Plan:
    """What a job comes to on this machine."""

    folder: JobFolder
    stages: tuple[Stage, ...]
    epochs: int  # asked for; 0: the command's own, or the recipe's, which wins
    model: str  # name in the registry; empty: not published


def plan_of(job: Job, settings: TrainerSettings, registry: Path) -> Plan:
    """`registry` is the folder that models are published into; raises JobError for a job that cannot be done."""
    if job.kind != "train":
        raise JobError(f"kind {job.kind!r}: expected 'train'")
    words, options = train_words(job, settings)
    publish = checked(PublishArguments, job.publish)
    folder = JobFolder(settings.runs, job)
    onnx = folder.path / f"{publish.name or 'model'}.onnx"
    data = next(option for option in options if option.startswith("--data="))
    stages = [
        Stage("train", lambda: _train(folder, options, data)),
        Stage("export", lambda: _export(folder, onnx, publish)),
    ]
    if publish.name:
        there = taken(registry, publish.name)
        if there and not folder.last.is_file():  # once it trains, the name may be taken by this job's own model
            raise JobError(f"name: {there} is there already; take another name, or `sparsecam models remove` that one")
        told = publish_words(publish, settings, registry)
        stages.append(Stage("publish", lambda: _publish(folder, onnx, data, told)))
    return Plan(folder, tuple(stages), 0 if words.recipe else words.epochs or 0, publish.name or "")


def _train(folder: JobFolder, options: list[str], data: str) -> Command:
    if folder.last.is_file():
        return ("train", f"--resume={folder.run}", data)  # it may have moved, with data_dir
    folder.clear_run()
    return ("train", *options, f"--project={folder.path}", f"--name={folder.run.name}")


def _export(folder: JobFolder, onnx: Path, publish: PublishArguments) -> Command:
    return ("export", str(_checkpoint(folder)), f"--out={onnx}", *(("--dynamic",) if publish.dynamic else ()))


def _publish(folder: JobFolder, onnx: Path, data: str, told: dict[str, str]) -> Command:
    words = (f"--{name}={value}" for name, value in told.items())
    return ("models", "add", str(onnx), data, f"--checkpoint={_checkpoint(folder)}", *words)


def _checkpoint(folder: JobFolder) -> Path:
    # Without pictures to validate on there is no best epoch.
    return folder.best if folder.best.is_file() else folder.last
