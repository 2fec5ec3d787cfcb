"""The words of a job. Jobs come from Redis, so every word is checked: bounded, no options of its own making, and files
only below the folders that the trainer's own config names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from services.jobs.settings import TrainerSettings
from services.model_names import registry_folders
from trainer import recipes
from trainer.card import read_told
from trainer.errors import CardError, RegistryError
from trainer.registry import check_name, find, is_name
from wire.jobs import Job

# Starts with a letter or digit, so that it is never taken for an option; no slashes, so never for a path elsewhere.
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$", max_length=64)]
# Printable, no control characters; where it may point to is checked by `below`.
File = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=1024)]

Model = TypeVar("Model", bound=BaseModel)


class JobError(ValueError):
    """A job that cannot be done as it is written: says which word, and what was expected."""


def _model_name(text: str) -> str:
    try:
        check_name(text)
    except RegistryError as error:
        raise ValueError(str(error)) from None
    return text


class TrainArguments(BaseModel):
    """The words of `sparsecam train` that a job may say; one left out has that command's default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: File
    cfg: Word | None = None
    weights: File | None = None
    teacher: File | None = None
    recipe: File | None = None
    # Numbers only: text would be put into the recipe, whose language can evaluate it.
    recipe_args: Annotated[dict[Word, int | float], Field(max_length=50)] | None = None
    hyp: File | None = None
    img: Annotated[int, Field(ge=32, le=4096, multiple_of=32)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    epochs: Annotated[int, Field(ge=1, le=100_000)] | None = None
    optimizer: Literal["SGD", "Adam", "AdamW"] | None = None
    linear_lr: bool = False
    device: Annotated[str, StringConstraints(pattern=r"^(auto|cpu|cuda(:\d{1,3})?|\d{1,3})$")] | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    workers: Annotated[int, Field(ge=0, le=64)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    patience: Annotated[int, Field(ge=0, le=100_000)] | None = None
    val_every: Annotated[int, Field(ge=1, le=1000)] | None = None
    freeze: Annotated[int, Field(ge=0, le=24)] | None = None
    auto_batch: bool = False


class PublishArguments(BaseModel):
    """What becomes of the finished model. How far it may fall behind its baseline is the trainer's own setting."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # In the registry; without one the model stays in its run's folder.
    name: Annotated[Word, AfterValidator(_model_name)] | None = None
    card: File | None = None  # what only people know of the model, as `models add` reads it
    baseline: File | None = None  # of the registry, or a file: ONNX or a checkpoint
    dense: File | None = None  # of the registry, or a file: ONNX
    dynamic: bool = False


def publish_words(publish: PublishArguments, settings: TrainerSettings, registry: Path) -> dict[str, str]:
    """The options of `models add`, files found below the trainer's folders; `registry` is the folder it enters.

    Raises JobError for what `models add` would refuse whatever is trained: a word that is missing, a card that cannot
    be read, a name that no registry has.
    """
    if publish.name is None:
        return {}
    missing = [word for word in ("card", "baseline") if getattr(publish, word) is None]
    if missing:
        raise JobError(
            f"{', '.join(missing)}: missing; a model is published with a card and measured against a baseline"
        )
    data_dir = _data_dir(settings)
    card = below(publish.card or "", (data_dir,), "card")
    try:
        read_told(card)
    except CardError as error:
        raise JobError(f"card: {error}") from None
    found = {"card": str(card)}
    for word, text in (("baseline", publish.baseline), ("dense", publish.dense)):
        if text is None:
            continue
        if not is_name(text):
            found[word] = str(below(text, (data_dir, settings.runs), word))
            continue
        try:
            find(text, registry_folders(registry))
        except RegistryError as error:
            raise JobError(f"{word}: {error}") from None
        found[word] = text  # which `models add` looks up
    return found


def checked(model: type[Model], words: Mapping[str, Any]) -> Model:
    """`words` as `model`; raises JobError naming every word that is wrong."""
    try:
        return model.model_validate(dict(words))
    except ValidationError as error:
        told = []
        for one in error.errors(include_url=False, include_context=False):
            word = ".".join(str(part) for part in one["loc"]) or "the job"
            value = "" if one["type"] in ("missing", "extra_forbidden") else f" (was {str(one['input'])[:80]!r})"
            told.append(f"{word}: {one['msg']}{value}")
        raise JobError("; ".join(told)) from None


def train_words(job: Job, settings: TrainerSettings) -> tuple[TrainArguments, list[str]]:
    """The arguments of a job, and the command line of `sparsecam train` for it; raises JobError."""
    words = checked(TrainArguments, job.arguments)
    if words.recipe_args and words.recipe is None:
        raise JobError("recipe_args: given without a recipe; expected both or neither")
    data_dir, runs = _data_dir(settings), settings.runs
    found = {"data": str(below(words.data, (data_dir,), "data"))}
    for word, text in (("weights", words.weights), ("teacher", words.teacher)):
        if text is not None:
            found[word] = str(below(text, (data_dir, runs), word))
    if words.hyp is not None:
        found["hyp"] = str(below(words.hyp, (data_dir,), "hyp"))
    if words.recipe is not None:
        found["recipe"] = _recipe(words.recipe, data_dir)
    values = {**words.model_dump(exclude_defaults=True), **found}
    return words, list(_options(values))


def _recipe(text: str, data_dir: Path) -> str:
    """A shipped recipe's name as it is, anything else as the file it names; raises JobError.

    Nothing else may reach `sparsecam train`: a file that it finds elsewhere is quoted in the log where it is no recipe.
    """
    shipped = recipes.names()
    if text in shipped:
        return text
    try:
        return str(below(text, (data_dir,), "recipe"))
    except JobError as error:
        raise JobError(f"{error}, or a name: {', '.join(shipped)}") from None


def below(text: str, folders: tuple[Path, ...], what: str) -> Path:
    """The file `text`, of which a relative one is looked for in each folder; raises JobError for one outside them all.

    Links are followed before the check, so that none leads out.
    """
    for folder in folders:
        root = folder.resolve()
        try:
            path = (root / text).resolve()
            if path.is_relative_to(root) and path.is_file():
                return path
        except (OSError, RuntimeError, ValueError):  # a name too long, a loop of links (RuntimeError until 3.13), a NUL
            continue
    raise JobError(f"{what} {text!r}: expected a file below {' or '.join(str(folder) for folder in folders)}")


def _data_dir(settings: TrainerSettings) -> Path:
    if settings.data_dir is None:
        raise JobError("trainer.data_dir is empty: set it to the folder below which jobs may name files")
    return settings.data_dir


def _options(values: Mapping[str, Any]) -> Iterator[str]:
    # `--name=value` in one word: a value can then not be taken for another option.
    for name, value in values.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            if value:
                yield option
        elif value is not None:
            yield f"{option}={json.dumps(value) if isinstance(value, dict) else value}"
