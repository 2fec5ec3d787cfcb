"""What a rule names that a camera's scene does not have."""

from __future__ import annotations

from dataclasses import dataclass

from sink.rule_settings import LineRule, RuleSettings, SpeedRule
from sink.scene import SceneSettings


@dataclass(frozen=True)
class Slip:
    """A setting of a rule that cannot be met on a camera."""

    setting: str  # its name in the rule
    named: str  # what it names
    kind: str  # what that should be: zone, line, ground
    known: tuple[str, ...]  # the names there are


def slips(rule: RuleSettings, scene: SceneSettings) -> list[Slip]:
    """Everything that `rule` needs of a camera and its scene lacks; empty where the rule can run."""
    found = []
    if rule.zone and rule.zone not in scene.zones:
        found.append(Slip("zone", rule.zone, "zone", tuple(scene.zones)))
    if isinstance(rule, LineRule) and rule.line not in scene.lines:
        found.append(Slip("line", rule.line, "line", tuple(scene.lines)))
    if isinstance(rule, SpeedRule) and scene.ground is None:
        found.append(Slip("kind", "speed", "ground", ()))
    return found
