"""Settings of the trainer process."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from wire.paths import MaybePath

_SYSTEM_FOLDER = Path("/var/lib/sparsecam/runs")  # for a service user without a home


class TrainerSettings(BaseModel):
    """The process that takes training jobs, one at a time."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]{0,64}$",
        description="Its name among trainers: of one running trainer only, and the same after a restart, so that it "
        "takes its job up at once; empty: this host's name.",
    )
    data_dir: MaybePath = Field(
        None,
        description="Folder of data sets, checkpoints and recipes: jobs can name files below it and nowhere else. "
        "Needed by `sparsecam run trainer`.",
    )
    runs_dir: MaybePath = Field(
        None,
        description="Folder of runs, one a job, which are kept. Empty: $XDG_DATA_HOME/sparsecam/runs, else "
        "~/.local/share/sparsecam/runs.",
    )
    takeover_s: float = Field(
        60.0,
        ge=2,
        le=86_400,
        description="The job of a trainer that is not heard of for this long goes to another, which begins it anew: "
        "each has a runs_dir of its own (seconds).",
    )
    max_attempts: int = Field(
        3,
        ge=1,
        le=100,
        description="A job whose program dies, or takes the trainer with it, so many times without finishing an epoch "
        "has failed.",
    )
    log_lines: int = Field(
        10_000, ge=100, le=1_000_000, description="Lines kept of each job's output (XADD MAXLEN ~; lines)."
    )

    @property
    def runs(self) -> Path:
        """Where runs go."""
        if self.runs_dir is not None:
            return self.runs_dir.absolute()
        base = os.environ.get("XDG_DATA_HOME")
        if base:
            return Path(base) / "sparsecam" / "runs"
        try:
            return Path.home() / ".local" / "share" / "sparsecam" / "runs"
        except RuntimeError:  # no home is known
            return _SYSTEM_FOLDER
