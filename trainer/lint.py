"""Checks a recipe against a network before epoch 0: everything that would fail, or do nothing, hours later."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from trainer.errors import RecipeError
from trainer.recipes import Modifier, Recipe, matching

_KINDS = {
    "EpochRangeModifier",
    "GMPruningModifier",
    "MagnitudePruningModifier",
    "GlobalMagnitudePruningModifier",
    "ConstantPruningModifier",
    "QuantizationModifier",
    "SetLearningRateModifier",
    "LearningRateFunctionModifier",
}
_ALL = ("__ALL__", "__ALL_PRUNABLE__")
# Names for what YOLOv5's layers may be in other sizes and with other activations: no mistake where they are missing.
_TYPES = {"Hardswish", "SiLU", "MaxPool2d", "Upsample", "Concat", "Detect"}


@dataclass(frozen=True)
class Finding:
    """One thing said of a recipe; `where` is the modifier, counted from 1 as they stand in it."""

    level: Literal["error", "warning"]
    where: str
    what: str


@dataclass(frozen=True)
class Report:
    """All findings, and what the recipe will do to this network."""

    findings: list[Finding]
    goals: dict[str, float]  # share of zeros at the end, by parameter
    zeros: float  # of all weights of convolutions (0..1)

    @property
    def good(self) -> bool:
        """Whether training can begin."""
        return not any(finding.level == "error" for finding in self.findings)


def lint(recipe: Recipe, network: nn.Module) -> Report:
    """Look a recipe over for this network, which is left as it is."""
    shapes = {
        f"{name}.weight": tuple(m.weight.shape) for name, m in network.named_modules() if isinstance(m, nn.Conv2d)
    }
    findings = list(_course(recipe))
    goals: dict[str, float] = {}
    for number, modifier in enumerate(recipe.modifiers, 1):
        where = f"{number}: {modifier.kind}"
        if modifier.kind not in _KINDS:
            findings.append(Finding("warning", where, f"not one of those tried here: {', '.join(sorted(_KINDS))}"))
        if modifier.kind.endswith("PruningModifier"):
            findings += _pruning(modifier, where, shapes, goals)
        if modifier.kind.endswith("QuantizationModifier"):
            findings += _quantising(modifier, where, network)
    total = sum(_count(shape) for shape in shapes.values())
    zeros = sum(goal * _count(shapes[name]) for name, goal in goals.items()) / max(total, 1)
    return Report(findings, goals, zeros)


def _course(recipe: Recipe) -> Iterator[Finding]:
    """Epochs: what lies after the end, and what comes before what it needs."""
    ends = [_number(one, "end_epoch", 0) for one in recipe.of_kind("EpochRangeModifier")]
    if not ends or max(ends) < 1:
        yield Finding("error", "recipe", "no !EpochRangeModifier with an end_epoch of 1 or more: it has no end")
        return
    end = max(ends)
    last = round(end) - 1  # epochs are counted from 0
    pruning, quantising = recipe.of_kind("PruningModifier"), recipe.of_kind("QuantizationModifier")
    if len(quantising) > 1:
        yield Finding("error", "recipe", f"{len(quantising)} quantisation modifiers; expected one at most")
    for number, one in enumerate(recipe.modifiers, 1):
        where, start, stop = f"{number}: {one.kind}", _number(one, "start_epoch", -1), _number(one, "end_epoch", -1)
        if start >= end:
            yield Finding("error", where, f"starts at epoch {start:g}, but training ends at {end:g}")
        if stop > end:
            yield Finding("error", where, f"ends at epoch {stop:g}, but training ends at {end:g}")
        elif (at := _done(one, start, stop)) > last and start < end:
            yield Finding(
                "error",
                where,
                f"is at its goal from epoch {at:g}, but the last is number {last:g}: none could be the best",
            )
        if -1 < stop <= start:
            yield Finding("error", where, f"ends at epoch {stop:g}, not after its start at {start:g}")
        for key in ("freeze_bn_stats_epoch", "disable_quantization_observer_epoch"):
            if key in one.values and (one.values[key] or 0) < start:
                yield Finding("error", where, f"{key} {one.values[key]:g} is before its start at {start:g}")
    for one in pruning:
        stop = _number(one, "end_epoch", -1)
        for other in quantising:
            if stop > _number(other, "start_epoch", 0) and not one.kind.startswith("Constant"):
                yield Finding("warning", "recipe", "pruning goes on after quantisation has begun: both learn worse")
                return


def _done(modifier: Modifier, start: float, stop: float) -> float:
    """The epoch from which the network is as this modifier makes it."""
    if modifier.kind.endswith("QuantizationModifier"):
        return start
    return stop if modifier.kind.endswith("PruningModifier") and not modifier.kind.startswith("Constant") else 0.0


def _pruning(
    modifier: Modifier, where: str, shapes: Mapping[str, tuple[int, ...]], goals: dict[str, float]
) -> Iterator[Finding]:
    block = modifier.values.get("mask_type", "unstructured")
    final = modifier.values.get("final_sparsity")
    if isinstance(block, list) and not all(isinstance(side, int) for side in block):
        yield Finding("error", where, f"mask_type {block!r}; expected whole numbers, such as [1, 4]")
        block = "unstructured"
    constant = modifier.kind.startswith("Constant")
    wanted = list(final.items()) if isinstance(final, dict) else [(final, modifier.values.get("params"))]
    for goal, patterns in wanted:
        if not constant and not (isinstance(goal, int | float) and 0 <= goal < 1):
            yield Finding("error", where, f"final_sparsity {goal!r}; expected a share of zeros from 0 to below 1")
            continue
        try:
            matched = matching(patterns, shapes)
        except RecipeError as error:
            yield Finding("error", where, str(error))
            continue
        for pattern, hits in matched.items():
            names = list(shapes) if pattern in _ALL else hits
            if not names:
                yield Finding("error", where, f"{pattern} matches no weights of this network's convolutions")
            for name in names:
                yield from _blocks(block, name, shapes[name], where)
                if name in goals and not constant:
                    yield Finding("error", where, f"{name} is pruned by an earlier modifier already")
                goals[name] = float(goal) if isinstance(goal, int | float) and not constant else 0.0
    if not constant and _number(modifier, "update_frequency", 1) <= 0:
        yield Finding("warning", where, "update_frequency is not above 0: masks are made anew at every step, slowly")


def _blocks(block: Any, name: str, shape: tuple[int, ...], where: str) -> Iterator[Finding]:
    if block == "block4":
        block = [1, 4]
    if isinstance(block, list) and any(side > 0 and size % side for side, size in zip(block, shape, strict=False)):
        channels = f"{shape[0]} to {shape[1]}"
        yield Finding("error", where, f"blocks of {block} do not divide {name} ({channels} channels, out to in)")


def _quantising(modifier: Modifier, where: str, network: nn.Module) -> Iterator[Finding]:
    known = {name for name, _ in network.named_modules()} | {type(one).__name__ for one in network.modules()} | _TYPES
    ignored = modifier.values.get("ignore") or []
    if not isinstance(ignored, list) or not all(isinstance(name, str) for name in ignored):
        yield Finding("error", where, f"ignore: {ignored!r}; expected a list of names of layers or their types")
        ignored = []
    for name in ignored:
        if name not in known:
            yield Finding("error", where, f"ignore: {name} is neither a layer nor a type of layer of this network")
        # SparseML compares the beginnings of names.
        also = sorted(one for one in known if one.startswith(name) and not re.match(rf"{re.escape(name)}(\.|$)", one))
        if also and name not in _TYPES:
            yield Finding("error", where, f"ignore: {name} is also how {also[0]} begins, which would be left out too")
    if "scheme" not in modifier.values:
        yield Finding(
            "warning", where, "no scheme: SparseML's older modifier also rounds layers' outputs, and is slower"
        )


def _number(modifier: Modifier, key: str, default: float) -> float:
    value = modifier.values.get(key, default)
    return float(value) if isinstance(value, int | float) else default


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count
