"""What the rules of a config name that is not there: cameras, zones, lines, classes; each at its place in the file."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from pydantic import BaseModel

from services.config_errors import nearest
from services.yaml_source import KeyPath, Problem, Source, dotted
from sink.rules import Slip, slips
from sink.settings import RuleSettings, SceneSettings

# How many names to list when none is near: a screen line, not a page.
LISTED_NAMES = 12


def rule_problems(
    cameras: Mapping[str, BaseModel],
    scenes: Mapping[str, SceneSettings],
    rules: Mapping[str, RuleSettings],
    source: Source,
) -> list[Problem]:
    """Scenes of unknown cameras, rules of unknown cameras, and rules whose zone, line or ground a camera lacks."""
    problems = []
    for camera in scenes:
        if camera not in cameras:
            path: KeyPath = ("scenes", camera)
            text = f"{dotted(path)}: no camera {camera!r}{_hint(camera, cameras, 'cameras')}"
            problems.append(Problem(source.place(path, key=True), text))
    for name, rule in rules.items():
        named = [] if rule.cameras == "*" else rule.cameras
        for index, camera in enumerate(named):
            if camera not in cameras:
                path = ("rules", name, "cameras", index)
                text = f"{dotted(path)}: no camera {camera!r}{_hint(camera, cameras, 'cameras')}"
                problems.append(Problem(source.place(path), text))
        watched = [camera for camera in cameras if rule.watches(camera)]
        problems += _unmet(name, rule, watched, scenes, source)
    return problems


def class_problems(rules: Mapping[str, RuleSettings], classes: Mapping[int, str], source: Source) -> list[Problem]:
    """Labels of rules that no object of the model's will have; `classes` are its names by number."""
    problems = []
    named = {str(number): name for number, name in classes.items()}
    for name, rule in rules.items():
        for index, label in enumerate(rule.labels):
            # Only a class without a name is called by its number.
            if label in classes.values() or (label.isdecimal() and label not in named):
                continue
            path: KeyPath = ("rules", name, "labels", index)
            hint = f"; class {label} is called {named[label]!r}" if label in named else ""
            text = f"{dotted(path)}: the model has no class {label!r}{hint or _hint(label, classes.values(), '')}"
            problems.append(Problem(source.place(path), text))
    return problems


def _unmet(
    name: str, rule: RuleSettings, cameras: list[str], scenes: Mapping[str, SceneSettings], source: Source
) -> Iterator[Problem]:
    """One problem for each thing that is lacking, with all the cameras that lack it."""
    lacking: dict[str, tuple[Slip, list[str]]] = {}
    for camera in cameras:
        for slip in slips(rule, scenes.get(camera) or SceneSettings()):
            lacking.setdefault(slip.kind, (slip, []))[1].append(camera)
    for slip, without in lacking.values():
        path: KeyPath = ("rules", name, slip.setting)
        those = f"camera{'s' if len(without) > 1 else ''} {', '.join(map(repr, without[:LISTED_NAMES]))}"
        those += f" and {len(without) - LISTED_NAMES} more" if len(without) > LISTED_NAMES else ""
        section = f"scenes.{without[0]}.{slip.kind if slip.kind == 'ground' else slip.kind + 's'}"
        if slip.kind == "ground":
            text = f"{dotted(path)}: {those} cannot measure speed; expected four ground points under `{section}`"
        else:
            text = f"{dotted(path)}: {those}: no {slip.kind} {slip.named!r}{_hint(slip.named, slip.known, section)}"
        yield Problem(source.place(path), text)


def _hint(word: str, names: Collection[str], section: str) -> str:
    near = nearest(word, names)
    if near:
        return f"; did you mean {near!r}?"
    if section:
        return f"; expected a name under `{section}`"
    listed = ", ".join(sorted(names)[:LISTED_NAMES]) + (", ..." if len(names) > LISTED_NAMES else "")
    return f"; expected one of: {listed}"
