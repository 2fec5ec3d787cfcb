"""Say what is wrong with a config value in the words of its setting: found, expected, nearest valid name."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretBytes, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from services.yaml_source import KeyPath, Problem, Source, dotted
from wire.logs import HIDDEN, redact, redact_value

# What services.config.Name admits.
NAME_RULE = "1 to 64 letters, digits, dashes, underscores and dots, a letter or digit first"
# How many valid names to list when none is near: a screen line, not a page.
LISTED_NAMES = 12

_WORDS: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Path: "a path",
    type(None): "null",
    SecretStr: "text",
    SecretBytes: "text",
}


class ConfigError(Exception):
    """The configuration cannot be used. `problems` has every one found, each with its place."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(problems, key=lambda one: (one.place.source, one.place.line, one.place.column))
        super().__init__("\n".join(str(problem) for problem in self.problems))


@dataclass(frozen=True)
class Spot:
    """A setting reached by walking the models: its type and the bounds written beside it."""

    annotation: Any
    metadata: tuple[Any, ...] = ()
    description: str = ""


def problem_of(error: ErrorDetails, model: type[BaseModel], source: Source) -> Problem:
    """One pydantic complaint as a Problem at its place in the file."""
    kind, found = error["type"], error["input"]
    if error["loc"][-1:] == ("[key]",):
        path = tuple(error["loc"][:-1])
        text = f"{dotted(path[:-1])}: the name {found!r} cannot be used; expected {NAME_RULE}"
        return Problem(source.place(path, key=True), text)
    path = real_path(error["loc"], source.data, absent=kind == "missing")
    if kind == "extra_forbidden":
        return Problem(source.place(path, key=True), unknown_key(path, model, source.data))
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return _unknown_kind(error["input"], path, model, source)
    if kind == "missing":
        spot = spot_at(model, path, source.data)
        text = f"{dotted(path)}: missing; expected {expected(spot)}{_why(spot)}"
        return Problem(source.place(path[:-1], key=True), text)
    spot = spot_at(model, path, source.data)
    name = dotted(path) or "the config"
    if kind in ("value_error", "assertion_error"):
        reason = error["msg"].partition(", ")[2] or error["msg"]
        return Problem(source.place(path), f"{name}: {redact(reason)}")
    text = f"{name}: found {shown(found, path)}; expected {expected(spot)}{_why(spot)}"
    if isinstance(found, str) and (near := nearest(found, choices(spot.annotation))):
        text += f"; did you mean {near!r}?"
    return Problem(source.place(path), text)


def _unknown_kind(found: object, path: KeyPath, model: type[BaseModel], source: Source) -> Problem:
    """A section that comes in kinds, and whose `kind` is missing or none of them."""
    kinds = [word for form in _alternatives(spot_at(model, path).annotation) for word in _kinds(form)]
    if not isinstance(found, Mapping):
        text = f"{dotted(path)}: found {shown(found, path)}; expected `key: value` lines"
        return Problem(source.place(path), text)
    here = (*path, "kind")
    if "kind" not in found:
        return Problem(source.place(path, key=True), f"{dotted(here)}: missing; expected one of: {', '.join(kinds)}")
    text = f"{dotted(here)}: found {shown(found['kind'], here)}; expected one of: {', '.join(kinds)}"
    if near := nearest(str(found["kind"]), kinds):
        text += f"; did you mean {near!r}?"
    return Problem(source.place(here), f"{text} (more may show once this is mended)")


def unknown_beside_kind(error: ErrorDetails, model: type[BaseModel], source: Source) -> list[Problem]:
    """Keys of a section whose `kind` is wrong or missing that no kind has (of the nearest one, where there is one)."""
    found = error["input"]
    if error["type"] not in ("union_tag_not_found", "union_tag_invalid") or not isinstance(found, Mapping):
        return []
    path = real_path(error["loc"], source.data)
    forms = [form for form in _alternatives(spot_at(model, path).annotation) if _kinds(form)]
    near = nearest(str(found.get("kind")), [word for form in forms for word in _kinds(form)])
    forms = [form for form in forms if near in _kinds(form)] or forms
    names = {name for form in forms for name in form.model_fields}
    strange = [(*path, key) for key in found if key not in names]
    return [Problem(source.place(key, key=True), _unknown(key, sorted(names))) for key in strange]


def unknown_key(path: KeyPath, model: type[BaseModel], data: Any = None) -> str:
    """Message for a key that no setting has."""
    return _unknown(path, sorted(keys_at(model, path[:-1], data)))


def _unknown(path: KeyPath, names: list[str]) -> str:
    text = f"{dotted(path)}: unknown key {path[-1]!r}"
    if near := nearest(str(path[-1]), names):
        return f"{text}; did you mean {near!r}?"
    if not names:
        return f"{text}; expected none here"
    listed = ", ".join(names[:LISTED_NAMES]) + (", ..." if len(names) > LISTED_NAMES else "")
    return f"{text}; expected one of: {listed}"


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The valid name that `word` was likely meant to be."""
    by_lower = {re.sub(r"[-_ ]", "", name.lower()): name for name in names}
    # 0.6 lets one or two slips of a short word through and keeps unrelated words out.
    found = difflib.get_close_matches(re.sub(r"[-_ ]", "", word.lower()), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def real_path(loc: tuple[int | str, ...], data: Any, *, absent: bool = False) -> KeyPath:
    """pydantic's location without the names of union members that it puts in; `absent`: its last key is not there."""
    path: list[int | str] = []
    here = data
    for position, part in enumerate(loc):
        last = position == len(loc) - 1
        by_name = isinstance(here, Mapping) and isinstance(part, str)
        by_index = isinstance(here, list) and isinstance(part, int) and part < len(here)
        if by_index or (by_name and part in here):
            here = here[part]
        elif not (absent and last and by_name):
            continue  # a union's tag, or "[key]"
        path.append(part)
    return tuple(path)


def spot_at(model: type[BaseModel], path: KeyPath, data: Any = None) -> Spot:
    """The setting at `path`. Where a section comes in kinds, `data` (the config) tells which; without it, the first."""
    spot = Spot(model)
    for part in path:
        spot = _step(spot, part, data)
        data = _below(data, part)
    return spot


def keys_at(model: type[BaseModel], path: KeyPath, data: Any = None) -> set[str]:
    """Names that the mapping at `path` may hold; empty when it takes any (camera names). `data` as in `spot_at`."""
    names: set[str] = set()
    spot = spot_at(model, path, data)
    for part in path:
        data = _below(data, part)
    for kind in _forms(spot.annotation, data):
        if _is_model(kind):
            names |= set(kind.model_fields)
    return names


def _below(data: Any, part: int | str) -> Any:
    """What lies at a key or an index; None where there is no such thing."""
    if isinstance(data, Mapping):
        return data.get(part)
    return data[part] if isinstance(data, list) and isinstance(part, int) and part < len(data) else None


def _forms(annotation: Any, data: Any) -> list[Any]:
    """The alternatives of a type; of sections that come in kinds the one that `data` is, as far as that can be told."""
    forms = _alternatives(annotation)
    if not isinstance(data, Mapping) or sum(bool(_kinds(form)) for form in forms) < 2:
        return forms
    # A section that does not name its kind is of the first.
    kind = str(data["kind"]) if "kind" in data else _kinds(forms[0])[0]
    return [form for form in forms if kind in _kinds(form)] or forms


def _kinds(form: Any) -> list[str]:
    """The words that a section's `kind` may be; none for what has no kinds."""
    return choices(form.model_fields["kind"].annotation) if _is_model(form) and "kind" in form.model_fields else []


def _step(spot: Spot, part: int | str, data: Any) -> Spot:
    for kind in _forms(spot.annotation, data):
        if _is_model(kind) and part in kind.model_fields:
            return spot_of(kind.model_fields[str(part)])
        arguments = get_args(kind)
        if get_origin(kind) is dict and isinstance(part, str):
            return _unwrap(arguments[1])
        if get_origin(kind) in (list, set, frozenset, tuple) and isinstance(part, int) and arguments:
            inner = [each for each in arguments if each is not Ellipsis]
            return _unwrap(inner[min(part, len(inner) - 1)])
    return Spot(Any)


def spot_of(info: FieldInfo) -> Spot:
    """The setting that a field describes."""
    spot = _unwrap(info.annotation)
    return Spot(spot.annotation, (*info.metadata, *spot.metadata), info.description or "")


def _unwrap(annotation: Any) -> Spot:
    if get_origin(annotation) is Annotated:
        kind, *extras = get_args(annotation)
        metadata: list[Any] = []
        for extra in extras:
            metadata.extend(extra.metadata if isinstance(extra, FieldInfo) else [extra])
        return Spot(kind, tuple(metadata))
    return Spot(annotation)


def _alternatives(annotation: Any) -> list[Any]:
    annotation = _unwrap(annotation).annotation
    if get_origin(annotation) in (Union, types.UnionType):
        return [inner for each in get_args(annotation) for inner in _alternatives(each)]
    return [annotation]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def choices(annotation: Any) -> list[str]:
    """The words that a setting admits, when it admits only some."""
    words: list[str] = []
    for kind in _alternatives(annotation):
        if get_origin(kind) is Literal:
            words += [str(word) for word in get_args(kind)]
        elif isinstance(kind, type) and issubclass(kind, Enum):
            words += [str(member.value) for member in kind]
    return words


def expected(spot: Spot) -> str:
    """`a number, 0 to 240`."""
    kinds = [_kind(kind) for kind in _alternatives(spot.annotation)]
    text = " or ".join(dict.fromkeys(kinds))
    patterns = [f"matching {bound.pattern}" for bound in spot.metadata if getattr(bound, "pattern", None)]
    return ", ".join([text, *_bounds(spot.metadata), *patterns])


def _kind(kind: Any) -> str:
    if kind in _WORDS:
        return _WORDS[kind]
    if get_origin(kind) is Literal or (isinstance(kind, type) and issubclass(kind, Enum)):
        return "one of: " + ", ".join(choices(kind))
    if get_origin(kind) in (list, set, frozenset, tuple):
        inner = [each for each in get_args(kind) if each is not Ellipsis]
        if get_origin(kind) is tuple and Ellipsis not in get_args(kind):
            return f"a list of {len(inner)}: " + ", ".join(expected(_unwrap(each)) for each in inner)
        return "a list of " + (expected(_unwrap(inner[0])) if inner else "values")
    if get_origin(kind) is dict or kind is dict or _is_model(kind):
        return "`key: value` lines"
    return "another value"


def _bounds(metadata: Iterable[Any]) -> list[str]:
    found = {
        name: getattr(bound, name)
        for bound in metadata
        for name in ("ge", "gt", "le", "lt", "min_length", "max_length")
        if getattr(bound, name, None) is not None
    }
    words = []
    if "ge" in found and "le" in found:
        words.append(f"{found.pop('ge')} to {found.pop('le')}")
    for name, phrase in (("ge", "at least"), ("gt", "above"), ("lt", "below"), ("le", "at most")):
        if name in found:
            words.append(f"{phrase} {found[name]}")
    if found.get("min_length") == 1:
        words.append("not empty")
    elif "min_length" in found:
        words.append(f"at least {found['min_length']} long")
    if "max_length" in found:
        words.append(f"at most {found['max_length']} long")
    return words


def _why(spot: Spot) -> str:
    """The setting's own description: what the value is for."""
    if choices(spot.annotation):
        return ""  # the choices say it
    first = re.split(r"(?<=[.;])\s", spot.description, maxsplit=1)[0].rstrip(".;")
    return f" ({first})" if first else ""


def shown(value: Any, path: KeyPath) -> str:
    """A value fit for a message: short, and without secrets."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    name = next((part for part in reversed(path) if isinstance(part, str)), "")
    text = str(redact_value(str(value), name))
    if text == HIDDEN:
        return "a value (not shown)"
    text = text if len(text) <= 60 else text[:57] + "..."
    return repr(text) if isinstance(value, str) else text
