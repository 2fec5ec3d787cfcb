"""What a person most likely meant where several complaints have one cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from services.config_errors import keys_at, problem_of, real_path, unknown_beside_kind
from services.yaml_source import KeyPath, Problem, Source, dotted

# A share of the picture that is mistyped is 1.2 or 1.05; of pixels hardly any corner has all its numbers below 2.
_PIXELS_FROM = 2


def problems_of(errors: Sequence[ErrorDetails], model: type[BaseModel], source: Source) -> list[Problem]:
    """pydantic's complaints in words, each cause once."""
    outlines = _in_pixels(errors, source)
    below = _not_indented(errors, model, source)
    found = [Problem(source.place(path), _PIXELS.format(dotted(path), shown)) for path, shown in outlines.items()]
    for one in errors:
        path = real_path(one["loc"], source.data)
        if path[:-2] in outlines and _too_large(one):
            continue
        problem = problem_of(one, model, source)
        found.append(replace(problem, text=_with_hint(problem.text, path, below)))
        found += unknown_beside_kind(one, model, source)
    # A union complains once a member.
    return list(dict.fromkeys(found))


_PIXELS = (
    "{0}: found {1}; these look like pixels, expected fractions of the picture, 0 to 1: divide each x by the picture's "
    "width and each y by its height"
)


def _in_pixels(errors: Sequence[ErrorDetails], source: Source) -> dict[KeyPath, str]:
    """The outlines and lines with numbers that are pixels, and these."""
    found: dict[KeyPath, list[str]] = {}
    for one in filter(_too_large, errors):
        found.setdefault(real_path(one["loc"], source.data)[:-2], []).append(f"{one['input']:g}")
    return {
        path: ", ".join(numbers[:4]) + (", ..." if len(numbers) > 4 else "")
        for path, numbers in found.items()
        if any(float(number) >= _PIXELS_FROM for number in numbers)
    }


def _too_large(error: ErrorDetails) -> bool:
    """Whether it is about a number of a point that should be a share of the picture."""
    of_a_point = len(error["loc"]) > 2 and all(isinstance(part, int) for part in error["loc"][-2:])
    return of_a_point and error["type"] == "less_than_equal" and error.get("ctx", {}).get("le") == 1


def _not_indented(errors: Sequence[ErrorDetails], model: type[BaseModel], source: Source) -> dict[KeyPath, list[str]]:
    """Sections that hold nothing, and the keys right after each that would fit into it and are wrong where they are."""
    wrong = {real_path(one["loc"], source.data): one["type"] for one in errors}
    found: dict[KeyPath, list[str]] = {}
    for one in errors:
        path = real_path(one["loc"], source.data)
        if not path or one["input"] is not None or one["type"] not in ("model_type", "dict_type"):
            continue
        names = keys_at(model, path, source.data)
        keys = list(_at(source.data, path[:-1]))
        for key in keys[keys.index(path[-1]) + 1 :]:
            kind = wrong.get((*path[:-1], key))
            if not (kind and key in names if names else kind == "extra_forbidden"):
                break
            found.setdefault(path, []).append(key)
    return found


def _at(data: Any, path: KeyPath) -> Any:
    for part in path:
        data = data[part]
    return data


def _with_hint(text: str, path: KeyPath, below: Mapping[KeyPath, Sequence[str]]) -> str:
    """The text, and for a section that holds nothing or a key that was meant for it, what is to be indented."""
    for section, keys in below.items():
        if path == section:
            return f"{text}; is {keys[0]!r} meant to stand under {section[-1]!r}? Indent it"
        if path[:-1] == section[:-1] and path[-1] in keys:
            return f"{text.partition('; expected ')[0]}; is it meant to stand under {section[-1]!r}? Indent it"
    return text
