"""The reference config, written from the settings themselves: every key, its default, its meaning, what is allowed.

`python -m services.reference > sparsecam.example.yaml` renews the shipped file; a test fails when it is out of date.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, get_args

import yaml
from pydantic import BaseModel, SecretStr

from services.config import Config
from services.config_errors import expected, spot_at
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

# What stands for a camera and a rule of the reader's own, and the values in them that have no default.
NAMES = {"cameras": "front-door", "rules": "person-at-door"}
EXAMPLES: dict[KeyPath, Any] = {
    ("cameras", "front-door", "source"): "rtsp://user:password@192.168.1.20:554/stream1",
    ("rules", "person-at-door", "cameras"): ["front-door"],
    ("rules", "person-at-door", "labels"): ["person"],
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


def _lines(model: type[BaseModel], path: KeyPath) -> Iterator[str]:
    indent = "  " * len(path)
    for name, info in model.model_fields.items():
        here = (*path, name)
        if not path:
            yield ""
        inner = _model_in(info.annotation)
        if here == ("outputs",):
            yield from _outputs(info.description or "")
            continue
        yield from _comment(here, info.description or "", indent, with_kind=inner is None)
        if inner is None:
            value = EXAMPLES.get(here, info.get_default(call_default_factory=True))
            yield f"{indent}{'# ' if here == COMMENTED_OUT else ''}{name}: {_scalar(value)}"
        elif here[0] in NAMES and not path:
            yield f"{name}:"
            yield f"  {NAMES[name]}:"
            yield from _lines(inner, (name, NAMES[name]))
        else:
            yield f"{indent}{name}:"
            yield from _lines(inner, here)


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
            yield from (f"#   {row}" for row in _comment((name,), info.description or "", "  ", of=form))
            yield f"#     {name}: {_scalar(info.get_default(call_default_factory=True) if value is None else value)}"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a section or a mapping of sections holds; None for a plain setting."""
    for kind in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _comment(
    path: KeyPath, description: str, indent: str, *, with_kind: bool = True, of: type[BaseModel] = Config
) -> Iterator[str]:
    kind = expected(spot_at(of, path)) if with_kind else ""
    text = f"{description} [{kind}]" if kind and kind not in _PLAIN else description
    for row in textwrap.wrap(text, WIDTH - len(indent) - 2, break_long_words=False, break_on_hyphens=False):
        yield f"{indent}# {row}"


def _scalar(value: Any) -> str:
    if isinstance(value, PurePath):
        value = "/run/sparsecam"
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value in ("", "*"):
        return f'"{value}"'
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


if __name__ == "__main__":
    sys.stdout.write(reference())
