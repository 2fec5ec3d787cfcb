"""`sparsecam oneshot` leaves its checkpoint where it was asked to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sparseml", reason="the training extra is not installed")

from trainer.checkpoint import read_checkpoint  # noqa: E402  # only where torch is
from trainer.facts import Facts, read_facts  # noqa: E402
from trainer.model import SIZES, YoloV5  # noqa: E402

Sparsecam = Callable[..., CompletedProcess[str]]


@pytest.fixture
def given(folder: Path) -> list[str]:
    """A small network and one picture."""
    torch.manual_seed(1)
    facts: dict[str, Any] = {"activation": "hardswish", "names": {0: "thing"}, "image_size": [64, 64]}
    facts |= {"dataset": "d1", "licence": "CC0-1.0", "progress": {"epoch": 97}}
    facts |= {"results": [{"metrics/mAP_0.5": 0.8}]}
    torch.save({"ema": YoloV5(SIZES["n"], 1, activation="hardswish").state_dict(), **facts}, folder / "n.pt")
    (folder / "images").mkdir()
    cv2.imwrite(str(folder / "images" / "a.png"), np.full((64, 64, 3), 90, np.uint8))
    (folder / "data.yaml").write_text("train: images\nval: images\nnames: [thing]\n")
    return ["oneshot", "--weights", str(folder / "n.pt"), "--data", str(folder / "data.yaml")]


def test_the_folder_of_its_result_is_made(invoke: Sparsecam, folder: Path, given: list[str]) -> None:
    done = invoke(*given, "--out", "new/folder/quantised.pt")
    assert done.returncode == 0, done.stderr
    path = folder / "new" / "folder" / "quantised.pt"
    assert read_checkpoint(path.read_bytes(), path.name).labels == {0: "thing"}


def test_a_folder_that_cannot_be_made_is_told_before_the_work(
    invoke: Sparsecam, folder: Path, given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.commands.oneshot.run_oneshot", lambda *_, **__: pytest.fail("worked"))
    done = invoke(*given, "--out", "data.yaml/quantised.pt")
    assert done.returncode == 78
    assert "its folder cannot be made" in done.stderr and "Traceback" not in done.stderr


def test_what_is_known_of_its_source_is_known_of_its_result(invoke: Sparsecam, folder: Path, given: list[str]) -> None:
    """Also by way of ONNX, which is quantised anew: a card that is right for the one is right for the other."""
    again = [word.replace("n.pt", "first.onnx") for word in given]
    for words in (
        [*given, "--out", "first.pt"],
        ["export", "first.pt", "--out", "first.onnx", "--engine", "none"],
        [*again, "--out", "second.pt"],
    ):
        done = invoke(*words)
        assert done.returncode == 0, done.stderr
    for name in ("first.pt", "first.onnx", "second.pt"):
        told = Facts(dataset="d1", recipe="oneshot", epochs=97, licence="CC0-1.0")
        assert read_facts((folder / name).read_bytes(), name) == told, "but not the scores of floats"


def test_epochs_that_nobody_told_stay_unknown(invoke: Sparsecam, folder: Path, given: list[str]) -> None:
    saved = torch.load(folder / "n.pt", weights_only=True)
    torch.save({key: value for key, value in saved.items() if key != "progress"}, folder / "n.pt")
    done = invoke(*given, "--out", "quantised.pt")
    assert done.returncode == 0, done.stderr
    data = (folder / "quantised.pt").read_bytes()
    assert read_facts(data, "quantised.pt").epochs is None
    assert read_checkpoint(data, "quantised.pt").quantised is not None


def test_what_is_quantised_already_is_refused(invoke: Sparsecam, folder: Path, given: list[str]) -> None:
    assert invoke(*given, "--out", "first.pt").returncode == 0
    done = invoke(*[word.replace("n.pt", "first.pt") for word in given], "--out", "second.pt")
    assert done.returncode == 78
    assert "first.pt: quantised already; expected weights in floats" in done.stderr
    assert not (folder / "second.pt").exists()
