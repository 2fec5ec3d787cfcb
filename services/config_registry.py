"""The root config's section `registry`: where models are kept by name, and what it takes to enter."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from trainer.gate import GateSettings
from wire.paths import SomePath


class RegistrySettings(BaseModel):
    """Models by name."""

    model_config = ConfigDict(extra="forbid")

    folder: SomePath = Field(
        default=Path("models"),
        description="Folder of models with their cards, which may be called by name; `sparsecam models add` writes to "
        "it. The models that come with Sparsecam are found as well.",
    )
    gate: GateSettings = Field(
        default_factory=lambda: GateSettings.model_validate({}),
        description="What `sparsecam models add` measures a model against.",
    )
