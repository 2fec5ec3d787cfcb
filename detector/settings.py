"""Settings of the detector workers."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from wire.paths import MaybePath

EngineChoice = Literal["auto", "deepsparse", "openvino", "onnxruntime", "torch"]


class DetectorSettings(BaseModel):
    """Which model detects, on which engine and cores, and what counts as a detection."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str = Field(
        default="",
        description="Path of the ONNX model or of a YOLOv5 checkpoint (.pt, engine torch), or a model's name in the "
        "registry; empty: no detection.",
    )
    engine: EngineChoice = Field(
        default="auto",
        description="Inference engine; `auto`: of those installed, the one that runs the model fastest here.",
    )
    workers: int | Literal["auto"] = Field(
        default="auto", description="Worker processes; `auto`: as many as the usable cores hold (processes)."
    )
    cores_per_worker: int = Field(
        default=1, ge=1, le=256, description="Physical cores each worker claims and pins (cores)."
    )
    conf_thres: float = Field(default=0.25, ge=0, lt=1, description="Candidates must score above this (0..1).")
    iou_thres: float = Field(
        default=0.45,
        ge=0,
        le=1,
        description="A box that overlaps a better one of its class by more is dropped (IoU, 0..1).",
    )
    max_detections: int = Field(
        default=300, ge=1, le=10_000, description="Detections kept per frame, best first (boxes)."
    )
    labels: list[str] | dict[int, str] | None = Field(
        default=None, description="Class names, in class order or by class number; empty: the model's own metadata."
    )
    image_shape: tuple[int, int] | None = Field(
        default=None, description="Largest input picture [height, width]; empty: the model's own (pixels)."
    )
    rectangular: bool = Field(
        default=True,
        description="Let cameras send less than the full shape, padded to the stride, where the model bears it.",
    )
    warm_shapes: list[tuple[int, int]] = Field(
        default=[],
        max_length=16,
        description="Shapes [height, width] to compile at start; empty: that of 16:9 cameras, else the full (pixels).",
    )
    shapes_cached: int = Field(
        # Cameras of a site have up to six forms (16:9, 4:3, 5:4, 1:1, and 16:9 and 4:3 upright); one that is not kept
        # is compiled again for each of its frames.
        default=8,
        ge=1,
        le=32,
        description="Compiled shapes kept in memory; the least recently used goes first (shapes).",
    )
    batch: int | Literal["auto"] = Field(
        default="auto",
        description="Frames inferred at once when so many wait; `auto`: 4 or 2 where measurements favour it; always 1 "
        "for models with NMS inside (frames).",
    )
    trial_timeout_s: float = Field(
        default=120, gt=0, le=3600, description="Time limit of the child process that tries the model first (seconds)."
    )
    inference_timeout_s: float = Field(
        default=10,
        gt=0,
        le=600,
        description="A worker whose inference takes longer is held to hang and is replaced (seconds).",
    )
    cache_dir: MaybePath = Field(
        default=None,
        description="Folder for verdicts of trials; empty: $XDG_CACHE_HOME/sparsecam or ~/.cache/sparsecam.",
    )

    @property
    def names(self) -> dict[int, str]:
        """`labels` by class number; none where they are the model's own."""
        return dict(enumerate(self.labels)) if isinstance(self.labels, list) else self.labels or {}

    @field_validator("workers")
    @classmethod
    def _some_workers(cls, value: int | str) -> int | str:
        if isinstance(value, int) and not 1 <= value <= 1024:
            raise ValueError("expected `auto` or 1 to 1024 workers")
        return value

    @field_validator("batch")
    @classmethod
    def _some_frames(cls, value: int | str) -> int | str:
        if isinstance(value, int) and not 1 <= value <= 32:
            raise ValueError("expected `auto` or 1 to 32 frames")
        return value

    @field_validator("image_shape", "warm_shapes")
    @classmethod
    def _sane_shapes(
        cls, value: tuple[int, int] | list[tuple[int, int]] | None
    ) -> tuple[int, int] | list[tuple[int, int]] | None:
        shapes = [] if value is None else [value] if isinstance(value, tuple) else value
        for height, width in shapes:
            # 32 is the smallest stride of any head; 8192 keeps one float32 tensor under 1 GB.
            if not (32 <= height <= 8192 and 32 <= width <= 8192):
                raise ValueError(f"expected [height, width] of 32 to 8192 pixels, found [{height}, {width}]")
        return value
