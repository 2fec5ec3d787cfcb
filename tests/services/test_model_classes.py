"""A rule that names a class the model does not have is refused where it stands."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from services.config import load
from services.config_errors import ConfigError
from services.model_classes import model_classes, refuse_unknown_classes


def written(folder: Path, detector: str, rule: str) -> Path:
    path = folder / "sparsecam.yaml"
    path.write_text(f"detector: {{{detector}}}\nrules:\n  r: {rule}\n")
    return path


def test_the_models_own_names_are_what_counts(
    folder: Path, bright_box_model: Path, sparsecam: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    path = written(folder, f"model: {bright_box_model}", "{labels: [bright, brigth, '7']}")
    done = sparsecam("check", str(path))
    assert done.returncode == 1
    assert "3:24: rules.r.labels[1]: the model has no class 'brigth'; did you mean 'bright'?" in done.stderr
    assert "1 problem\n" in done.stderr, "a class without a name is called by its number"
    done = sparsecam("up", "--config", str(path))
    assert done.returncode != 0
    assert f"{path}:3:24: rules.r.labels[1]: the model has no class 'brigth'" in done.stderr
    done = sparsecam("check", str(written(folder, f"model: {bright_box_model}", "{labels: [0]}")))
    assert "rules.r.labels[0]: the model has no class '0'; class 0 is called 'bright'" in done.stderr


def test_names_in_the_config_win(folder: Path, bright_box_model: Path) -> None:
    detector = f"model: {bright_box_model}, labels: [lamp]"
    config = load(written(folder, detector, "{labels: [lamp]}"), {})
    assert model_classes(config) is None
    with pytest.raises(ConfigError, match=r"3:16: rules.r.labels\[0\]: the model has no class 'bright'"):
        load(written(folder, detector, "{labels: [bright]}"), {})


def test_a_model_that_cannot_be_read_is_left_to_the_worker(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"not a model")
    for model in ("model.onnx", "none.onnx"):
        path = written(folder, f"model: {folder / model}", "{labels: [person]}")
        # Raises ConfigError where it takes itself to know the classes.
        refuse_unknown_classes(load(path, {}), path)
