"""The gate: whether what was measured of a model lets it into the registry."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from trainer.card import Measured


class GateSettings(BaseModel):
    """What a model may lose against its baseline, and what it must gain on its dense form."""

    model_config = ConfigDict(extra="forbid")

    # The published pruned + quantised models keep about 97 % of a baseline of 0.85 to 0.90.
    max_map_drop: float = Field(
        default=0.025,
        ge=0,
        le=1,
        description="A model must have lost less than this against its baseline (mAP at IoU 0.5, 0 to 1).",
    )
    # Two measurements of one model on a busy machine differ by some per cent: less is no gain that anybody can see.
    min_speedup: float = Field(
        default=1.05,
        ge=1,
        le=100,
        description="A model must be more than this many times as fast as its dense form on this CPU (times).",
    )


def refusals(measured: Measured, limits: GateSettings) -> list[str]:
    """Why the model may not enter, each with both of its figures; empty: it may."""
    found = []
    score, baseline, speed = measured.scores[0], measured.baseline, measured.speed
    if not measured.map_drop < limits.max_map_drop:
        found.append(
            f"mAP@0.5 is {score.map50:.4f} on {score.engine} and {baseline.map50:.4f} for the baseline "
            f"({baseline.file} on {baseline.engine}): {measured.map_drop:.4f} lost; less than {limits.max_map_drop:g} "
            "is allowed"
        )
    if not speed.ratio > limits.min_speedup:
        found.append(
            f"a picture takes {speed.ms:.2f} ms and {speed.dense_ms:.2f} ms with the dense model ({speed.dense}) on "
            f"{speed.engine}: {speed.ratio:.2f} times as fast; more than {limits.min_speedup:g} is wanted"
        )
    return found
