"""Figures of a training to TensorBoard, Weights & Biases or MLflow, where they are installed and asked for.

What goes wrong there (a network, a full disk, their own faults) never ends a training: it is warned of once a logger,
and counted.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import cv2
import structlog

from trainer.errors import TrainerError

log = structlog.get_logger()


class Backend(Protocol):
    """What this module needs of a place that keeps figures."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def picture(self, name: str, path: Path) -> None: ...

    def close(self) -> None: ...


class Logger:
    """A backend whose faults are warned of and counted instead of raised."""

    def __init__(self, name: str, make: Callable[[], Backend]) -> None:
        self.name = name
        self.failures = 0
        self._backend: Backend | None = None
        with self._guarded("open"):
            self._backend = make()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Keep figures of an epoch, under the names of results.csv's columns."""
        with self._guarded("scalars"):
            if self._backend:
                self._backend.scalars(step, values)

    def picture(self, name: str, path: Path) -> None:
        """Keep a picture that was written to a file."""
        with self._guarded("picture"):
            if self._backend:
                self._backend.picture(name, path)

    def close(self) -> None:
        """Write out what is kept; after it nothing is taken any more."""
        backend, self._backend = self._backend, None
        with self._guarded("close"):
            if backend:
                backend.close()

    @contextmanager
    def _guarded(self, doing: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # other people's code: whatever it raises, hours of training are worth more
            self.failures += 1
            if self.failures == 1:
                log.warning("logger failed", logger=self.name, doing=doing, error=f"{type(error).__name__}: {error}")


class _TensorBoard:
    """An event file in the run's folder: `tensorboard --logdir` of that folder or the one above shows it."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))
        self._writer.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in settings.items()))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a killed training keeps what it has told

    def picture(self, name: str, path: Path) -> None:
        picture = cv2.imread(str(path))
        if picture is None:
            raise OSError(f"{path}: no picture to read")
        self._writer.add_image(name, picture[:, :, ::-1], dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    """A run of the user's own account; WANDB_PROJECT, WANDB_MODE and the like are wandb's own settings."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        import wandb

        self._wandb = wandb
        project = os.environ.get("WANDB_PROJECT", folder.parent.name)
        self._run = wandb.init(project=project, name=folder.name, dir=str(folder), config=dict(settings))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, name: str, path: Path) -> None:
        self._run.log({name: self._wandb.Image(str(path))})

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """A run on the server of MLFLOW_TRACKING_URI, else in a database beside the run's folder."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        # Its own patience with a server that is away is minutes a call; a training would wait for it every epoch.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # seconds
        import mlflow

        self._mlflow = mlflow
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", folder.parent.name)
        if "MLFLOW_TRACKING_URI" not in os.environ:
            beside = folder.parent.resolve()
            mlflow.set_tracking_uri(f"sqlite:///{beside / 'mlflow.db'}")
            if mlflow.get_experiment_by_name(experiment) is None:
                # Its own choice would be the working directory.
                mlflow.create_experiment(experiment, artifact_location=(beside / "mlflow").as_uri())
        mlflow.set_experiment(experiment)
        mlflow.start_run(run_name=folder.name)
        # Servers refuse longer ones: a recipe's text is one.
        mlflow.log_params({key: str(value)[:500] for key, value in settings.items()})

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        # A colon, as in mAP_0.5:0.95, is not allowed on every system it stores to.
        self._mlflow.log_metrics({name.replace(":", "_"): float(value) for name, value in values.items()}, step=step)

    def picture(self, name: str, path: Path) -> None:
        self._mlflow.log_artifact(str(path), artifact_path=name)

    def close(self) -> None:
        self._mlflow.end_run()


# Name on the command line: (the package it needs, what it is made of).
_BACKENDS: dict[str, tuple[str, Callable[[Path, Mapping[str, Any]], Backend]]] = {
    "tensorboard": ("tensorboard", _TensorBoard),
    "wandb": ("wandb", _WeightsAndBiases),
    "mlflow": ("mlflow", _MLflow),
}
NAMES = tuple(_BACKENDS)


def default_loggers() -> tuple[str, ...]:
    """What is written unasked: TensorBoard, which keeps to the run's folder, where it is installed."""
    return tuple(name for name in ("tensorboard",) if _installed(name))


def open_loggers(names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> list[Logger]:
    """A logger for each name; raises TrainerError for an unknown one or one whose package is not installed."""
    for name in names:
        if name not in _BACKENDS:
            raise TrainerError(f"logger {name!r}: expected {', '.join(NAMES)}")
        if not _installed(name):
            raise TrainerError(f"logger {name} wants its package: pip install {_BACKENDS[name][0]}")
    return [Logger(name, partial(_BACKENDS[name][1], folder, settings)) for name in dict.fromkeys(names)]


def _installed(name: str) -> bool:
    return importlib.util.find_spec(_BACKENDS[name][0]) is not None
