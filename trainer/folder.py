"""The folder of one run: `PROJECT/NAME`, with the files that YOLOv5's users look for in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from trainer.errors import TrainerError
from trainer.hyp import Hyp
from trainer.settings import TrainSettings

_TRIES = 10_000  # exp, exp2, exp3...


@dataclass(frozen=True)
class RunFolder:
    """Where each file lies."""

    path: Path

    @property
    def weights(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "weights"

    @property
    def best(self) -> Path:
        """The best epoch, for use."""
        return self.weights / "best.pt"

    @property
    def last(self) -> Path:
        """The last finished epoch, for going on."""
        return self.weights / "last.pt"

    @property
    def results(self) -> Path:
        """A row an epoch."""
        return self.path / "results.csv"


def new_folder(settings: TrainSettings, hyp: Hyp) -> RunFolder:
    """Make `project/name`, or where that is taken `name2`, `name3`…; writes opt.yaml and hyp.yaml into it."""
    for number in range(1, _TRIES):
        path = settings.project / (settings.name if number == 1 else f"{settings.name}{number}")
        try:
            path.mkdir(parents=True, exist_ok=settings.exist_ok)
        except FileExistsError:
            continue
        except OSError as error:
            raise TrainerError(f"{path}: cannot be made: {error.strerror}") from error
        folder = RunFolder(path)
        folder.weights.mkdir(exist_ok=True)
        (path / "opt.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
        (path / "hyp.yaml").write_text(yaml.safe_dump(hyp.model_dump(mode="json"), sort_keys=False))
        return folder
    raise TrainerError(f"{settings.project}: {_TRIES} runs named {settings.name} already; give another --name")


def find_folder(path: Path) -> RunFolder:
    """The run to resume, by its folder or its weights/last.pt; raises TrainerError."""
    folder = RunFolder(path.parent.parent if path.suffix == ".pt" else path)
    if not folder.last.is_file():
        raise TrainerError(
            f"{path}: no {folder.last.name} of a run in it; expected the folder of a run, such as runs/train/exp, "
            "that finished an epoch"
        )
    return folder
