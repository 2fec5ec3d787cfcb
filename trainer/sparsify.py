"""Prunes and quantises a network while it trains, as a recipe says. The only importer of SparseML, which applies it.

SparseML 1.8.0 is unmaintained; what is mended here of it is said where it is done, and in docs/decisions.md.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer import recipes
from trainer.errors import ExtraMissing, RecipeError
from trainer.quantised import is_quantised, own_layers
from trainer.recipes import Modifier, Recipe, read_recipe

__all__ = ["Sparsifier", "apply_structure", "plain_name", "plain_state", "prune_at_once", "read_recipe", "sparsity"]

_PRUNES = "PruningModifier"
_QUANTISES = "QuantizationModifier"
_SETS_LR = ("LearningRateModifier", "LearningRateFunctionModifier")
_BEFORE = -1.0  # every epoch
_EVERYTHING = ("__ALL__", "__ALL_PRUNABLE__")


class Sparsifier:
    """A recipe at work on a network and its optimizer.

    Call `step` instead of the optimizer's; pruning and quantisation happen in it, when their epochs come. Weights must
    be in the network before the first step: masks are made from them.
    """

    def __init__(
        self, recipe: str, network: nn.Module, optimizer: Optimizer, *, steps_per_epoch: int, epoch: float = 0
    ) -> None:
        """`recipe`: text of `read_recipe`. `epoch`: where training goes on; a network that was quantised by then must
        have been through `apply_structure`. Raises RecipeError where the recipe does not fit the network.
        """
        self.optimizer = optimizer
        self._network, self._steps_per_epoch, self._epoch = network, steps_per_epoch, float(epoch)
        parsed = recipes.parse(recipe)
        self._facts = Facts(parsed)
        self._manager = _manager(_for_network(parsed, network))
        was = is_quantised(network)
        if was:
            _take_as_done(self._manager)
        # At an epoch that quantises, a start there would do so at once; a run that was not interrupted does in a step.
        _start(self._manager, network, _BEFORE)
        if is_quantised(network) and not was:
            _finish_quantising(network, self._facts)

    @property
    def epochs(self) -> int:
        """How many the recipe wants."""
        return self._facts.epochs

    @property
    def quantises_at(self) -> float | None:
        """The epoch from which the network is quantised; None: never."""
        return self._facts.quantises_at

    @property
    def prunes(self) -> bool:
        """Whether weights are made zero, or kept so."""
        return self._facts.prunes

    @property
    def sets_lr(self) -> bool:
        """Whether the recipe has the learning rate in hand."""
        return self._facts.sets_lr

    def quantised(self, _: float = 0) -> bool:
        """Whether the network is quantised by now: from the first step of the epoch that the recipe names."""
        return is_quantised(self._network)

    def complete(self, epoch: float) -> bool:
        """Whether a network after the epoch of this number (from 0) is as sparse and quantised as it will be."""
        return epoch >= self._facts.complete_from

    def step(self, scaler: torch.amp.GradScaler | None = None, *, epoch: float | None = None) -> None:
        """The optimizer's step, and what the recipe does at this point.

        `epoch`: how far training is, with its fraction; without it steps are counted.
        """
        at = self._epoch if epoch is None else epoch
        was = is_quantised(self._network)
        state = (self._network, self.optimizer, at, self._steps_per_epoch)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in `_start`
            self._manager.update(*state, log_updates=False)
        if is_quantised(self._network) and not was:
            _finish_quantising(self._network, self._facts)
        self._manager.optimizer_pre_step(*state)
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
        self._manager.optimizer_post_step(*state)
        self._epoch = at + 1 / self._steps_per_epoch

    @torch.no_grad()
    def hold(self, network: nn.Module) -> None:
        """Make the weights zero in `network`, an average of this one, that are masked here.

        An average only comes near the zeros of what it averages. Call after each update of it.
        """
        others = {plain_name(name): parameter for name, parameter in network.named_parameters()}
        for name, mask in self._masks():
            others[name].mul_(mask)

    def end(self) -> None:
        """Training is over: take the hooks off the network. What was pruned and quantised stays."""
        self._manager.finalize(self._network)

    def _masks(self) -> Iterator[tuple[str, Tensor]]:
        for modifier in self._manager.iter_modifiers():
            masks = getattr(modifier, "module_masks", None)
            if masks is None or not masks.enabled:
                continue
            for layer, name, mask in zip(masks.layer_names, masks.param_names, masks.param_masks, strict=True):
                yield plain_name(f"{layer}.{name}"), mask


class Facts:
    """What a recipe says of its course."""

    def __init__(self, recipe: Recipe) -> None:
        pruning, quantising = recipe.of_kind(_PRUNES), recipe.of_kind(_QUANTISES)
        ranges = [float(one.values["end_epoch"]) for one in recipe.of_kind("EpochRangeModifier")]
        ends = [float(one.values.get("end_epoch", -1)) for one in recipe.modifiers]
        self.epochs = round(max(ranges or ends or [0]))
        if self.epochs < 1:
            raise RecipeError(f"{recipe.name}: no end; expected an `!EpochRangeModifier` with its end_epoch")
        self.prunes = bool(pruning)
        self.sets_lr = any(recipe.of_kind(kind) for kind in _SETS_LR)
        self.quantises_at = float(quantising[0].values.get("start_epoch", 0)) if quantising else None
        scheme = quantising[0].values.get("scheme") if quantising else None
        weights = (scheme.get("weights") if isinstance(scheme, dict) else None) or {}
        self.by_channel = weights.get("strategy") == "channel"
        # A constant mask ends with the training, a gradual one is at its goal when it ends.
        gradual = [float(one.values.get("end_epoch", -1)) for one in pruning if not one.kind.startswith("Constant")]
        self.complete_from = max([0.0, *gradual, self.quantises_at or 0.0])

    @property
    def ever_complete(self) -> bool:
        """Whether an epoch is as sparse and quantised as the end, so that it may be the best one; they count from 0."""
        return self.complete_from <= self.epochs - 1


def apply_structure(network: nn.Module, recipe: str, epoch: float) -> None:
    """Give the network the layers it has after `epoch` epochs of a recipe, so that a checkpoint's weights fit."""
    parsed = recipes.parse(recipe)
    facts = Facts(parsed)
    # A checkpoint is of the end of its last epoch, before the first step of the next one.
    if facts.quantises_at is None or epoch <= facts.quantises_at or is_quantised(network):
        return
    manager = _manager(Recipe(parsed.name, "", {}, parsed.of_kind(_QUANTISES)))
    training = network.training
    network.train()  # PyTorch folds normalisations away for good in a network that is not
    _start(manager, network, epoch)
    _finish_quantising(network, facts)
    if any(one.values.get("freeze_bn_stats_epoch") is not None for one in parsed.of_kind(_QUANTISES)):
        manager.update(network, None, epoch, 1, log_updates=False)
    network.train(training)


def prune_at_once(network: nn.Module, recipe: str) -> None:
    """Make weights zero as they would be at the end of a recipe's pruning, by size alone. In place."""
    parsed = recipes.parse(recipe)
    manager = _manager(_for_network(Recipe(parsed.name, "", {}, parsed.of_kind(_PRUNES)), network))
    # Infinity is SparseML's word for "the end, at once".
    _start(manager, network, float("inf"))
    manager.finalize(network)


def sparsity(network: nn.Module) -> dict[str, float]:
    """Share of zeros of each convolution's weights (0..1), by the layer's name."""
    return {
        plain_name(name): float((module.weight == 0).float().mean())
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    }


def plain_name(name: str) -> str:
    """A weight's or layer's name as it was before quantisation."""
    return re.sub(r"\.conv\.module\.bn\b", ".bn", name.removeprefix("module.")).replace(".conv.module", ".conv")


def plain_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a quantised network's state_dict by the names they had before; ranges and counters left out."""
    found = {plain_name(name): value for name, value in state.items()}
    helpers = ("fake_quant", "activation_post_process", ".quant.")
    return {name: value for name, value in found.items() if not any(helper in name for helper in helpers)}


def _for_network(recipe: Recipe, network: nn.Module) -> Recipe:
    """The recipe with the names of this network's parameters instead of patterns, quantisation last.

    A quantised network has other names. Quantisation last: pruning must find its layers before they are replaced.
    """
    known = {plain_name(name): name for name, _ in network.named_parameters()}
    changed = [_with_names(one, known, recipe.name) if one.kind.endswith(_PRUNES) else one for one in recipe.modifiers]
    changed.sort(key=lambda one: one.kind.endswith(_QUANTISES))
    return Recipe(recipe.name, "", {}, changed)


def _with_names(modifier: Modifier, known: dict[str, str], recipe: str) -> Modifier:
    values = dict(modifier.values)
    goals = values.get("final_sparsity")
    if isinstance(goals, dict):
        values["final_sparsity"] = {goal: _matches(patterns, known, recipe) for goal, patterns in goals.items()}
    elif values.get("params") not in _EVERYTHING:
        values["params"] = _matches(values.get("params", []), known, recipe)
    return Modifier(modifier.kind, values)


def _matches(patterns: object, known: dict[str, str], recipe: str) -> list[str]:
    try:
        matched = recipes.matching(patterns, known)
    except RecipeError as error:
        raise RecipeError(f"{recipe}: {error}") from error
    found: list[str] = []
    for pattern, hits in matched.items():
        if not hits:
            raise RecipeError(
                f"{recipe}: {pattern} is no parameter of this network; expected names like model.1.conv.weight, "
                "or patterns like re:model\\.[1-9]\\..*conv\\.weight. `sparsecam recipes lint` shows what matches"
            )
        found += [known[plain] for plain in hits if known[plain] not in found]
    return found


def _manager(recipe: Recipe) -> Any:
    _mend()
    from sparseml.pytorch.optim import ScheduledModifierManager

    try:
        return ScheduledModifierManager.from_yaml(recipes.to_yaml(recipe))
    except Exception as error:  # SparseML raises whatever its parser and its modifiers do
        raise RecipeError(f"{recipe.name}: SparseML does not take it: {str(error)[:500]}") from error


def _start(manager: Any, network: nn.Module, epoch: float) -> None:
    from sparseml.pytorch.utils.logger import LambdaLogger, LoggerManager

    # An empty list of loggers means "write a folder sparse_logs here" to it.
    silent = LoggerManager([LambdaLogger(lambda *_, **__: True)], log_python=False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch's quantisation, of its age; the version is pinned
            manager.initialize(network, epoch, loggers=silent)
    except Exception as error:  # as in `_manager`
        raise RecipeError(f"the recipe cannot be applied: {str(error)[:500]}") from error


def _take_as_done(manager: Any) -> None:
    """The network has its quantised layers already: the modifier must not put them in again."""
    for modifier in manager.iter_modifiers():
        if type(modifier).__name__.endswith(_QUANTISES):
            modifier._qat_enabled = True


def _finish_quantising(network: nn.Module, facts: Facts) -> None:
    own_layers(network, by_channel=facts.by_channel)


def _mend() -> None:
    """Import SparseML and repair what keeps it from working with this PyTorch."""
    # Read at import: without it the package reports its use to its maker's servers.
    os.environ["NM_DISABLE_ANALYTICS"] = "1"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pkg_resources, which it imports
            from sparseml.pytorch.sparsification.quantization import quantization_scheme
    except ImportError as error:
        raise ExtraMissing(f"recipes want the extra: pip install 'sparsecam[train]' ({error})") from error
    if quantization_scheme._get_qconfig is _qconfig:
        return
    # It hangs its scheme on PyTorch's QConfig, which takes no attributes any more.
    _ORIGINAL["qconfig"] = quantization_scheme._get_qconfig
    quantization_scheme._get_qconfig = _qconfig


_ORIGINAL: dict[str, Any] = {}


class _QConfig(torch.ao.quantization.QConfig):
    """PyTorch's, with room for an attribute."""

    quantization_scheme: Any = None


def _qconfig(*args: Any) -> _QConfig:
    return _QConfig(*_ORIGINAL["qconfig"](*args))  # type: ignore[no-untyped-call]  # as PyTorch ships it
