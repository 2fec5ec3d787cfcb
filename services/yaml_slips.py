"""What a person most likely slipped on where a file is no YAML, and the mend.

Lines are shown by their keys alone: a value may be a password.
"""

from __future__ import annotations

import re

import yaml

_KEY = re.compile(r"(?:- +)*[^\s:#'\"{}\[\],][^:#'\"{}\[\]]*:(?=\s|$)")
_COMMENT = re.compile(r"(^|\s)#.*$")


def mend(error: yaml.MarkedYAMLError, text: str) -> str:
    """The slip and its mend; empty where the parser's own words must do."""
    mark, problem = error.problem_mark, str(error.problem)
    lines = text.splitlines()
    if mark is None or mark.line >= len(lines):
        return ""
    if "'\\t'" in problem:
        where = "is indented with a tab" if not lines[mark.line][: mark.column].strip() else "has a tab in it"
        return f"{_shown(lines, mark.line)} {where}; YAML wants spaces, not tabs"
    if problem == "mapping values are not allowed here" or str(error.context) == "while parsing a block mapping":
        return _indentation(lines, mark.line)
    return ""


def _indentation(lines: list[str], at: int) -> str:
    """How a line is indented that begins where none may."""
    here = _indent(lines[at])
    above = [place for place in range(at) if _said(lines[place]) and "\t" not in lines[place][: _indent(lines[place])]]
    outer = next((place for place in reversed(above) if _indent(lines[place]) < here), None)
    if outer is not None and not _said(lines[outer]).endswith(":"):
        return f"{_shown(lines, at)} is indented deeper than {_shown(lines, outer)}, which has a value; align the two"
    open_at: dict[int, int] = {}  # indentation: the nearest line above that has it, and that nothing has ended since
    least = None
    for place in reversed(above):
        if least is None or _indent(lines[place]) < least:
            least = _indent(lines[place])
            open_at[least] = place
    first_below = outer is not None and outer == above[-1]  # however deep it stands
    if open_at and here not in open_at and not first_below:
        near = min(open_at.values(), key=lambda place: (abs(_indent(lines[place]) - here), -place))
        return (
            f"{_shown(lines, at)} is indented by {here}, and no line above it; align it with its neighbours, "
            f"such as {_shown(lines, near)} by {_indent(lines[near])}"
        )
    if _said(lines[at]).count(": ") > 1:
        return f"{_shown(lines, at)}: a value with a colon and a space in it wants quotes"
    return ""


def _said(line: str) -> str:
    """A line without its comment and the space around it."""
    return _COMMENT.sub("", line).strip()


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _shown(lines: list[str], at: int) -> str:
    """`line 3 ("  fps: ...")`."""
    line = lines[at]
    said = _said(line)
    key = _KEY.match(said)
    told = (key[0] if key else "- " if said.startswith("- ") else "").rstrip()
    rest = "..." if len(told) < len(line.strip()) else ""
    space = line[: _indent(line)].replace("\t", "<tab>")
    return f'line {at + 1} ("{space}{told}{" " if told and rest else ""}{rest}")'
