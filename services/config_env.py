"""Environment overrides: SPARSECAM__REDIS__URL=... sets `redis.url`; values that are not text are read as YAML.

Parts are separated by two underscores and compared without regard to case, `-` and `_`, since shells admit no dash in
a name: SPARSECAM__CAMERAS__FRONT_DOOR__SOURCE reaches the camera `front-door` of the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, SecretStr

from services.config_errors import keys_at, nearest, spot_at
from services.yaml_source import KeyPath, Place, Problem, Source, dotted, parse_scalar

PREFIX = "SPARSECAM__"


def apply_environment(source: Source, env: Mapping[str, str], model: type[BaseModel]) -> None:
    """Write the overrides of `env` into `source`; what is wrong with one is added to its problems by variable name."""
    for variable in sorted(name for name in env if name.upper().startswith(PREFIX)):
        place = Place(f"environment variable {variable}")
        parts = variable[len(PREFIX) :].split("__")
        path, complaint = _resolve(parts, source.data, model)
        if complaint:
            source.problems.append(Problem(place, complaint))
            continue
        value: Any = env[variable]
        # Where a setting is text, the variable is that text: a password may begin with * or hold " #".
        if spot_at(model, path).annotation not in (str, SecretStr):
            try:
                value = parse_scalar(value)
            except ValueError as error:
                source.problems.append(Problem(place, f"{dotted(path)}: {error}"))
                continue
        if not _put(source.data, path, value):
            source.problems.append(Problem(place, f"{dotted(path)}: its parent holds a single value in the file"))
            continue
        source.keys[path] = source.values[path] = place
        source.raw[path] = env[variable].strip()


def _resolve(parts: list[str], data: Any, model: type[BaseModel]) -> tuple[KeyPath, str]:
    """The path that a variable's parts name; or what is wrong with them."""
    path: KeyPath = ()
    here = data
    for part in parts:
        allowed = keys_at(model, path)
        present = [str(key) for key in here] if isinstance(here, Mapping) else []
        found = _same(part, allowed or present)
        if found is None and (allowed or not part or not _takes_any_name(model, path)):
            return path, _unknown(path, part, allowed)
        name = found if found is not None else _new_name(part, path)
        path = (*path, name)
        here = here.get(name) if isinstance(here, Mapping) else None
    return path, ""


def _same(part: str, names: Iterable[str]) -> str | None:
    exact = part.lower()
    names = sorted(names)
    return next((name for name in names if name.lower() == exact), None) or next(
        (name for name in names if _folded(name) == _folded(part)), None
    )


def _new_name(part: str, path: KeyPath) -> str:
    """Of what the file does not have. Headers have dashes, and servers drop those with an underscore."""
    return part.lower().replace("_", "-") if path[-1:] == ("headers",) else part.lower()


def _folded(name: str) -> str:
    return name.lower().replace("-", "_")


def _takes_any_name(model: type[BaseModel], path: KeyPath) -> bool:
    return not keys_at(model, path) and spot_at(model, (*path, "any")).annotation is not Any


def _unknown(path: KeyPath, part: str, allowed: Iterable[str]) -> str:
    names = sorted(allowed)
    text = f"no setting {dotted((*path, part.lower()))!r}"
    if near := nearest(part, names):
        variable = PREFIX + "__".join(str(step).upper().replace("-", "_") for step in (*path, near))
        return f"{text}; did you mean {variable}?"
    return f"{text}; expected one of: {', '.join(names)}" if names else f"{text}; nothing lies below {dotted(path)}"


def _put(data: dict[str, Any], path: KeyPath, value: Any) -> bool:
    here = data
    for part in path[:-1]:
        inner = here.setdefault(str(part), {})
        if inner is None:  # `redis:` with nothing below it
            inner = here[str(part)] = {}
        if not isinstance(inner, dict):
            return False
        here = inner
    here[str(path[-1])] = value
    return True
