"""The reference config, written from the settings themselves: every key, its default, its meaning, what is allowed.

`python -m services.reference > sparsecam.example.yaml` renews the shipped file; a test fails when it is out of date.
"""

from __future__ import annotations

import sys
import textwrap
import types
from collections.abc import Collection, Iterator
from pathlib import PurePath
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from services.config import Config
from services.config_errors import expected, spot_of
from services.yaml_source import KeyPath
from sink.outputs.settings import OutputSettings

WIDTH = 118

HEAD = """\
# Sparsecam's settings: all of them, each with its default. Written by `python -m services.reference`.
#
# A sparsecam.yaml needs only what you want otherwise; a camera with its source, detector.model and a rule are enough
# for alerts. `sparsecam check sparsecam.yaml` looks it over and names every slip with its line and column.
#
# Any key can be set from the environment instead: SPARSECAM__REDIS__URL for redis.url,
# SPARSECAM__CAMERAS__FRONT_DOOR__FPS for the fps of the camera front-door. What is allowed stands in [brackets].
# YAML's anchors and merge keys (<<) work, to share settings between cameras.
"""

# What stands for names of the reader's own: one a section, and of rules one a kind.
NAMES = {
    "cameras": ["front-door"],
    "scenes": ["front-door"],
    "rules": ["person-at-door", "on-the-porch", "over-the-fence", "loiterer", "crowd", "guard-away", "speeding"],
}
# Values that have no default, or whose default would not show how they are written.
_CAMERA: KeyPath = ("cameras", "front-door")
_SCENE: KeyPath = ("scenes", "front-door")
EXAMPLES: dict[KeyPath, Any] = {
    (*_CAMERA, "source"): "rtsp://user:password@192.168.1.20:554/stream1",
    (*_SCENE, "zones"): {"porch": [[0.1, 0.5], [0.6, 0.5], [0.7, 1.0], [0.0, 1.0]]},
    (*_SCENE, "lines"): {"fence": [[0.0, 0.4], [1.0, 0.35]]},
    (*_SCENE, "masks"): {"neighbours": [[0.8, 0.0], [1.0, 0.0], [1.0, 0.3]]},
    (*_SCENE, "ground", "points"): [[0.4, 0.5], [0.6, 0.5], [0.9, 1.0], [0.1, 1.0]],
    (*_SCENE, "ground", "metres"): [[0, 0], [4, 0], [4, 15], [0, 15]],
    ("rules", "person-at-door", "cameras"): ["front-door"],
    ("rules", "person-at-door", "labels"): ["person"],
    ("rules", "person-at-door", "schedule", "time_zone"): "Europe/Berlin",
    ("rules", "person-at-door", "schedule", "arm"): [{"hours": "18:00-08:00"}, {"days": ["sat", "sun"]}],
    ("rules", "on-the-porch", "zone"): "porch",
    ("rules", "over-the-fence", "line"): "fence",
    ("rules", "loiterer", "dwell_s"): 60,
    ("rules", "crowd", "over"): 5,
    ("rules", "guard-away", "absent_s"): 600,
    ("rules", "speeding", "over_kmh"): 30,
}
# One output a kind; commented out, because each would reach out into the world.
OUTPUT_EXAMPLES: dict[str, Any] = {
    "url": "https://example.com/alerts",
    "host": "mqtt.example.com",
    "folder": "/var/lib/sparsecam/alerts",
    "argv": ["/usr/local/bin/on-alert", "--loud"],
}
APPRISE_URL = "mailto://user:password@example.com"
# Its default depends on who runs Sparsecam, so the file leaves it to the default.
COMMENTED_OUT: KeyPath = ("runtime_dir",)

# Types whose name in brackets would tell nobody anything.
_PLAIN = ("text", "true or false", "a path", "a path or null")


def reference() -> str:
    """The text of sparsecam.example.yaml."""
    return HEAD + "\n".join(_lines(Config, ())) + "\n"


def _lines(model: type[BaseModel], path: KeyPath, without: Collection[str] = ()) -> Iterator[str]:
    indent = "  " * len(path)
    for name, info in model.model_fields.items():
        here = (*path, name)
        if name in without:
            continue
        if not path:
            yield ""
        if here == ("outputs",):
            yield from _outputs(info.description or "")
            continue
        inner = _models_in(info.annotation)
        yield from _comment(info, indent, with_kind=not inner)
        if not inner:
            value = EXAMPLES.get(here, info.get_default(call_default_factory=True))
            yield f"{indent}{'# ' if here == COMMENTED_OUT else ''}{name}: {_scalar(value)}"
        elif here[0] in NAMES and not path:
            yield f"{name}:"
            yield from _named_sections(name, inner)
        else:
            yield f"{indent}{name}:"
            yield from _lines(inner[0], here)


def _outputs(description: str) -> Iterator[str]:
    """Every kind of output, all of it commented out; what all kinds share is told once."""
    yield f"# {description}"
    yield "outputs: {}"
    for number, form in enumerate(get_args(get_args(OutputSettings)[0])):
        (kind,) = get_args(form.model_fields["kind"].annotation)
        yield f"#   my-{kind}:{'  # and all that my-webhook has up to deadletters_maxlen' if number else ''}"
        yield f"#     kind: {kind}"
        for name, info in form.model_fields.items():
            if name == "kind" or (number and name not in form.__annotations__):
                continue
            value = APPRISE_URL if (kind, name) == ("apprise", "url") else OUTPUT_EXAMPLES.get(name)
            yield from (f"#   {row}" for row in _comment(info, "  ", with_kind=True))
            yield f"#     {name}: {_scalar(info.get_default(call_default_factory=True) if value is None else value)}"


def _named_sections(section: str, models: list[type[BaseModel]]) -> Iterator[str]:
    """A section of the reader's own names: the first kind in full, of each further one what is different."""
    for name, model in zip(NAMES[section], models, strict=True):
        if model is not models[0]:
            yield from ("", "  # Has the keys of the first rule, and:")
        yield f"  {name}:"
        yield from _lines(model, (section, name), () if model is models[0] else _same(models[0], model))


def _same(first: type[BaseModel], second: type[BaseModel]) -> set[str]:
    """The settings that two kinds have in common, with their defaults."""
    return {
        name
        for name, info in second.model_fields.items()
        if name in first.model_fields
        and info.get_default(call_default_factory=True)
        == first.model_fields[name].get_default(call_default_factory=True)
    }


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a section or a mapping of sections may be; none for a plain setting."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _models_in(arguments[0])
    if origin is dict:
        return _models_in(arguments[1])
    if origin in (Union, types.UnionType):
        return [model for each in arguments for model in _models_in(each)]
    return []


def _comment(info: FieldInfo, indent: str, *, with_kind: bool) -> Iterator[str]:
    kind = expected(spot_of(info)) if with_kind else ""
    description = info.description or ""
    text = f"{description} [{kind}]" if kind and kind not in _PLAIN else description
    for row in textwrap.wrap(text, WIDTH - len(indent) - 2, break_long_words=False, break_on_hyphens=False):
        yield f"{indent}# {row}"


def _scalar(value: Any) -> str:
    if isinstance(value, PurePath):
        # An absolute default is the runtime folder, which differs from user to user.
        value = "/run/sparsecam" if value.is_absolute() else str(value)
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value in ("", "*"):
        return f'"{value}"'
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


if __name__ == "__main__":
    sys.stdout.write(reference())
