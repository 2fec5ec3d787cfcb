"""Whole trainings, small and real: on pictures drawn here, with the live path's own suppression."""

from __future__ import annotations

import copy
import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from services.training import network_postprocess  # noqa: E402
from trainer.checkpoint import build, read_checkpoint  # noqa: E402
from trainer.device import Place  # noqa: E402
from trainer.errors import CheckpointError, DataError, OutOfMemory, TrainerError  # noqa: E402
from trainer.export import export_network  # noqa: E402
from trainer.facts import Facts  # noqa: E402
from trainer.network import load_checkpoint  # noqa: E402
from trainer.saved import read_saved, write_saved  # noqa: E402
from trainer.settings import TrainSettings, parse_cfg  # noqa: E402
from trainer.sparsify import plain_state  # noqa: E402
from trainer.start import prepare_new, prepare_resumed  # noqa: E402
from trainer.train import Job, Outcome, train  # noqa: E402

_SIDE = 64


class Quiet:
    """A watcher that remembers what it was told."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.said: list[str] = []

    def epoch_started(self, epoch: int, epochs: int, batches: int) -> None: ...

    def go_on(self) -> None: ...

    def batch_done(self, losses: Any) -> None: ...

    def epoch_ended(self, row: dict[str, float]) -> None:
        self.rows.append(row)

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve grey pictures with a bright square or a dark bar each."""
    rng = np.random.default_rng(3)
    for split, count in (("train", 12), ("val", 4)):
        for kind in ("images", "labels"):
            (tmp_path / split / kind).mkdir(parents=True)
        for number in range(count):
            picture = np.full((_SIDE, _SIDE, 3), 128, np.uint8)
            label = number % 2
            width, height = (18, 18) if label == 0 else (26, 10)
            left, top = int(rng.integers(0, _SIDE - width)), int(rng.integers(0, _SIDE - height))
            picture[top : top + height, left : left + width] = 250 if label == 0 else 5
            cv2.imwrite(str(tmp_path / split / "images" / f"{number}.png"), picture)
            row = [(left + width / 2) / _SIDE, (top + height / 2) / _SIDE, width / _SIDE, height / _SIDE]
            text = f"{label} {' '.join(f'{value:.5f}' for value in row)}\n"
            (tmp_path / split / "labels" / f"{number}.txt").write_text(text)
    file = tmp_path / "data.yaml"
    file.write_text("train: train/images\nval: val/images\nnames: [square, bar]\n")
    return file


def asked(data: Path, **changed: Any) -> TrainSettings:
    """Settings of a training of seconds, the same on every machine."""
    hyp = data.parent / "hyp.yaml"
    if not hyp.exists():
        hyp.write_text("nominal_batch: 4\nwarmup_epochs: 1\nlr0: 0.02\n")
    values: dict[str, Any] = {
        "data": data, "cfg": "yolov5n", "img": _SIDE, "batch_size": 4, "epochs": 3, "hyp": hyp, "workers": 0,
        "project": data.parent / "runs", "device": "cpu", "precision": "fp32", "log": (),
    }  # fmt: skip
    return TrainSettings.model_validate({**values, **changed})


def run(job: Job, watch: Quiet | None = None) -> Outcome:
    """Train to the end."""
    return train(job, network_postprocess(2), watch or Quiet())


def test_a_training_leaves_what_its_users_look_for(data: Path) -> None:
    watch = Quiet()
    outcome = run(prepare_new(asked(data), watch.say), watch)
    folder = data.parent / "runs" / "exp"
    assert outcome.epochs == 3
    assert {"best.pt", "last.pt"} == {file.name for file in (folder / "weights").iterdir()}
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert (folder / "opt.yaml").is_file()
    assert (folder / "hyp.yaml").is_file()
    checkpoint = read_checkpoint((folder / "weights" / "best.pt").read_bytes(), "best.pt")
    assert checkpoint.labels == {0: "square", 1: "bar"}
    assert checkpoint.image_size == (_SIDE, _SIDE)
    assert checkpoint.classes == 2
    build(checkpoint)


@pytest.mark.parametrize(("taught", "dtype"), [(False, "float32"), (True, "float32"), (False, "float16")])
def test_a_resumed_training_ends_with_the_numbers_of_an_uninterrupted_one(
    data: Path, taught: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    # Half precision is for GPUs, but a CPU shows as well whether the scale of the losses is kept: the first steps
    # find that it must be smaller, and a training that forgot it would skip its steps again.
    place = Place(torch.device("cpu"), getattr(torch, dtype))
    monkeypatch.setattr("trainer.start.find_place", lambda device, precision: place)
    teacher = run(prepare_new(asked(data, epochs=1, name="teacher"), Quiet().say)).best if taught else None
    whole = run(prepare_new(asked(data, name="whole", teacher=teacher), Quiet().say))
    job = prepare_new(asked(data, name="broken", teacher=teacher), Quiet().say)

    class Dies(Quiet):
        def epoch_ended(self, row: dict[str, float]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(job, network_postprocess(2), Dies())
    outcome = run(prepare_resumed(job.folder.path, Quiet().say))
    assert outcome.epochs == whole.epochs
    ended = [read_saved(data.parent / "runs" / name / "weights" / "last.pt") for name in ("whole", "broken")]
    for key, value in ended[0].ema.items():
        assert torch.equal(value, ended[1].ema[key]), key
    assert ended[0].scaler == ended[1].scaler
    assert bool(ended[0].scaler) == (dtype == "float16")
    columns = [
        [{k: v for k, v in row.items() if k != "time_s"} for row in csv.DictReader(path.open())]
        for path in (data.parent / "runs" / name / "results.csv" for name in ("whole", "broken"))
    ]
    assert columns[0] == columns[1]


def test_a_teacher_of_the_same_shape_teaches_its_maps_unless_they_count_nothing(data: Path) -> None:
    torch.set_num_threads(1)
    teacher = run(prepare_new(asked(data, epochs=1, name="teacher"), Quiet().say)).best
    without = data.parent / "without.yaml"
    without.write_text("nominal_batch: 4\nwarmup_epochs: 1\nlr0: 0.02\ndistill_maps: 0\n")
    ended, told = [], []
    for name, changed in (("with", {}), ("without", {"hyp": without})):
        watch = Quiet()
        run(prepare_new(asked(data, epochs=1, name=name, teacher=teacher, **changed), watch.say), watch)
        ended.append(read_saved(data.parent / "runs" / name / "weights" / "last.pt"))
        told += [text for text in watch.said if text.startswith("learning what")]
    assert told == ["learning what best.pt answers, and its blocks' maps", "learning what best.pt answers"]
    assert any(not torch.equal(value, ended[1].ema[key]) for key, value in ended[0].ema.items())


def test_a_training_from_before_maps_were_taught_goes_on_without_them(data: Path) -> None:
    job = prepare_new(asked(data), Quiet().say)
    run(job)
    saved = read_saved(job.folder.last)
    del saved.facts["hyp"]["distill_maps"]
    write_saved(job.folder.last, saved)
    assert prepare_resumed(job.folder.path, Quiet().say).run.hyp.distill_maps == 0
    assert job.run.hyp.distill_maps > 0


def test_a_training_begins_with_an_export_as_good_as_the_network_was(data: Path) -> None:
    first = run(prepare_new(asked(data, epochs=1, name="first"), Quiet().say))
    network = build(load_checkpoint(first.best)).eval()
    file = data.parent / "first.onnx"
    file.write_bytes(export_network(network, {0: "square", 1: "bar"}, Facts(), image_size=(_SIDE, _SIDE)).onnx)
    job = prepare_new(asked(data, epochs=1, cfg="", weights=file, name="second"), Quiet().say)
    with torch.no_grad():
        pictures = torch.rand(2, 3, _SIDE, _SIDE)
        torch.testing.assert_close(job.run.network.eval()(pictures), network(pictures), rtol=1e-2, atol=1e-2)
    assert run(job).epochs == 1


def test_a_taught_training_goes_on_with_anchors_made_for_its_data_and_without_the_weights_it_began_with(
    data: Path,
) -> None:
    begun = run(prepare_new(asked(data, epochs=1, name="begun"), Quiet().say)).best
    sides = np.random.default_rng(0).uniform((0.5, 0.03), (0.9, 0.05), (99, 2))  # of a bar that COCO's anchors miss
    for label, (width, height) in zip(sorted(data.parent.glob("*/labels/*.txt")), sides, strict=False):
        label.write_text(f"0 0.5 0.5 {width:.4f} {height:.4f}\n")
    watch = Quiet()
    teacher = run(prepare_new(asked(data, epochs=1, name="teacher"), watch.say)).best
    job = prepare_new(asked(data, name="taught", weights=begun, teacher=teacher), watch.say)
    assert sum("new ones" in said for said in watch.said) == 2

    class Dies(Quiet):
        def epoch_ended(self, row: dict[str, float]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(job, network_postprocess(2), Dies())
    begun.unlink()
    assert run(prepare_resumed(job.folder.path, Quiet().say)).epochs == 3


def test_another_teacher_than_before_is_refused(data: Path) -> None:
    teacher = run(prepare_new(asked(data, epochs=1, name="teacher"), Quiet().say))
    taught = run(prepare_new(asked(data, epochs=1, name="taught", teacher=teacher.best), Quiet().say))
    teacher.best.write_bytes(teacher.best.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="another file than the one that"):
        prepare_resumed(taught.best, Quiet().say)


@pytest.mark.parametrize("whole_group", [False, True])
def test_sigterm_stops_a_training_within_five_seconds_and_it_can_be_resumed(data: Path, whole_group: bool) -> None:
    asked(data)
    command = [
        sys.executable, "-m", "services.cli", "train", "--data", str(data), "--cfg", "yolov5n", "--img", str(_SIDE),
        "--batch-size", "4", "--epochs", "9999", "--device", "cpu", "--project", str(data.parent / "r"), "--logger", "",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    last = data.parent / "r" / "exp" / "weights" / "last.pt"
    deadline = time.monotonic() + 90
    while not last.is_file():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGTERM)
    signalled = time.monotonic()
    process.wait(timeout=60)
    assert time.monotonic() - signalled < 6  # five, and the interpreter's own end
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "--resume" in errors
    assert prepare_resumed(last, Quiet().say).run.progress.epoch >= 1


def test_two_processes_train_one_network(data: Path) -> None:
    """Distributed over gloo, as torchrun starts it."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
        "-m", "services.cli", "train", "--data", str(data), "--cfg", "yolov5n", "--img", str(_SIDE), "--batch-size",
        "2", "--epochs", "2", "--device", "cpu", "--project", str(data.parent / "r"), "--workers", "0", "--logger", "",
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=150, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = list(csv.DictReader((data.parent / "r" / "exp" / "results.csv").open()))
    assert len(rows) == 2
    assert [folder.name for folder in (data.parent / "r").iterdir()] == ["exp"]


def test_weights_of_another_number_of_classes_are_taken_over_but_for_the_head(data: Path) -> None:
    first = run(prepare_new(asked(data, epochs=1), Quiet().say))
    other = data.with_name("one.yaml")
    other.write_text("train: train/images\nval: val/images\nnames: [a, b, c]\n")
    job = prepare_new(asked(other, weights=first.best, cfg="", name="other"), Quiet().say)
    begun = read_checkpoint(first.best.read_bytes(), "best.pt").state
    state = job.run.network.state_dict()
    assert torch.equal(state["model.0.conv.weight"], begun["model.0.conv.weight"])
    assert state["model.24.m.0.weight"].shape != begun["model.24.m.0.weight"].shape


@pytest.mark.parametrize(("split", "count"), [("train", 12), ("val", 4)])
def test_data_without_a_single_object_is_refused_with_where_its_labels_should_lie(
    data: Path, split: str, count: int
) -> None:
    labels = data.parent / split / "labels"
    labels.rename(data.parent / split / "annotations")
    with pytest.raises(DataError) as caught:
        prepare_new(asked(data), Quiet().say)
    assert f"{split}: {count} pictures, but no object in any of their labels" in str(caught.value)
    assert f"looked for {labels / '0.txt'} and the like (0 of {count} are there)" in str(caught.value)


def test_short_memory_is_told_with_a_batch_that_would_do(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = prepare_new(asked(data), Quiet().say)

    def full(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(job.run, "train_epoch", full)
    with pytest.raises(OutOfMemory, match="--batch-size 2"):
        run(job)


@pytest.mark.parametrize("recipe", ["", "yolov5.quantized"])
def test_frozen_layers_stay_as_they_are_and_only_their_ranges_are_learnt(data: Path, recipe: str) -> None:
    if recipe:
        pytest.importorskip("sparseml", reason="the training extra is not installed")
    torch.set_num_threads(1)
    words = {"freeze": 2, "epochs": 2, "recipe": recipe, "recipe_args": {"num_epochs": 2} if recipe else {}}
    job = prepare_new(asked(data, name="whole", **words), Quiet().say)
    begun = copy.deepcopy(job.run.network.state_dict())
    assert run(job).best_epoch >= 0
    ended = read_saved(job.folder.last)
    for state in (ended.ema, ended.network or {}):
        plain = plain_state(state)
        same = {key: torch.equal(plain[key], value) for key, value in begun.items()}
        assert all(equal for key, equal in same.items() if key.startswith(("model.0.", "model.1.")))
        assert not same["model.2.cv1.bn.running_mean"]
        seen = [value for key, value in state.items() if key.startswith("model.1.") and key.endswith(".seen")]
        assert [bool(value) for value in seen] == ([True] if recipe else [])

    job = prepare_new(asked(data, name="broken", **words), Quiet().say)

    class Dies(Quiet):
        def epoch_ended(self, row: dict[str, float]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(job, network_postprocess(2), Dies())
    run(prepare_resumed(job.folder.path, Quiet().say))
    again = read_saved(job.folder.last).ema
    assert all(torch.equal(value, again[key]) for key, value in ended.ema.items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cfg": "", "weights": None}, "--cfg"),
        ({"weights": Path("nowhere.pt")}, r"nowhere\.pt"),
        ({"teacher": Path("nowhere.pt")}, r"nowhere\.pt"),
        ({"device": "7"}, "GPU"),
        ({"precision": "fp16"}, "fp16"),
        ({"freeze": 4, "recipe": "yolov5.pruned"}, "prunes, or holds zeros, and --freeze 4 .* leave --freeze out"),
        ({"recipe_args": {"num_epochs": 5}}, "recipe_args .*num_epochs.*: given without a recipe"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_words(data: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(TrainerError, match=words):
        prepare_new(asked(data, **change), Quiet().say)


def test_resuming_where_nothing_ended_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="finished an epoch"):
        prepare_resumed(tmp_path, Quiet().say)


def test_a_checkpoint_for_use_cannot_be_resumed(data: Path) -> None:
    best = run(prepare_new(asked(data, epochs=1), Quiet().say)).best
    with pytest.raises(CheckpointError, match=r"last\.pt"):
        read_saved(best)


@pytest.mark.parametrize(
    ("text", "meant"),
    [("yolov5n", ("n", "silu")), ("models/yolov5s.yaml", ("s", "silu")), ("yolov5n-hardswish", ("n", "hardswish")),
     ("models_v5.0/yolov5n.hardswish.yaml", ("n", "hardswish")), ("yolov5x", ("x", "silu"))],
)  # fmt: skip
def test_networks_go_by_the_names_people_know(text: str, meant: tuple[str, str]) -> None:
    assert parse_cfg(text) == meant


@pytest.mark.parametrize("text", ["yolov8n", "yolov5z", "yolov5n-relu", ""])
def test_other_networks_are_refused_with_what_there_is(text: str) -> None:
    with pytest.raises(ValueError, match="expected yolov5"):
        parse_cfg(text)
