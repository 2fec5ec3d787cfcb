"""A model's name does wherever its file does, and a wrong one is refused with those that there are."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from detector.settings import DetectorSettings
from services.config import load
from services.config_errors import ConfigError
from services.model_names import detector_settings, model_file, refuse_unknown_model, registry_folders
from trainer.errors import RegistryError
from trainer.registry import add, shipped_folder

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def named(folder: Path, cards: ModuleType, bright_box_model: Path) -> Path:
    """`./models` with the one model `bright`."""
    data = bright_box_model.read_bytes()
    add(folder / "models", data, cards.card("bright", hashlib.sha256(data).hexdigest(), ("bright",)))
    return folder / "models"


def test_a_file_is_a_file_and_a_name_is_looked_up(named: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert model_file("bright", named) == named / "bright.onnx"
    assert model_file("bright") == Path("models/bright.onnx")  # without a config: ./models
    for path in ("models/bright.onnx", "gone.onnx", "./bright", "weights/gone", ""):
        assert model_file(path, named) == Path(path)
    Path("bright").write_bytes(b"a file of that name")
    assert model_file("bright", named) == Path("bright")


def test_a_command_without_config_finds_the_registry_of_the_one_that_is_there(
    named: Path, folder: Path, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named.rename(folder / "elsewhere")
    monkeypatch.chdir(folder)
    with pytest.raises(RegistryError, match="no model 'bright'"):
        model_file("bright")
    config_file.write_text(config_file.read_text() + "registry: {folder: elsewhere}\n")
    assert model_file("bright") == Path("elsewhere/bright.onnx")


def test_models_that_come_with_sparsecam_are_found_too(folder: Path) -> None:
    assert registry_folders(folder) == [folder, shipped_folder()]
    assert registry_folders(shipped_folder()) == [shipped_folder()]


def test_the_config_keeps_the_name_and_the_worker_gets_the_file(named: Path, config_file: Path) -> None:
    config_file.write_text(config_file.read_text() + f"registry: {{folder: {named}}}\ndetector: {{model: bright}}\n")
    config = load(config_file, env={})
    assert config.detector.model == "bright"
    assert detector_settings(config).model == str(named / "bright.onnx")
    config.detector = DetectorSettings.model_validate({})
    assert detector_settings(config).model == ""


def test_a_wrong_name_in_the_config_is_refused_at_its_place(
    named: Path, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = config_file.read_text()
    config_file.write_text(text + f"registry: {{folder: {named}}}\ndetector: {{model: brigth}}\n")
    with pytest.raises(ConfigError, match=r"sparsecam.yaml:4:19: detector.model: no model 'brigth'.*bright"):
        refuse_unknown_model(load(config_file), config_file)
    monkeypatch.setenv("SPARSECAM__DETECTOR__MODEL", "dark")
    with pytest.raises(ConfigError, match=r"SPARSECAM__DETECTOR__MODEL: detector.model: no model 'dark'"):
        refuse_unknown_model(load(config_file), config_file)


def test_check_and_doctor_say_which_models_there_are(named: Path, config_file: Path, invoke: Run) -> None:
    config_file.write_text(config_file.read_text() + "detector: {model: brigth}\n")
    done = invoke("check", str(config_file))
    assert done.returncode == 1
    assert "no model 'brigth'" in done.stderr
    assert "bright" in done.stderr
    found = json.loads(invoke("doctor", "--config", str(config_file), "--json").stdout)
    (model,) = [one for one in found["findings"] if one["topic"] == "model"]
    assert (model["state"], "no model 'brigth'" in model["found"]) == ("broken", True)
    config_file.write_text(config_file.read_text().replace("brigth", "bright"))
    assert invoke("check", str(config_file)).returncode == 0


def test_annotate_replay_and_bench_take_a_name(
    named: Path, config_file: Path, moving_light: Path, sparsecam: Run, folder: Path
) -> None:
    env = {"SPARSECAM__DETECTOR__ENGINE": "onnxruntime"}
    engine = ("--engine", "onnxruntime")
    done = sparsecam("annotate", "bright", "--source", str(moving_light), *engine, "--json", env=env)
    assert (done.returncode, json.loads(done.stdout)["model"]) == (0, "bright.onnx"), done.stderr
    done = sparsecam("bench", "engine", "bright", *engine, "--seconds", "0.2", "--warmup", "0", "--json", env=env)
    assert (done.returncode, json.loads(done.stdout)["model"]["name"]) == (0, "bright.onnx"), done.stderr
    config_file.write_text(config_file.read_text() + "cameras: {c: {source: x}}\nrules: {any: {kind: presence}}\n")
    replay = ("replay", f"c={moving_light}", "--config", str(config_file), "--model", "bright", "--json")
    done = sparsecam(*replay, env=env)
    assert (done.returncode, '"bright"' in done.stdout) == (0, True), done.stderr


def test_a_wrong_name_ends_a_command_in_words(named: Path, invoke: Run) -> None:
    for command in (("annotate", "dark", "--source", "x.mp4"), ("bench", "engine", "dark"), ("demo", "-m", "dark")):
        done = invoke(*command)
        assert done.returncode == 78
        assert "no model 'dark'" in done.stderr
        assert "bright" in done.stderr
