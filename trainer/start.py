"""From settings, or from a run to go on with, to a `Job` that is ready to train."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.optim import Optimizer

from trainer import anchors
from trainer.checkpoint import Checkpoint, has_quantised_layers
from trainer.data.config import DataConfig, digest, read_data
from trainer.data.dataset import TrainSet, ValSet
from trainer.data.labels import label_path
from trainer.data.pictures import CACHE_BYTES, Pictures, open_pictures
from trainer.device import Place, find_place, is_first
from trainer.distill import Distillation
from trainer.ema import Ema
from trainer.errors import CheckpointError, DataError, RecipeError
from trainer.folder import RunFolder, begin, find_folder, new_folder
from trainer.from_onnx import unfold
from trainer.hyp import Hyp, read_hyp
from trainer.layers import Activation
from trainer.loss import Loss
from trainer.model import SIZES, YoloV5
from trainer.network import head_of, load_checkpoint, set_anchors, start_network
from trainer.optimizer import Schedule, accumulate, make_optimizer
from trainer.outputs import Outputs
from trainer.registry import sha256
from trainer.run import Run
from trainer.saved import Progress, Saved, read_saved
from trainer.settings import TrainSettings, parse_settings
from trainer.train import Job

if TYPE_CHECKING:
    from trainer.sparsify import Sparsifier

Say = Callable[[str], None]

_UNFOLD_PICTURES = 128  # the moments of 57 layers: each sees millions of values by then


@dataclass(frozen=True)
class _Begun:
    """What a new training and a resumed one have both found before the rest can be made."""

    settings: TrainSettings
    hyp: Hyp
    recipe: str | None
    folder: RunFolder
    saved: Saved | None


def prepare_new(settings: TrainSettings, say: Say) -> Job:
    """A training from its first epoch, in a folder of its own; raises TrainerError."""
    recipe = _recipe(settings)
    if recipe is not None:
        settings = settings.model_copy(update={"epochs": recipe_epochs(recipe, settings.recipe)})
    hyp = read_hyp(settings.hyp)
    place = find_place(settings.device, settings.precision)
    config = read_data(settings.data)  # before a folder is made for nothing
    folder = new_folder(settings) if place.first else RunFolder(settings.project / settings.name)
    job = _prepare(_Begun(settings, hyp, recipe, folder, None), place, config, say)
    if place.first:
        begin(folder, settings, hyp)
    return job


def prepare_resumed(path: Path, say: Say, changed: Mapping[str, Any] | None = None) -> Job:
    """Go on with the run in a folder, where its last epoch ended, with `changed` settings of those that are CHANGEABLE.

    Raises TrainerError.
    """
    changed = changed or {}
    folder = find_folder(path)
    if is_first():
        folder.hold()
    saved = read_saved(folder.last)
    try:
        settings = TrainSettings.model_validate(saved.facts["train"])
        # Runs begun before maps were taught go on without.
        hyp = Hyp.model_validate({"distill_maps": 0, **saved.facts["hyp"]})
    except (KeyError, ValidationError) as error:
        raise CheckpointError(f"{folder.last}: its settings cannot be read: {error}") from error
    settings = parse_settings({**settings.model_dump(), **changed})
    if "data" not in changed and not settings.data.exists():
        raise DataError(f"{settings.data}: not there; where the data were moved, give --data beside --resume")
    if "batch_size" in changed:
        saved.progress.batch_size = settings.batch_size
    place = find_place(settings.device, settings.precision)
    say(f"going on with {folder.path} after epoch {saved.progress.epoch - 1}")
    return _prepare(
        _Begun(settings, hyp, saved.facts.get("recipe"), folder, saved), place, read_data(settings.data), say
    )


def _prepare(begun: _Begun, place: Place, config: DataConfig, say: Say) -> Job:
    settings, hyp, saved = begun.settings, begun.hyp, begun.saved
    dataset = digest(config)
    if saved is not None:
        _check_data(begun, saved, config, dataset)
    train_pictures = _pictures(config, "train", settings)
    val_pictures = _pictures(config, "val", settings) if place.first else None
    network, activation, size, source = _network(begun, len(config.names))
    if saved is None and source is not None:
        say(f"weights of {source.name}")
    if saved is None:
        _suit_anchors(network, train_pictures, hyp, settings, say)
    progress = saved.progress if saved else Progress(batch_size=settings.batch_size)
    network.to(place.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    for number in range(settings.freeze):
        network.model[number].requires_grad_(False)
    train_set = TrainSet(train_pictures, hyp, settings.img, settings.seed)
    if saved is None and source is not None and source.folded:
        unfold(network, _first_batches(train_set, progress.batch_size, place))
    if saved is not None:
        _rebuild(network, begun)  # before its teacher is looked at: its anchors may be of its own making
    batches = math.ceil(math.ceil(len(train_set) / place.world) / progress.batch_size)
    distillation = _distillation(network, size, begun, place, say)
    run = _run(network, begun, progress, place, batches, distillation=distillation)
    facts = _facts(begun, config, dataset, activation, size)
    outputs = Outputs(begun.folder, settings, config.names, active=place.first)
    if saved is None:
        outputs.data(train_pictures)
    val_set = ValSet(val_pictures, batch_size=progress.batch_size) if val_pictures is not None else None
    return Job(settings, config.names, run, train_set, val_set, begun.folder, facts, outputs)


def _check_data(begun: _Begun, saved: Saved, config: DataConfig, dataset: str) -> None:
    """Refuse to go on with other data; where it lies does not matter. Raises DataError."""
    mend = f"put it back to go on to the same numbers, or begin anew with --weights {begun.folder.last}"
    names = tuple(saved.facts.get("names", {}).values())
    if names != config.names:
        was, found = ", ".join(names), ", ".join(config.names)
        raise DataError(f"{config.path}: classes {found}; {begun.folder.path} began with {was}: {mend}")
    if saved.facts.get("dataset") != dataset:
        raise DataError(
            f"{config.path}: other data than {begun.folder.path} began with (the pictures' names and sizes and the "
            f"labels of train, val and test are compared): {mend}"
        )


def _network(begun: _Begun, classes: int) -> tuple[YoloV5, Activation, str, Checkpoint | None]:
    """(network, activation, size, what it began from). One that goes on needs nothing but its own checkpoint."""
    if begun.saved is None:
        return start_network(begun.settings, classes)
    try:
        size, activation = begun.saved.facts["size"], begun.saved.facts["activation"]
        torch.manual_seed(begun.settings.seed)
        return YoloV5(SIZES[size], classes, activation=activation), activation, size, None
    except KeyError as error:
        raise CheckpointError(f"{begun.folder.last}: does not say which network it is of: {error}") from error


def _pictures(config: DataConfig, split: str, settings: TrainSettings) -> Pictures:
    paths = config.train if split == "train" else config.val
    limit = CACHE_BYTES if settings.cache else 0
    pictures = open_pictures(paths, len(config.names), settings.img, training=split == "train", cache_bytes=limit)
    # Where labels are not where they are looked for, every picture reads as a background: nothing would be learned.
    if not any(len(rows) for rows in pictures.labels):
        wanted = [label_path(path) for path in paths]
        raise DataError(
            f"{config.path}: {split}: {len(paths)} pictures, but no object in any of their labels; looked for "
            f"{wanted[0]} and the like ({sum(path.is_file() for path in wanted)} of {len(wanted)} are there); "
            "`sparsecam data check` lists all that is wrong"
        )
    return pictures


def _suit_anchors(network: YoloV5, pictures: Pictures, hyp: Hyp, settings: TrainSettings, say: Say) -> None:
    """Make anchors anew where too few of the boxes are within reach of those there are."""
    head = head_of(network)
    strides = torch.tensor(head.strides).view(-1, 1, 1)
    present = (head.anchors * strides).numpy().astype(np.float64)
    sizes = np.concatenate([_box_sizes(pictures, index) for index in range(len(pictures))])
    before = anchors.recall(sizes, present.reshape(-1, 2), hyp.anchor_t)
    if before >= anchors.ENOUGH or not len(sizes):
        say(f"anchors suit {before:.3f} of {len(sizes)} boxes")
        return
    try:
        made = anchors.make_anchors(sizes, present.shape[0] * present.shape[1], hyp.anchor_t, settings.seed)
    except ValueError as error:
        say(f"anchors suit {before:.3f} of the boxes; kept, since {error}")
        return
    after = anchors.recall(sizes, made, hyp.anchor_t)
    if after > before:
        set_anchors(network, torch.from_numpy(made).float().view(*present.shape))
        say(f"anchors suited {before:.3f} of {len(sizes)} boxes, new ones {after:.3f}")


def _first_batches(train_set: TrainSet, batch_size: int, place: Place) -> Iterator[Tensor]:
    count = min(_UNFOLD_PICTURES, len(train_set))
    for start in range(0, count, batch_size):
        pictures = [train_set[index][0] for index in range(start, min(start + batch_size, count))]
        yield torch.stack(pictures).to(place.device)


def _box_sizes(pictures: Pictures, index: int) -> anchors.Sizes:
    height, width = pictures.original_size(index)
    scale = pictures.img_size / max(height, width)
    sizes: anchors.Sizes = pictures.labels[index][:, 3:5].astype(np.float64) * (width * scale, height * scale)
    return sizes


def _recipe(settings: TrainSettings) -> str | None:
    if not settings.recipe:
        if settings.recipe_args:
            raise RecipeError(
                f"recipe_args {settings.recipe_args}: given without a recipe; expected both or neither, such as "
                "--recipe yolov5.pruned_quantized"
            )
        return None
    from trainer.recipes import parse, read_recipe

    recipe = read_recipe(settings.recipe, **settings.recipe_args)
    # Masks are kept by way of gradients, which frozen layers have not.
    if settings.freeze and parse(recipe, settings.recipe).of_kind("PruningModifier"):
        raise RecipeError(
            f"{settings.recipe}: prunes, or holds zeros, and --freeze {settings.freeze} leaves layers as they are; "
            "expected one of both: leave --freeze out"
        )
    return recipe


def recipe_epochs(recipe: str, name: str) -> int:
    """How many epochs a recipe wants, which wins over what was asked for; raises RecipeError where none is complete."""
    from trainer.recipes import parse
    from trainer.sparsify import Facts

    facts = Facts(parse(recipe, name))
    if not facts.ever_complete:
        last, done = facts.epochs - 1, facts.complete_from
        raise RecipeError(
            f"{name}: pruning ends, or quantisation starts, at epoch {done:g}, but the last one is number {last}: "
            f"none would be complete, and so none the best. Expected {last} at most, or {math.ceil(done) + 1} epochs"
        )
    return facts.epochs


def _run(
    network: YoloV5,
    begun: _Begun,
    progress: Progress,
    place: Place,
    batches: int,
    *,
    distillation: Distillation | None,
) -> Run:
    settings, hyp = begun.settings, begun.hyp
    optimizer = make_optimizer(network, settings.optimizer, hyp, progress.batch_size * place.world)
    if begun.saved is not None:
        optimizer.load_state_dict(begun.saved.optimizer or {})
    sparsifier, epochs = _sparsifier(network, optimizer, begun, progress, batches)
    ema = Ema(network, progress.ema_steps)
    if begun.saved is not None:
        ema.network.load_state_dict(begun.saved.ema)
    scaler = torch.amp.GradScaler(place.device.type, enabled=place.dtype is torch.float16)
    if begun.saved is not None and begun.saved.scaler:
        scaler.load_state_dict(begun.saved.scaler)
    schedule = Schedule(hyp, epochs, batches, progress.batch_size * place.world, cosine=not settings.linear_lr)
    loss = Loss(head_of(network), hyp, settings.img)
    final = sparsifier.optimizer if sparsifier else optimizer
    parts = (final, schedule, loss, distillation, sparsifier, progress, ema, scaler)
    return Run(network, place, hyp, *parts, frozen=settings.freeze)


def _distillation(network: YoloV5, size: str, begun: _Begun, place: Place, say: Say) -> Distillation | None:
    settings, hyp = begun.settings, begun.hyp
    if settings.teacher is None:
        return None
    teacher = load_checkpoint(settings.teacher)
    if begun.saved is not None and begun.saved.facts.get("teacher") != sha256(settings.teacher):
        raise CheckpointError(
            f"teacher {settings.teacher}: another file than the one that {begun.folder.path} began with; put that "
            "one back to go on to the same numbers, or begin anew with --weights"
        )
    maps = teacher.size == size and hyp.distill_maps > 0
    distillation = Distillation(teacher, network, hyp, settings.img, place, maps=maps)
    say(f"learning what {teacher.name} answers" + (", and its blocks' maps" if maps else ""))
    return distillation


def _sparsifier(
    network: YoloV5, optimizer: Optimizer, begun: _Begun, progress: Progress, batches: int
) -> tuple[Sparsifier | None, int]:
    """(what applies the recipe, epochs of the training)."""
    if begun.recipe is None:
        return None, begun.settings.epochs
    from trainer.sparsify import Sparsifier

    steps = math.ceil(batches / accumulate(begun.hyp, progress.batch_size))
    sparsifier = Sparsifier(begun.recipe, network, optimizer, steps_per_epoch=steps, epoch=progress.epoch)
    return sparsifier, sparsifier.epochs


def _rebuild(network: YoloV5, begun: _Begun) -> None:
    """The layers and weights of the epoch that ended last."""
    saved = begun.saved
    assert saved is not None and saved.network is not None
    # By the weights and not by the epoch: a recipe may quantise in the middle of one, where a small set has no step.
    if begun.recipe is not None and has_quantised_layers(saved.network):
        from trainer.sparsify import apply_structure

        apply_structure(network, begun.recipe, saved.progress.epoch)
    try:
        network.load_state_dict(saved.network)
    except RuntimeError as error:
        raise CheckpointError(f"{begun.folder.last}: its weights do not fit its settings: {error}") from error


def _facts(begun: _Begun, config: DataConfig, dataset: str, activation: Activation, size: str) -> dict[str, Any]:
    """What a checkpoint says of itself beside its weights; plain types, for the safe unpickler."""
    settings = begun.settings
    return {
        "names": dict(enumerate(config.names)),
        "activation": activation,
        "size": size,
        "image_size": [settings.img, settings.img],
        "recipe": begun.recipe,
        "dataset": dataset,
        "teacher": sha256(settings.teacher) if settings.teacher is not None else None,
        "train": settings.model_dump(mode="json"),
        "hyp": begun.hyp.model_dump(mode="json"),
    }
