"""`sparsecam oneshot` leaves its checkpoint where it was asked to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sparseml", reason="the training extra is not installed")

from trainer.checkpoint import read_checkpoint  # noqa: E402  # only where torch is
from trainer.model import SIZES, YoloV5  # noqa: E402

Sparsecam = Callable[..., CompletedProcess[str]]


@pytest.fixture
def given(folder: Path) -> list[str]:
    """A small network and one picture."""
    torch.manual_seed(1)
    facts = {"activation": "hardswish", "names": {0: "thing"}, "image_size": [64, 64]}
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
