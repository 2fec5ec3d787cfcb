"""A model's card: what its trainer tells of it, what was measured of it, and the digest of the file it speaks of."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from trainer import plain_yaml
from trainer.errors import CardError

# Names stand in file names, configs and on command lines; 64 characters keep all of those readable.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}$"
MAX_CARD_BYTES = 1 << 20  # thousands of class names fit; a larger file is no card

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Read = TypeVar("Read", bound=BaseModel)


def _with_zone(time: datetime) -> datetime:
    if time.tzinfo is None:
        raise ValueError("expected a time with its zone, such as 2026-01-31T12:00:00Z")
    return time


class Data(BaseModel):
    """What a model was trained on."""

    model_config = ConfigDict(extra="forbid")

    name: Words = Field(description="What people call the data set.")
    licence: Words = Field(description="Under which the data may be used.")
    source: str = Field("", description="Where it comes from.")
    digest: str = Field("", description="SHA-256 over its class names, labels and pictures.")


class Training(BaseModel):
    """How a model was trained."""

    model_config = ConfigDict(extra="forbid")

    network: Words = Field(description="Its architecture, such as yolov5n with Hardswish.")
    start: Words = Field(description="The weights it began from, or `random`.")
    recipe: Words = Field(description="The recipe's name, or `none`.")
    epochs: int | None = Field(None, ge=0, description="How long it was trained. Left out: as the file itself says.")
    command: str = Field("", description="The command that trains it again.")


class Told(BaseModel):
    """What only its trainer knows of a model: the file that `models add --card` reads."""

    model_config = ConfigDict(extra="forbid")

    licence: Words = Field(description="Of the weights.")
    data: Data
    training: Training
    provenance: Words = Field(description="Who made it, from what, where the terms of the weights come from.")
    notes: str = Field("", description="What else a user should know, such as where it is weak.")


class Score(BaseModel):
    """Accuracy of one file on one engine (`torch` for a checkpoint), by COCO's definition."""

    model_config = ConfigDict(extra="forbid")

    file: Words
    engine: Words
    map50: Share = Field(description="mAP at IoU 0.5.")
    map50_95: Share = Field(description="mAP over IoU 0.50 to 0.95.")
    pictures: int = Field(ge=1)
    objects: int = Field(ge=1)


class Speed(BaseModel):
    """One picture at a time, the model and its dense form in turns on the same cores."""

    model_config = ConfigDict(extra="forbid")

    engine: Words
    processor: Words
    num_cores: int = Field(ge=1)
    height: int = Field(ge=1, description="Of the picture (pixels).")
    width: int = Field(ge=1, description="Of the picture (pixels).")
    ms: Positive = Field(description="The model's time a picture (milliseconds).")
    dense: Words = Field(description="The dense model's file.")
    dense_ms: Positive = Field(description="Its time a picture (milliseconds).")

    @property
    def ratio(self) -> float:
        """How many times as fast as dense."""
        return self.dense_ms / self.ms


class Size(BaseModel):
    """What the file holds."""

    model_config = ConfigDict(extra="forbid")

    file_bytes: int = Field(ge=1)
    compressed_bytes: int = Field(ge=1, description="After DEFLATE, as gzip has it.")
    zero_weights: Share | None = Field(description="Share of exact zeros among the weights; null: none can be counted.")
    quantised_nodes: int = Field(ge=0, description="Nodes of the graph that compute in eight bits.")
    nodes: int = Field(ge=1)


class Measured(BaseModel):
    """What the gate saw for itself. `scores` begins with the one it judged by; `baseline` was scored like that one."""

    model_config = ConfigDict(extra="forbid")

    made: Annotated[datetime, AfterValidator(_with_zone)]
    versions: dict[str, str] = Field(description="Of Sparsecam, Python and the engines.")
    scores: list[Score] = Field(min_length=1)
    baseline: Score
    baseline_sha256: Sha256
    speed: Speed
    dense_sha256: Sha256
    size: Size

    @property
    def map_drop(self) -> float:
        """How far mAP at IoU 0.5 fell below the baseline's (0..1); negative where it rose."""
        return self.baseline.map50 - self.scores[0].map50


class Card(BaseModel):
    """All of it. `sha256` is the ONNX file's: with another file the card says nothing."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    name: Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
    sha256: Sha256
    classes: list[str] = Field(description="In the order of their numbers.")
    image_size: tuple[int, int] = Field(description="Height and width it was trained for (pixels).")
    told: Told
    measured: Measured


def read_told(path: Path) -> Told:
    """The trainer's part, from a YAML file; raises CardError with all that is wrong with it."""
    return _read(path, Told)


def read_card(path: Path) -> Card:
    """A whole card; raises CardError with all that is wrong with it."""
    return _read(path, Card)


def card_yaml(card: Card) -> str:
    """The text of a NAME.card.yaml."""
    head = "# Written by `sparsecam models add`. The digest ties it to the ONNX file beside it.\n"
    return head + yaml.safe_dump(card.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=118)


def _read(path: Path, kind: type[Read]) -> Read:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CARD_BYTES + 1)
    except OSError as error:
        raise CardError(f"{path}: cannot read the card: {error.strerror}") from error
    if len(data) > MAX_CARD_BYTES:
        raise CardError(f"{path}: more than {MAX_CARD_BYTES} bytes; expected a card in YAML")
    try:
        found: Any = plain_yaml.load(data)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CardError(f"{path}: no YAML: {' '.join(str(error).split())}") from error
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        told = "; ".join(_problem(one["loc"], one["msg"]) for one in error.errors(include_url=False))
        raise CardError(f"{path}: {told}; docs/models.md has an example") from error


def _problem(place: tuple[int | str, ...], words: str) -> str:
    where = ".".join(map(str, place))
    return f"{where}: {words}" if where else words
