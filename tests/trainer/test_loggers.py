"""Loggers keep what they are told, and their faults end no training."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest
from structlog.testing import capture_logs

from trainer.errors import TrainerError
from trainer.report.loggers import NAMES, default_loggers, open_loggers


def _picture(path: Path) -> Path:
    cv2.imwrite(str(path), np.full((8, 10, 3), (0, 0, 255), np.uint8))
    return path


def test_tensorboard_keeps_figures_and_pictures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert default_loggers() == ("tensorboard",)
    (logger,) = open_loggers(["tensorboard"], tmp_path / "run", {"epochs": 3})
    for epoch in range(3):
        logger.scalars(epoch, {"metrics/mAP_0.5:0.95": epoch / 10, "train/box_loss": 1.0})
    logger.picture("labels", _picture(tmp_path / "labels.png"))
    logger.close()
    assert logger.failures == 0
    kept = EventAccumulator(str(tmp_path / "run"))
    kept.Reload()
    assert [(one.step, round(one.value, 4)) for one in kept.Scalars("metrics/mAP_0.5:0.95")] == [
        *[(0, 0.0), (1, 0.1), (2, 0.2)]
    ]
    (image,) = kept.Images("labels")
    pixels = cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    assert pixels[4, 5].tolist() == [0, 0, 255]


def test_a_loggers_faults_are_warned_of_once_and_counted(tmp_path):
    pytest.importorskip("tensorboard")
    (logger,) = open_loggers(["tensorboard"], tmp_path / "run", {})
    with capture_logs() as logs:
        logger.picture("labels", tmp_path / "nowhere.png")
        logger.picture("labels", tmp_path / "nowhere.png")
        logger.scalars(0, {"train/box_loss": "much"})  # type: ignore[dict-item]
        logger.scalars(1, {"train/box_loss": 1.0})  # goes on working
        logger.close()
        logger.scalars(2, {"train/box_loss": 1.0})
    assert logger.failures == 3
    (warning,) = logs
    assert (warning["event"], warning["logger"], warning["doing"]) == ("logger failed", "tensorboard", "picture")
    assert "nowhere.png" in warning["error"]


def test_a_logger_that_cannot_open_ends_nothing(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "run").write_text("a file where the folder should be")
    with capture_logs() as logs:
        (logger,) = open_loggers(["tensorboard"], tmp_path / "run", {})
        logger.scalars(0, {"train/box_loss": 1.0})
        logger.close()
    assert logger.failures == 1
    assert [entry["doing"] for entry in logs] == ["open"]


def test_an_unknown_logger_is_refused_with_those_known(tmp_path):
    with pytest.raises(TrainerError, match="'tensorbord': expected tensorboard, wandb, mlflow"):
        open_loggers(["tensorbord"], tmp_path, {})


def test_a_logger_that_is_not_installed_is_refused_before_the_training(tmp_path):
    missing = [name for name in NAMES if importlib.util.find_spec(name) is None]
    if not missing:
        pytest.skip("all are installed")
    with pytest.raises(TrainerError, match=f"pip install {missing[0]}"):
        open_loggers(missing[:1], tmp_path, {})


def test_mlflow_keeps_figures_and_pictures(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    (logger,) = open_loggers(["mlflow"], tmp_path / "train" / "exp", {"epochs": 3, "recipe": "x" * 9000})
    logger.scalars(1, {"metrics/mAP_0.5:0.95": 0.5})
    logger.picture("labels", _picture(tmp_path / "labels.png"))
    logger.close()
    assert logger.failures == 0
    (run,) = mlflow.search_runs(experiment_names=["train"], output_format="list")
    assert run.data.metrics == {"metrics/mAP_0.5_0.95": 0.5}
    assert run.data.params["epochs"] == "3"
    assert run.info.run_name == "exp"


def test_wandb_keeps_figures_and_pictures(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    pytest.importorskip("PIL")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "exp").mkdir()
    (logger,) = open_loggers(["wandb"], tmp_path / "exp", {"epochs": 3})
    logger.scalars(1, {"metrics/mAP_0.5:0.95": 0.5})
    logger.picture("labels", _picture(tmp_path / "labels.png"))
    logger.scalars(2, {"metrics/mAP_0.5:0.95": 0.6})
    logger.close()
    assert logger.failures == 0
    assert list((tmp_path / "exp").rglob("run-*.wandb"))
