"""`models add` lets in what it has measured to be good enough, and refuses the rest with both figures."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import yaml

from detector.errors import ModelError
from services.admission import Candidate, admit
from trainer.card import Card, Score, read_card
from trainer.card_text import card_markdown
from trainer.errors import CardError, RegistryError
from trainer.gate import GateSettings
from trainer.registry import add

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def lights(tmp_path: Path) -> Path:
    """A data set of six pictures with one white square each, of class `bright`."""
    for kind in ("images", "labels"):
        (tmp_path / "lights" / kind).mkdir(parents=True)
    for number in range(6):
        picture = np.full((240, 320, 3), 60, np.uint8)
        left, top = 20 + 40 * number, 20 + 25 * number
        picture[top : top + 60, left : left + 50] = 255
        cv2.imwrite(str(tmp_path / "lights" / "images" / f"{number}.png"), picture)
        box = f"0 {(left + 25) / 320} {(top + 30) / 240} {50 / 320} {60 / 240}\n"
        (tmp_path / "lights" / "labels" / f"{number}.txt").write_text(box)
    path = tmp_path / "lights" / "data.yaml"
    path.write_text("train: images\nval: images\nnames: [bright]\n")
    return path


@pytest.fixture
def slow_model(graphs: ModuleType, tmp_path: Path) -> Path:
    """The same detector, several times as slow: the dense form, so to speak."""
    path: Path = graphs.bright_box(tmp_path / "slow.onnx", burden=20)
    return path


def facts(cards: ModuleType, folder: Path, **changes: str) -> Path:
    path = folder / "facts.yaml"
    path.write_text(yaml.safe_dump(cards.told().model_dump(mode="json") | changes))
    return path


def test_a_good_model_enters_and_is_called_by_name(
    invoke: Run, folder: Path, cards: ModuleType, lights: Path, bright_box_model: Path, slow_model: Path
) -> None:
    given = ["--card", str(facts(cards, folder)), "--data", str(lights), "--baseline", str(slow_model)]
    done = invoke("models", "add", str(bright_box_model), *given, "--engine", "onnxruntime", "--json")
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)["card"]["measured"]
    assert measured["scores"][0]["map50"] > 0.9
    assert measured["scores"][0]["objects"] == 6
    assert measured["speed"]["dense_ms"] > 1.05 * measured["speed"]["ms"]
    assert (folder / "models" / "bright.onnx").read_bytes() == bright_box_model.read_bytes()
    (entry,) = [one for one in json.loads(invoke("models", "list", "--json").stdout) if one["name"] == "bright"]
    assert entry["card"]["sha256"] == hashlib.sha256(bright_box_model.read_bytes()).hexdigest()
    for word in ("bright", "Apache-2.0", "mAP@0.5", "times as fast"):
        assert word in invoke("models", "show", "bright").stdout
    facts(cards, folder, licence="MIT")  # another card than the one that is there
    again = invoke("models", "add", str(bright_box_model), *given, "--engine", "onnxruntime")
    assert (again.returncode, "--replace" in again.stderr) == (78, True)
    assert invoke("models", "remove", "bright").returncode == 0
    assert "no model 'bright'" in invoke("models", "show", "bright").stderr


def test_a_slow_model_and_one_that_lost_accuracy_are_refused_with_both_figures(
    folder: Path, cards: ModuleType, lights: Path, bright_box_model: Path, slow_model: Path
) -> None:
    def scorer(model: Path, engine: str, data: Path, progress: Callable[[int, int], None]) -> Score:
        progress(1, 1)
        found: Score = cards.score(0.7 if model == slow_model else 0.9, file=model.name, engine=engine)
        return found

    candidate = Candidate(slow_model, cards.told(), lights, bright_box_model, bright_box_model, engine="onnxruntime")
    outcome = admit(candidate, "slow", folder / "models", GateSettings(), scorer=scorer)
    assert outcome.entry is None
    lost, slow = outcome.refused
    assert "0.7000" in lost
    assert "0.9000" in lost
    speed = outcome.card.measured.speed
    assert f"{speed.ms:.2f} ms" in slow
    assert f"{speed.dense_ms:.2f} ms" in slow
    assert not (folder / "models").exists()


def test_a_card_that_says_other_than_the_file_is_refused(
    folder: Path, cards: ModuleType, lights: Path, graphs: ModuleType
) -> None:
    model = graphs.bright_box(folder / "m.onnx", more={"license": "AGPL-3.0", "epochs": "3"})
    with pytest.raises(CardError, match=r"licence is 'Apache-2.0', the file says 'AGPL-3.0'") as caught:
        admit(Candidate(model, cards.told(), lights, model, model), "m", folder / "models", GateSettings())
    assert "epochs" not in str(caught.value)


def test_epochs_that_a_card_leaves_out_are_the_files_own(
    folder: Path, cards: ModuleType, lights: Path, graphs: ModuleType, slow_model: Path
) -> None:
    model = graphs.bright_box(folder / "m.onnx", more={"epochs": "7"})

    def scorer(path: Path, engine: str, data: Path, progress: Callable[[int, int], None]) -> Score:
        return Score.model_validate(cards.score(file=path.name).model_dump())

    def admitted(epochs: int | None) -> Card:
        told = cards.told()
        told.training.epochs = epochs
        candidate = Candidate(model, told, lights, slow_model, slow_model, engine="onnxruntime")
        return admit(candidate, "m", folder / "models", GateSettings(), scorer=scorer).card

    with pytest.raises(CardError, match=r"training.epochs is '8', the file says '7'"):
        admitted(8)
    assert admitted(None).told.training.epochs == 7
    written = read_card(folder / "models" / "m.card.yaml")
    assert written.told.training.epochs == 7 and "7 epochs" in card_markdown(written)


def unmeasured(*_: object) -> Score:
    raise AssertionError("measured before what is known without")


@pytest.mark.parametrize(
    ("name", "words"),
    [("my model", "'my model' is no name for a model: expected up to"), ("street.onnx", "leave the suffix out"),
     ("taken", "--replace")],
)  # fmt: skip
def test_a_name_that_cannot_be_had_is_refused_before_anything_is_measured(
    folder: Path, cards: ModuleType, lights: Path, bright_box_model: Path, name: str, words: str
) -> None:
    add(folder / "models", b"one", cards.card("taken", hashlib.sha256(b"one").hexdigest()))
    candidate = Candidate(bright_box_model, cards.told(), lights, bright_box_model, bright_box_model)
    with pytest.raises(RegistryError, match=words):
        admit(candidate, name, folder / "models", GateSettings(), say=unmeasured, scorer=unmeasured)


def test_a_file_whose_name_is_none_for_a_model_wants_another(
    invoke: Run, folder: Path, cards: ModuleType, lights: Path, bright_box_model: Path
) -> None:
    model = bright_box_model.rename(folder / "my model.onnx")
    given = ["--card", str(facts(cards, folder)), "--data", str(lights), "--baseline", str(model)]
    done = invoke("models", "add", str(model), *given)
    assert done.returncode == 78
    assert "'my model' is no name" in done.stderr and "--name" in done.stderr


def test_checkpoints_are_not_entered(folder: Path, cards: ModuleType, lights: Path, bright_box_model: Path) -> None:
    pytest.importorskip("torch")
    import torch

    from trainer.model import SIZES, YoloV5

    path = folder / "m.pt"
    torch.save({"model": YoloV5(SIZES["n"], 1).state_dict()}, path)
    with pytest.raises(ModelError, match="sparsecam export"):
        admit(Candidate(path, cards.told(), lights, path, path), "m", folder / "models", GateSettings())


def test_a_changed_file_is_told_by_list(invoke: Run, folder: Path, cards: ModuleType) -> None:
    entry = add(folder / "models", b"one", cards.card("street-x", hashlib.sha256(b"one").hexdigest()))
    assert invoke("models", "list").returncode == 0
    entry.path.write_bytes(b"two")
    done = invoke("models", "list")
    assert (done.returncode, "has changed" in done.stdout) == (1, True)
