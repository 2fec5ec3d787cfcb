"""What a table shows is whole, however narrow the terminal; and nothing but a terminal has a width."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from services.commands.tables import print_table

HEADERS = ("rule", "labels", "cooldown")
ROWS = [
    ("somebody-at-the-back-door", "person, bicycle, car, [dog]", "30 s"),
    ("crowd", "all", "5 s"),
]


@pytest.mark.parametrize("width", [100, 56, 40, 20])
def test_names_and_words_stay_whole_at_any_width(width: int) -> None:
    out = io.StringIO()
    print_table(Console(file=out, width=width), HEADERS, ROWS)
    text = out.getvalue()
    assert "…" not in text
    for name, *cells in ROWS:
        assert name in text
        for word in " ".join(cells).split():
            assert word in text, text


def test_on_a_wide_terminal_it_is_a_box_and_on_a_narrow_one_a_paragraph_a_row() -> None:
    wide, narrow = io.StringIO(), io.StringIO()
    print_table(Console(file=wide, width=100), HEADERS, ROWS)
    print_table(Console(file=narrow, width=40), HEADERS, ROWS)
    assert wide.getvalue().startswith("┏")
    assert narrow.getvalue().splitlines()[-2:] == ["crowd", "  labels all; cooldown 5 s"]


def test_into_a_pipe_lines_are_as_long_as_they_need_be(
    sparsecam: Callable[..., subprocess.CompletedProcess[str]], folder: Path
) -> None:
    names = [f"somebody-at-the-{side}-door-{'x' * 30}" for side in ("front", "back")]
    path = folder / "c.yaml"
    rules = "".join(f"  {name}: {{labels: [person, bicycle, car, truck, dog, cat]}}\n" for name in names)
    path.write_text(f"rules:\n{rules}")
    listed = sparsecam("check", str(path), env={"COLUMNS": "40"}).stdout
    for name in names:
        (line,) = [line for line in listed.splitlines() if name in line]
        assert "person, bicycle, car, truck, dog, cat" in line
