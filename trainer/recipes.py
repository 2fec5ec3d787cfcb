"""Recipes as data, without SparseML: found by name, their parameters filled in, their expressions worked out.

A recipe is YAML, alone or between the `---` lines of a Markdown file whose text says when to use it (SparseML's public
format). Plain values at its top are parameters; `eval(...)` reckons with them; lists named `...modifiers` hold what is
applied, each tagged with its kind.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trainer import plain_yaml
from trainer.errors import RecipeError

# Inside the installed package, or at the top of the checkout.
_PACKAGED = Path(__file__).with_name("shipped_recipes")
FOLDER = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).resolve().parent.parent / "recipes"
_FRONT = re.compile(r"\A\s*---\s*\n(.*?)\n---\s*(?:\n|\Z)(.*)", re.DOTALL)
_EVAL = re.compile(r"eval\((.*)\)", re.DOTALL)
_EXPONENT = re.compile(r"[-+]?\d+[eE][-+]?\d+")  # 1e-3 is text in YAML 1.1, and nobody means it so
_MAX_DEPTH = 20  # of parameters that name others
_WEIGHTS = r"names like model.1.conv.weight, or patterns like re:model\.[1-9]\..*conv\.weight"

Parameter = float | int | str | bool | None

_OPERATIONS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.USub: operator.neg,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"min": min, "max": max, "round": round, "int": int}


@dataclass
class Modifier:
    """One thing a recipe does: SparseML's class, without the `!`, and its arguments."""

    kind: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """A recipe with every value worked out."""

    name: str
    text: str  # the Markdown below the YAML: when to use it
    parameters: dict[str, Parameter]
    modifiers: list[Modifier] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """The first heading, or the first line of the text."""
        lines = [line.strip("# ").strip() for line in self.text.splitlines()]
        return next((line for line in lines if line), "")

    def of_kind(self, ending: str) -> list[Modifier]:
        """Modifiers whose class's name ends so."""
        return [modifier for modifier in self.modifiers if modifier.kind.endswith(ending)]


class _Loader(plain_yaml.Loader):
    """Plain YAML and modifiers; nothing in a recipe is ever run."""


class _Dumper(yaml.SafeDumper):
    """The same the other way."""

    def ignore_aliases(self, _: object) -> bool:
        """Every list is written out."""
        return True


def _construct(loader: _Loader, kind: str, node: yaml.Node) -> Modifier:
    if not isinstance(node, yaml.MappingNode):
        return Modifier(kind, {})
    return Modifier(kind, {str(key): value for key, value in loader.construct_mapping(node, deep=True).items()})


_Loader.add_multi_constructor("!", _construct)
# YAML 1.1, which SafeLoader reads, takes 1e-5 for text: it wants a dot in it. People write learning rates so.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(?:\.\d*)?[eE][-+]?\d+\Z"), list("-+0123456789")
)
_Dumper.add_representer(Modifier, lambda dumper, one: dumper.represent_mapping(f"!{one.kind}", one.values))


def names() -> list[str]:
    """Of the recipes that come with Sparsecam, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.md"))


def find(path_or_name: str | Path) -> Path:
    """The file of a recipe; raises RecipeError naming those there are.

    A name is always the recipe shipped, whatever lies in the working directory; `./NAME` is a file there.
    """
    if str(path_or_name) in names():
        return FOLDER / f"{path_or_name}.md"
    path = Path(path_or_name)
    if path.is_file():
        return path
    raise RecipeError(f"{path_or_name}: no such recipe, nor a file; there are {', '.join(names())}")


def load(path_or_name: str | Path, **parameters: Parameter) -> Recipe:
    """A recipe by name or file, with these parameters instead of its own; raises RecipeError."""
    path = find(path_or_name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    return parse(text, path.stem if path.suffix == ".md" else path.name, **parameters)


def read_recipe(path_or_name: str | Path, **parameters: Parameter) -> str:
    """A recipe by name or file as plain YAML, every value worked out: what `Sparsifier` takes, and checkpoints keep."""
    return to_yaml(load(path_or_name, **parameters))


def parse(text: str, name: str = "the recipe", **parameters: Parameter) -> Recipe:
    """Understand a recipe's text; raises RecipeError saying what is wrong with it."""
    front = _FRONT.match(text)
    body, about = front.groups() if front else (text, "")
    try:
        data = plain_yaml.load(body, _Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: no YAML: {error}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{name}: {type(data).__name__} at its top; expected parameters and lists of modifiers")
    own = {str(key): value for key, value in data.items() if not isinstance(value, list | dict)}
    strange = sorted(parameters.keys() - own.keys())
    if strange:
        raise RecipeError(f"{name}: no parameter {', '.join(strange)}; it has {', '.join(sorted(own)) or 'none'}")
    values = own | parameters
    worked = {key: _worked(value, values, name) for key, value in values.items()}
    modifiers = [_filled(modifier, worked, name) for modifier in _modifiers(data, name)]
    if not modifiers:
        raise RecipeError(f"{name}: no modifiers in it; expected a list `modifiers:` of entries like `- !Kind`")
    return Recipe(name, about.strip(), worked, modifiers)


def to_yaml(recipe: Recipe) -> str:
    """The recipe without its text."""
    data = {**recipe.parameters, "modifiers": recipe.modifiers}
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=120))


def matching(patterns: object, names: Iterable[str]) -> dict[str, list[str]]:
    """Which of the names each of a modifier's `params` means; raises RecipeError for what can mean none.

    A pattern is a name, or after `re:` an expression for its beginning.
    """
    listed = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(listed, list) or not listed or not all(isinstance(one, str) for one in listed):
        raise RecipeError(f"params: {repr(patterns) if patterns else 'empty'}; expected a list of {_WEIGHTS}")
    known = list(names)
    found: dict[str, list[str]] = {}
    for pattern in listed:
        if not pattern.startswith("re:"):
            found[pattern] = [name for name in known if name == pattern]
            continue
        try:
            expression = re.compile(pattern.removeprefix("re:"))
        except re.error as error:
            raise RecipeError(f"params: {pattern} is no regular expression: {error}; expected {_WEIGHTS}") from error
        found[pattern] = [name for name in known if expression.match(name)]
    return found


def _modifiers(data: Mapping[Any, Any], name: str) -> Iterator[Modifier]:
    for key, value in data.items():
        if isinstance(value, dict):
            raise RecipeError(f"{name}: {key} is a stage; expected one list of modifiers, apply stages one by one")
        if not isinstance(value, list) or "modifiers" not in str(key):
            continue
        for entry in value:
            if not isinstance(entry, Modifier):
                raise RecipeError(f"{name}: {key} holds {entry!r}; expected entries like `- !EpochRangeModifier`")
            yield entry


def _filled(modifier: Modifier, values: Mapping[str, Parameter], name: str) -> Modifier:
    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return {fill(key): fill(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [fill(inner) for inner in value]
        return _worked(value, values, name)

    return Modifier(modifier.kind, fill(modifier.values))


def _worked(value: Any, values: Mapping[str, Parameter], name: str, depth: int = 0) -> Any:
    """`eval(...)` worked out; any other value as it is."""
    match = _EVAL.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value
    if depth > _MAX_DEPTH:
        raise RecipeError(f"{name}: {value} goes round in a circle")
    try:
        tree = ast.parse(match.group(1).strip(), mode="eval").body
        # Dozens of decimals make nobody wiser: 20 * 0.7 is 14, as written.
        result = _reckon(tree, lambda key: _worked(values[key], values, name, depth + 1))
        return round(result, 9) if isinstance(result, float) else result
    except KeyError as error:
        raise RecipeError(f"{name}: {value}: no parameter {error.args[0]}; there are {', '.join(values)}") from error
    except (SyntaxError, TypeError, ValueError, ArithmeticError) as error:
        raise RecipeError(f"{name}: {value} cannot be worked out: {error}") from error


def _reckon(node: ast.AST, lookup: Callable[[str], Any]) -> Any:
    """Arithmetic on numbers and parameters, and nothing else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str):
        return node.value
    if isinstance(node, ast.Name):
        return lookup(node.id)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_reckon(node.left, lookup), _reckon(node.right, lookup))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_reckon(node.operand, lookup))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
        return _FUNCTIONS[node.func.id](*(_reckon(one, lookup) for one in node.args))
    raise ValueError("expected numbers, parameters, + - * / //, min, max, round and int")
