"""A checkpoint as data: weights by name, and what they tell of their network; and the network built from it.

Read are the public YOLOv5 v6 and v7 checkpoints (the pickled network under `ema` or `model`) and plain ones: a
state_dict, alone or in a dictionary under `ema`, `model` or `state_dict`, beside it optionally `names` (class names),
`activation` ("silu", the default, or "hardswish") and `image_size` ([height, width]). Our own of a quantised network
say by `recipe` and `recipe_epoch` as well which layers it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from trainer.errors import CheckpointError
from trainer.layers import Activation
from trainer.model import COCO_ANCHORS, SIZES, STRIDES, YoloV5
from trainer.unpickle import Shell, unpickle

# Public YOLOv5 with three levels are trained and published at this size, and their checkpoints do not say it.
_PUBLISHED_SIZE = (640, 640)
_DEPTH_LIMIT = 16  # of modules inside modules; YOLOv5 has six
_ANCHORS = "model.24.anchors"
_HEAD = "model.24.m.0.weight"
_BLOCKS = (2, 4, 6, 8)  # the backbone's C3 blocks, whose repeats tell the depth
_QUANTISED = ".conv.module."  # in the names of a quantised convolution's weights
_KNOWN = "expected YOLOv5 v6 or v7 with three levels, of size " + ", ".join(SIZES)


@dataclass(frozen=True)
class Quantised:
    """What made a network's layers other than those it began with."""

    recipe: str  # its text
    epoch: float  # finished epochs of it


@dataclass(frozen=True)
class Checkpoint:
    """Weights of one network (fp32, by the names of `YoloV5.state_dict`), and what it is."""

    name: str  # the file's, for people
    state: dict[str, Tensor]
    size: str  # a key of SIZES
    classes: int
    activation: Activation
    labels: dict[int, str] | None
    strides: tuple[int, ...]  # pixels
    image_size: tuple[int, int]  # (height, width) in pixels
    quantised: Quantised | None = None
    folded: bool = False  # its normalisations are inside its convolutions (`trainer.from_onnx`)


def read_checkpoint(data: bytes, name: str) -> Checkpoint:
    """Understand the bytes of a `torch.save` file; raises CheckpointError saying what is wrong with them."""
    saved = unpickle(data, name)
    facts = saved if isinstance(saved, dict) else {}
    # The running average of the weights is what is evaluated and published; without one, the weights themselves.
    network = next((facts[key] for key in ("ema", "model", "state_dict") if facts.get(key) is not None), saved)
    if isinstance(network, Shell):
        state = dict(_tensors(network, name))
        activation = _shell_activation(network, name)
        labels, strides = network.get("names"), network.get("stride")
    elif isinstance(network, dict) and network and all(isinstance(value, Tensor) for value in network.values()):
        # Saved from inside DistributedDataParallel every name begins with `module.`.
        state = {str(key).removeprefix("module."): value for key, value in network.items()}
        activation, labels, strides = facts.get("activation", "silu"), facts.get("names"), None
    else:
        raise CheckpointError(f"{name}: no network in it, found {_found(saved)}; {_KNOWN}, or its state_dict")
    if activation not in ("silu", "hardswish"):
        raise CheckpointError(f"{name}: activation {activation!r}; expected silu or hardswish")
    quantised = _quantised(facts, name) if has_quantised_layers(state) else None
    size, classes = structure(_plain(state) if quantised else state, name)
    _check_strides(strides, name)
    return Checkpoint(
        name=name,
        state={key: value.float() if value.is_floating_point() else value for key, value in state.items()},
        size=size,
        classes=classes,
        activation=cast("Activation", activation),
        labels=parse_labels(labels, classes, name),
        strides=STRIDES,
        image_size=_image_size(facts.get("image_size"), name),
        quantised=quantised,
    )


def build(checkpoint: Checkpoint) -> YoloV5:
    """The network with these weights, in eval mode; raises CheckpointError where one is missing or too many.

    Of a quantised one it raises RecipeError and ExtraMissing as well: its layers are made by its recipe.
    """
    network = YoloV5(SIZES[checkpoint.size], checkpoint.classes, activation=checkpoint.activation)
    if checkpoint.quantised is not None:
        from trainer.sparsify import apply_structure

        apply_structure(network, checkpoint.quantised.recipe, checkpoint.quantised.epoch)
    # Older checkpoints keep the anchors in pixels beside those in cells.
    state = {key: value for key, value in checkpoint.state.items() if key != "model.24.anchor_grid"}
    wanted = network.state_dict()
    missing, strange = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    # Not everybody keeps the count of batches, which inference does not use.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    wrong = [key for key in wanted.keys() & state.keys() if wanted[key].shape != state[key].shape]
    for keys, what in ((missing, "are missing"), (strange, "are of no layer"), (sorted(wrong), "have another shape")):
        if keys:
            raise CheckpointError(
                f"{checkpoint.name}: {len(keys)} weights {what}, the first {keys[0]}; {_KNOWN}, not fused"
            )
    network.load_state_dict({**wanted, **state}, strict=True)
    return network.eval()


def has_quantised_layers(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of a network that was quantised, by their names."""
    return any(_QUANTISED in key for key in state)


def plain_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Its weights by the names of a network that is not quantised; what only quantised layers have is left out."""
    return _plain(checkpoint.state) if checkpoint.quantised else checkpoint.state


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    from trainer.sparsify import plain_state

    return plain_state(state)


def _quantised(facts: Mapping[str, Any], name: str) -> Quantised:
    # Epochs of its recipe: those of the training, which `progress` counts, unless it was quantised after it.
    recipe, epoch = facts.get("recipe"), facts.get("recipe_epoch", _mapping(facts.get("progress")).get("epoch"))
    if not isinstance(recipe, str) or not isinstance(epoch, int | float):
        raise CheckpointError(
            f"{name}: quantised, but it does not say by which `recipe` and how many epochs of it; expected a "
            "checkpoint of `sparsecam train`"
        )
    return Quantised(recipe, epoch)


def _tensors(shell: Shell, name: str, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a pickled module and those inside it, by their full names."""
    if depth > _DEPTH_LIMIT:
        raise CheckpointError(f"{name}: modules lie more than {_DEPTH_LIMIT} deep in one another; {_KNOWN}")
    for kind in ("_parameters", "_buffers"):
        for key, value in _mapping(shell.get(kind)).items():
            if isinstance(value, Tensor):
                yield f"{prefix}{key}", value
    for key, module in _mapping(shell.get("_modules")).items():
        if isinstance(module, Shell):
            yield from _tensors(module, name, f"{prefix}{key}.", depth + 1)


def _shell_activation(network: Shell, name: str) -> str:
    """The activation of the first layer; `_tensors` has made sure that there is an end to the modules."""
    kinds: set[str] = set()
    todo = [network]
    while todo:
        shell = todo.pop()
        modules = _mapping(shell.get("_modules"))
        if isinstance(modules.get("act"), Shell):
            kinds.add(modules["act"].kind.lower())
        todo += [module for module in modules.values() if isinstance(module, Shell)]
    if len(kinds) != 1:
        raise CheckpointError(f"{name}: activations {sorted(kinds)}; expected one kind, silu or hardswish")
    return kinds.pop()


def structure(state: Mapping[str, Tensor], name: str) -> tuple[str, int]:
    """(size, classes) by the shapes of the weights."""
    for key, dims in (("model.0.conv.weight", 4), (_HEAD, 4), (_ANCHORS, 3)):
        if key not in state or state[key].dim() != dims:
            raise CheckpointError(f"{name}: no weights {key} of {dims} dimensions among {len(state)}; {_KNOWN}")
    channels = state["model.0.conv.weight"].shape[0]
    repeats = [
        sum(key.startswith(f"model.{n}.m.") and key.endswith("cv1.conv.weight") for key in state) for n in _BLOCKS
    ]
    levels, anchors, _ = state[_ANCHORS].shape
    columns, left = divmod(state[_HEAD].shape[0], anchors)
    published = tuple(torch.tensor(COCO_ANCHORS).shape[:2])
    if (levels, anchors) != published or left or columns < 6:
        raise CheckpointError(
            f"{name}: {levels} levels of {anchors} anchors, {state[_HEAD].shape[0]} outputs a cell; {_KNOWN}, with "
            "3 anchors of 5 + classes outputs a level"
        )
    for label, size in SIZES.items():
        if channels == size.channels(64) and repeats == [size.repeats(full) for full in (3, 6, 9, 3)]:
            return label, columns - 5
    raise CheckpointError(f"{name}: {channels} channels and blocks of {repeats} bottlenecks; {_KNOWN}")


def _check_strides(strides: object, name: str) -> None:
    if strides is None:
        return
    found = strides.flatten().tolist() if isinstance(strides, Tensor) else strides
    if found != list(STRIDES):
        raise CheckpointError(f"{name}: strides {found}; expected {list(STRIDES)}")


def parse_labels(names: object, classes: int, name: str) -> dict[int, str] | None:
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        return None
    if not all(isinstance(key, int) and 0 <= key < classes for key in names):
        raise CheckpointError(f"{name}: {len(names)} class names; the head has classes 0 to {classes - 1}")
    return {key: str(value) for key, value in names.items()}


def _image_size(value: object, name: str) -> tuple[int, int]:
    if value is None:
        return _PUBLISHED_SIZE
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(one, int) and one > 0 for one in value):
        return int(value[0]), int(value[1])
    raise CheckpointError(f"{name}: image_size {value!r}; expected [height, width] in pixels")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _found(saved: object) -> str:
    if isinstance(saved, dict):
        return f"a dictionary of {', '.join(map(str, list(saved)[:10])) or 'nothing'}"
    return f"a {getattr(saved, 'kind', '') or type(saved).__name__}"
