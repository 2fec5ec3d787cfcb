"""What the demo makes of its simulated street: the model that knows it, and what is worth an alert there."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ingest.sim.scene_url import SceneSpec, parse
from ingest.sim.street import FAR_KERB_M, NEAR_KERB_M, View, zebra_x_m
from services.model_names import registry_folders
from trainer.registry import Entry, entries

PREFIX = "street-"  # of the names of models that were trained on the simulated street
ZEBRA_HALF_M = 2.0  # the crossing's stripes with a step to either side
# Where the line across the road lies: far enough from the middle of the crossing that nobody crosses both at once.
LINE_FROM_ZEBRA_M = 4.0

RULES: dict[str, dict[str, Any]] = {
    "person-on-crossing": {"kind": "zone", "zone": "crossing", "labels": ["person"], "cooldown_s": 5},
    "car-passes": {"kind": "line", "line": "road", "labels": ["car"], "cooldown_s": 5},
    "bicycle": {"kind": "presence", "by": "track", "labels": ["bicycle"], "cooldown_s": 5},
}


def is_street(source: str) -> bool:
    """Whether a source is the simulated street (none: the demo's own cameras, which are)."""
    return not source or source.startswith("sim://")


def street_model() -> tuple[Entry | None, list[str]]:
    """The fastest model of the street, if there is one, and what is wrong with those that cannot be used."""
    found = [entry for entry in entries(registry_folders(Path("models"))) if entry.name.startswith(PREFIX)]
    whole = [(entry.card.measured.speed.ms, entry) for entry in found if entry.card and not entry.problem]
    return min(whole, key=lambda one: one[0])[1] if whole else None, [one.problem for one in found if one.problem]


def street_rules(sources: Mapping[str, str], classes: Collection[str], min_score: float) -> dict[str, Any]:
    """The config's `scenes` and `rules` for simulated cameras, as far as the model knows the classes."""
    rules = {
        name: {**rule, "min_score": min_score} for name, rule in RULES.items() if set(rule["labels"]) <= set(classes)
    }
    return {"scenes": {name: _scene(parse(url)) for name, url in sources.items()}, "rules": rules} if rules else {}


def _scene(spec: SceneSpec) -> dict[str, Any]:
    """The crossing as a zone and a line across the road, where this camera sees them."""
    view, zebra_m = View(spec.width, spec.height), zebra_x_m(spec)

    def at(x_m: float, z_m: float) -> list[float]:
        """A place on the road as fractions of the picture, at its edge where it lies outside."""
        x, y = view.x(x_m, z_m) / view.width, view.y(z_m) / view.height
        return [round(min(max(x, 0.0), 1.0), 4), round(min(max(y, 0.0), 1.0), 4)]

    left_m, right_m = zebra_m - ZEBRA_HALF_M, zebra_m + ZEBRA_HALF_M
    corners = [(left_m, FAR_KERB_M), (right_m, FAR_KERB_M), (right_m, NEAR_KERB_M), (left_m, NEAR_KERB_M)]
    line_m = zebra_m - math.copysign(LINE_FROM_ZEBRA_M, zebra_m)  # on the side of the picture with more road
    return {
        "zones": {"crossing": [at(*corner) for corner in corners]},
        "lines": {"road": [at(line_m, FAR_KERB_M), at(line_m, NEAR_KERB_M)]},
    }
