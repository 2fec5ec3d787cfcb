"""A run goes on as what it is: with its own data, by one process at a time, and with the options it was given."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")

from services.cli import app  # noqa: E402
from services.training import network_postprocess  # noqa: E402
from trainer import recipes  # noqa: E402
from trainer.errors import DataError, RecipeError, TrainerError  # noqa: E402
from trainer.recipes import read_recipe  # noqa: E402
from trainer.settings import TrainSettings  # noqa: E402
from trainer.start import prepare_new, prepare_resumed  # noqa: E402
from trainer.train import Job, train  # noqa: E402

_SIDE = 64


class Dies:
    """A watcher that ends the training after its first epoch."""

    def epoch_started(self, epoch: int, epochs: int, batches: int) -> None: ...

    def go_on(self) -> None: ...

    def batch_done(self, losses: Any) -> None: ...

    def epoch_ended(self, row: dict[str, float]) -> None:
        raise KeyboardInterrupt

    def say(self, text: str) -> None: ...


def said(_: str) -> None:
    """Nothing here is read."""


def asked(data: Path, **changed: Any) -> TrainSettings:
    """Settings of a training of seconds, the same on every machine."""
    values: dict[str, Any] = {
        "data": data, "cfg": "yolov5n", "img": _SIDE, "batch_size": 4, "epochs": 3, "workers": 0,
        "project": data.parent / "runs", "device": "cpu", "precision": "fp32", "log": (),
    }  # fmt: skip
    return TrainSettings.model_validate({**values, **changed})


def one_epoch(job: Job) -> Path:
    """The folder of the run, which was killed after an epoch."""
    with pytest.raises(KeyboardInterrupt):
        train(job, network_postprocess(2), Dies())
    return job.folder.path


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with a bright square each in `set`, and the run `set/runs/exp` on them, of three epochs one."""
    folder = tmp_path_factory.mktemp("kept") / "set"
    for split, count in (("train", 6), ("val", 2)):
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True)
        for number in range(count):
            picture = np.full((_SIDE, _SIDE, 3), 128, np.uint8)
            picture[20:40, 10 * number : 10 * number + 20] = 250
            cv2.imwrite(str(folder / split / "images" / f"{number}.png"), picture)
            row = f"{number % 2} {(10 * number + 10) / _SIDE:.5f} 0.46875 0.3125 0.3125\n"
            (folder / split / "labels" / f"{number}.txt").write_text(row)
    data = folder / "data.yaml"
    data.write_text("train: train/images\nval: val/images\nnames: [even, odd]\n")
    torch.set_num_threads(1)
    one_epoch(prepare_new(asked(data), said))
    return folder


@pytest.fixture
def begun(kept: Path, tmp_path: Path) -> Path:
    """A copy of the run's folder; its settings name the data in `kept`."""
    return Path(shutil.copytree(kept / "runs" / "exp", tmp_path / "runs" / "exp"))


def test_a_run_goes_on_with_its_data_wherever_they_lie(kept: Path, begun: Path, tmp_path: Path) -> None:
    shutil.copytree(kept, tmp_path / "moved", ignore=shutil.ignore_patterns("runs"))
    job = prepare_resumed(begun, said, changed={"data": tmp_path / "moved" / "data.yaml"})
    assert job.settings.data == tmp_path / "moved" / "data.yaml"
    assert job.run.progress.epoch == 1


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("data.yaml", "[even, odd]", "[odd, even]", "classes odd, even; .* began with even, odd: .* --weights"),
        ("data.yaml", "train: train/images", "train: val/images", "other data than .* began with .* --weights"),
        ("train/labels/0.txt", "0.46875", "0.40000", "other data than .* began with"),
    ],
)
def test_a_run_does_not_go_on_with_other_data(
    kept: Path, begun: Path, tmp_path: Path, file: str, old: str, new: str, words: str
) -> None:
    shutil.copytree(kept, tmp_path / "moved", ignore=shutil.ignore_patterns("runs"))
    path = tmp_path / "moved" / file
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=words):
        prepare_resumed(begun, said, changed={"data": tmp_path / "moved" / "data.yaml"})


def test_what_a_resumed_run_is_told_of_where_it_runs_counts_from_now_on(
    begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[bool, int, int, tuple[str, ...]]] = []

    def prepared(*words: Any) -> Job:
        job = prepare_resumed(*words)
        settings = job.settings
        told.append((settings.auto_batch, job.run.progress.batch_size, settings.workers, settings.log))
        monkeypatch.setattr(job.run, "train_epoch", _short_of_memory)
        return job

    monkeypatch.setattr("services.commands.train.prepare_resumed", prepared)
    words = ["--auto-batch", "--batch-size", "2", "--logger", "tensorboard"]
    done = CliRunner().invoke(app, ["train", "--resume", str(begun), *words])
    assert told == [(True, batch, 0, ("tensorboard",)) for batch in (2, 1)]
    assert (done.exit_code, "out of memory in epoch 1 with batches of 1" in done.stderr) == (1, True)


def _short_of_memory(*_: object) -> None:
    raise MemoryError


def test_what_would_make_another_training_of_a_resumed_run_is_refused_by_name(begun: Path) -> None:
    words = ["--epochs", "5", "--optimizer", "SGD", "--recipe-args", "{}", "--workers", "0"]
    done = CliRunner().invoke(app, ["train", "--resume", str(begun), *words])
    assert done.exit_code == 1
    assert "--recipe-args, --epochs, --optimizer: no effect beside --resume" in done.stderr


@pytest.mark.parametrize(("option", "value"), [("--batch-size", "0"), ("--workers", "999")])
def test_a_value_that_no_training_takes_is_refused_beside_resume_too(begun: Path, option: str, value: str) -> None:
    done = CliRunner().invoke(app, ["train", "--resume", str(begun), option, value])
    assert done.exit_code == 1
    assert f"{option}: Input should be" in done.stderr


def test_an_old_run_is_whole_until_the_new_one_in_its_folder_is_ready_and_then_gone(kept: Path, begun: Path) -> None:
    settings = asked(kept / "data.yaml", project=begun.parent, exist_ok=True, epochs=7)
    with pytest.raises(TrainerError, match=r"nowhere\.pt"):
        prepare_new(settings.model_copy(update={"weights": Path("nowhere.pt")}), said)
    assert "epochs: 3" in (begun / "opt.yaml").read_text()
    assert prepare_resumed(begun, said).run.schedule.epochs == 3
    prepare_new(settings, said)  # and killed before its first epoch has ended
    assert "epochs: 7" in (begun / "opt.yaml").read_text()
    with pytest.raises(TrainerError, match="finished an epoch"):
        prepare_resumed(begun, said)


@pytest.mark.parametrize(("most", "file"), [(0, "results.csv"), (20_000, "last.pt")])
def test_a_training_whose_disk_is_full_ends_in_words_and_goes_on_later(begun: Path, most: int, file: str) -> None:
    job = prepare_resumed(begun, said)
    train_epoch = job.run.train_epoch

    def full(*words: Any) -> Any:
        losses = train_epoch(*words)
        job.outputs._drawn = job.outputs._shown = 3  # their own failing is as loud, but earlier
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
        return losses

    job.run.train_epoch = full  # type: ignore[method-assign]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(TrainerError, match=rf"cannot write .*{file}: File too large; .* --resume {begun}`"):
            train(job, network_postprocess(2), Dies())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {path.name for path in (begun / "weights").iterdir()} == {"best.pt", "last.pt"}
    again = prepare_resumed(begun, said)
    assert again.run.progress.epoch == 1
    one_epoch(again)


def test_a_run_whose_recipe_quantises_between_two_steps_goes_on_before_and_after(kept: Path, tmp_path: Path) -> None:
    pytest.importorskip("sparseml", reason="the training extra is not installed")
    recipe = tmp_path / "recipe.yaml"
    text = read_recipe("yolov5.quantized", num_epochs=4).replace("start_epoch: 2", "start_epoch: 0.5")
    recipe.write_text(text.replace("freeze_bn_stats_epoch: 2", "freeze_bn_stats_epoch: 0.5"))
    # One step an epoch, at its very start: the first one after the middle of epoch 0 is that of epoch 1.
    job = prepare_new(asked(kept / "data.yaml", project=tmp_path, batch_size=6, recipe=str(recipe)), said)
    folder, quantised = one_epoch(job), []
    for _ in range(2):
        job = prepare_resumed(folder, said)
        quantised.append(job.run.sparsifier is not None and job.run.sparsifier.quantised())
        one_epoch(job)
    assert quantised == [False, True]


@pytest.mark.parametrize(("old", "new"), [("end_epoch: 2", "end_epoch: 3"), ("end_epoch: 2", "end_epoch: 2.5")])
def test_a_recipe_that_no_epoch_completes_is_refused_before_a_folder_is_made(
    kept: Path, tmp_path: Path, old: str, new: str
) -> None:
    pytest.importorskip("sparseml", reason="the training extra is not installed")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(read_recipe("yolov5.pruned", num_epochs=3).replace(f"  {old}\n", f"  {new}\n"))
    with pytest.raises(RecipeError, match="the last one is number 2: none would be complete"):
        prepare_new(asked(kept / "data.yaml", project=tmp_path / "runs", recipe=str(recipe)), said)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", recipes.names())
def test_a_shipped_recipe_of_two_epochs_has_a_best_one(name: str, kept: Path, tmp_path: Path) -> None:
    pytest.importorskip("sparseml", reason="the training extra is not installed")
    recipe = {"recipe": name, "recipe_args": {"num_epochs": 2}}
    job = prepare_new(asked(kept / "data.yaml", project=tmp_path, batch_size=2, **recipe), said)
    folder = one_epoch(job)
    assert job.run.sparsifier is not None
    assert not job.run.sparsifier.complete(0) or name == "yolov5.baseline"
    one_epoch(job)
    assert (folder / "weights" / "best.pt").is_file()
