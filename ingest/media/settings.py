"""Settings of snapshots and clips."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from wire.paths import MaybePath

_GB = 1_000_000_000
_SYSTEM_FOLDER = Path("/var/lib/sparsecam/media")  # for a service user without a home


class MediaSettings(BaseModel):
    """Pictures of incidents: a snapshot of each, and a clip if wanted."""

    model_config = ConfigDict(extra="forbid")

    snapshots: bool = Field(True, description="Write a JPEG of the frame that opened an incident.")
    clips: bool = Field(False, description="Write an MP4 of an incident: the camera's own packets, not re-encoded.")
    dir: MaybePath = Field(
        None,
        description="Folder of snapshots and clips, and of nothing else: retention deletes in it. Empty: "
        "$XDG_DATA_HOME/sparsecam/media, else ~/.local/share/sparsecam/media.",
    )
    base_url: str = Field(
        "",
        description="Where `dir` can be fetched from: the beginning of the links in alerts; empty: they are relative.",
    )
    boxes: bool = Field(True, description="Draw the alert's boxes into the snapshot.")
    jpeg_quality: int = Field(90, ge=10, le=100, description="Quality of snapshots (JPEG's own scale).")
    pre_roll_s: float = Field(5.0, ge=0, le=60, description="What a clip shows before its incident (seconds).")
    post_roll_s: float = Field(5.0, ge=0, le=60, description="What a clip shows after its incident (seconds).")
    clip_max_s: float = Field(
        120.0, ge=1, le=3600, description="Longest clip, from the opening of its incident on (seconds)."
    )
    late_s: float = Field(
        5.0,
        ge=2,
        le=300,
        description="An alert may come this long after its frame and still have its picture; costs memory (seconds).",
    )
    ring_mb: int = Field(
        32,
        ge=1,
        le=4096,
        description="Packets kept in memory per camera; beyond it pre-roll and late_s are shortened (megabytes).",
    )
    keep_days: float = Field(14.0, gt=0, le=36500, description="Older snapshots and clips are deleted (days).")
    max_gb: float = Field(
        10.0, gt=0, le=1_000_000, description="Total size beyond which the oldest are deleted (gigabytes)."
    )
    min_free_gb: float = Field(
        1.0, ge=0, le=1_000_000, description="With less room than this on the disk no clip is written (gigabytes)."
    )

    @property
    def enabled(self) -> bool:
        """Whether anything is to be written at all."""
        return self.snapshots or self.clips

    @property
    def folder(self) -> Path:
        """Where snapshots and clips go."""
        if self.dir is not None:
            return self.dir
        base = os.environ.get("XDG_DATA_HOME")
        if base:
            return Path(base) / "sparsecam" / "media"
        try:
            return Path.home() / ".local" / "share" / "sparsecam" / "media"
        except RuntimeError:  # no home is known
            return _SYSTEM_FOLDER

    @property
    def ring_s(self) -> float:
        """How long packets are kept (seconds)."""
        return self.late_s + (self.pre_roll_s if self.clips else 0.0)

    @property
    def ring_bytes(self) -> int:
        """How many bytes of packets are kept per camera."""
        return self.ring_mb * 1_000_000

    @property
    def max_bytes(self) -> int:
        """Total size of snapshots and clips."""
        return int(self.max_gb * _GB)

    @property
    def min_free_bytes(self) -> int:
        """Room on the disk below which no clip is written."""
        return int(self.min_free_gb * _GB)
