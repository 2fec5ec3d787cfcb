"""The folder of one job: how far it is, in `job.json`, and what its programs make beside it.

job.json        stages done, and how the job ended
train/          the run, as `sparsecam train` lays it out
NAME.onnx       the exported model
"""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import msgspec
from msgspec import Struct, field

from wire.jobs import Job, State
from wire.messages import MALFORMED


class Record(Struct):
    """What is certain about a job even when Redis is away."""

    done: list[str] = field(default_factory=list)  # stages
    ended: State | None = None
    error: str = ""


class JobFolder:
    """Paths and files of a job below `runs`."""

    def __init__(self, runs: Path, job: Job) -> None:
        self.path = runs / job.id
        self.run = self.path / "train"
        self.best = self.run / "weights" / "best.pt"
        self.last = self.run / "weights" / "last.pt"
        self.results = self.run / "results.csv"

    def record(self) -> Record:
        """What was written last; a fresh one where there is none, or none that can be read."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            return msgspec.json.decode((self.path / "job.json").read_bytes(), type=Record)
        except (OSError, *MALFORMED):
            return Record()

    def write(self, record: Record) -> None:
        """Whole or not at all."""
        beside = self.path / ".job.json"
        with beside.open("wb") as file:
            file.write(msgspec.json.encode(record))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path / "job.json")

    def clear_run(self) -> None:
        """Remove what a training left that has not finished an epoch."""
        shutil.rmtree(self.run, ignore_errors=True)


def newest_row(path: Path) -> tuple[int, dict[str, float]]:
    """(epochs finished, the newest row) of a results.csv; (0, {}) where there is none yet.

    A last line without its end is still being written, and left out.
    """
    try:
        *lines, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return 0, {}
    rows = list(csv.DictReader(lines, skipinitialspace=True))
    if not rows:
        return 0, {}
    found = {}
    for name, text in rows[-1].items():
        try:
            found[name.strip()] = float(text)
        except (AttributeError, TypeError, ValueError):
            continue  # a field that is empty, or beyond the columns
    return len(rows), found
