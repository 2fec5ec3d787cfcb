"""YAML text to plain data, remembering where each key and value stood.

Only plain YAML is read: mappings, lists, scalars, anchors and merge keys (`<<`); no tags that build objects. Aliases
are counted as if they were written out, so a few lines cannot unfold into gigabytes. Keys are always text (`no:` and
`0:` are names), and `90:30` is text, not a number to base sixty.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from services.yaml_slips import mend

KeyPath = tuple[str | int, ...]  # where in the data: ("cameras", "door", "fps")

MAX_FILE_BYTES = 4 << 20  # two thousand cameras at 2 kB each
MAX_VALUES = 50_000  # two thousand cameras with twenty keys each, aliases written out: more than one host decodes
MAX_DEPTH = 32  # the deepest setting is six levels down

_MERGE = "tag:yaml.org,2002:merge"
_SCALARS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "value")}
_SEXAGESIMAL_OR_DATE = re.compile(r"[-+]?\d[\d_]*(:\d|-\d\d?-\d)")


@dataclass(frozen=True)
class Place:
    """A spot in a file (line and column from 1), or the name of an environment variable."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a config, and where."""

    place: Place
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


@dataclass
class Source:
    """Plain data, the place of each key and value by path, the raw text of plain scalars, and what was wrong."""

    data: dict[str, Any]
    root: Place
    keys: dict[KeyPath, Place] = field(default_factory=dict)
    values: dict[KeyPath, Place] = field(default_factory=dict)
    raw: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, path: KeyPath, *, key: bool = False) -> Place:
        """Where `path` stands; for one that is not in the file, its nearest ancestor that is."""
        while path:
            found = (self.keys.get(path) if key else self.values.get(path)) or self.keys.get(path)
            if found is not None:
                return found
            path = path[:-1]
        return self.root


class _TooBig(ValueError):
    """The text unfolds into more than a config can be."""


def parse_scalar(text: str) -> Any:
    """The value of one YAML scalar such as an environment variable holds; a list or mapping in flow style too.

    Raises ValueError when it is not YAML.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(_yaml_complaint(error)) from error
    if node is None:
        return ""
    walker = _Walker(Source({}, Place("value")))
    return walker.value(node, ())


def read_yaml(path: Path) -> Source:
    """Read one file. What is wrong with it is in `problems`; a file that cannot be read at all raises OSError."""
    shown = str(path)
    with path.open("rb") as file:
        payload = file.read(MAX_FILE_BYTES + 1)
    if len(payload) > MAX_FILE_BYTES:
        problem = f"the file is larger than {MAX_FILE_BYTES >> 20} MiB; expected a config written by a person"
        return Source({}, Place(shown), problems=[Problem(Place(shown), problem)])
    try:
        text = payload.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = payload.count(b"\n", 0, error.start) + 1
        column = error.start - (payload.rfind(b"\n", 0, error.start) + 1) + 1
        place = Place(shown, line, column)
        return Source({}, place, problems=[Problem(place, "the file is not UTF-8 text")])
    return parse_yaml(text, shown)


def parse_yaml(text: str, name: str) -> Source:
    """As read_yaml, of text already at hand; `name` stands in messages."""
    source = Source({}, Place(name, 1, 1))
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            return source  # an empty file is a config of defaults
        data = _Walker(source).value(node, ())
    except yaml.YAMLError as error:
        source.problems.append(Problem(_yaml_place(error, name), _yaml_complaint(error, text)))
        return source
    except (_TooBig, RecursionError) as error:
        complaint = str(error) if isinstance(error, _TooBig) else "nested too deeply; refused"
        source.problems.append(Problem(Place(name, 1, 1), complaint))
        return source
    if isinstance(data, dict):
        source.data = data
    else:
        problem = f"expected `key: value` lines at the top level, found a {type(data).__name__}"
        source.problems.append(Problem(_place(node, name), problem))
    return source


class _Walker:
    """Builds data out of a node graph and writes down where everything stood."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._values = 0

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self._values += 1
        if self._values > MAX_VALUES:
            raise _TooBig(f"more than {MAX_VALUES} values once aliases are written out; refused")
        if len(path) > MAX_DEPTH:
            raise _TooBig(f"nested deeper than {MAX_DEPTH} levels; refused")
        self._source.values[path] = self._place(node)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(inner, (*path, index)) for index, inner in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        # Merges come first, wherever they stand, so that the places of a mapping's own keys are the last written.
        for _, value_node in (pair for pair in node.value if pair[0].tag == _MERGE):
            for part in self._merged_mappings(value_node):
                # An earlier mapping of a merge list wins over a later one, as YAML's merge type says.
                merged = {**self._mapping(part, path), **merged}
        for key_node, value_node in (pair for pair in node.value if pair[0].tag != _MERGE):
            if not isinstance(key_node, yaml.ScalarNode):
                self._complain(key_node, "a list or mapping cannot be a key; expected a name")
                continue
            name = str(key_node.value)
            here = (*path, name)
            if name in own:
                first = self._source.keys[here]
                self._complain(key_node, f"{dotted(here)}: given twice (first in line {first.line})")
                continue
            self._source.keys[here] = self._place(key_node)
            own[name] = self.value(value_node, here)
        return {**merged, **own}

    def _merged_mappings(self, node: yaml.Node) -> Iterator[yaml.MappingNode]:
        self._values += 1
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for part in parts:
            if isinstance(part, yaml.MappingNode):
                yield part
            else:
                self._complain(part, "`<<` merges mappings only")

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        text = str(node.value)
        plain = getattr(node, "style", None) is None
        if plain:
            self._source.raw[path] = text
            if _SEXAGESIMAL_OR_DATE.match(text):
                return text
        if node.tag not in _SCALARS:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            self._complain(node, f"unknown tag {tag!r}; plain values only")
            return text
        loader = yaml.SafeLoader("")
        try:
            return loader.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            found = error.problem if isinstance(error, yaml.constructor.ConstructorError) else error
            self._complain(node, f"not understood: {found}")
            return text
        finally:
            loader.dispose()

    def _place(self, node: yaml.Node) -> Place:
        return _place(node, self._source.root.source)

    def _complain(self, node: yaml.Node, text: str) -> None:
        self._source.problems.append(Problem(self._place(node), text))


def dotted(path: KeyPath) -> str:
    """`cameras.door.zones[0]` for a path."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _place(node: yaml.Node, name: str) -> Place:
    return Place(name, node.start_mark.line + 1, node.start_mark.column + 1)


def _yaml_place(error: yaml.YAMLError, name: str) -> Place:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return Place(name, mark.line + 1, mark.column + 1) if mark is not None else Place(name, 1, 1)


def _yaml_complaint(error: yaml.YAMLError, text: str = "") -> str:
    """What the parser stumbled on, without the snippet it would quote (it may hold a password); the mend, if known."""
    if isinstance(error, yaml.MarkedYAMLError):
        parts = [part for part in (error.context, error.problem) if part]
        slip = mend(error, text)
        return "not YAML: " + ", ".join(parts) + (f": {slip}" if slip else "")
    if isinstance(error, yaml.reader.ReaderError):
        return f"not YAML: the character U+{error.character:04X} is not allowed in it"
    return "not YAML"
