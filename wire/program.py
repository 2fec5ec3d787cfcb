"""The command line of a child process that is our code too: run by this Python, whatever lies in the current folder."""

from __future__ import annotations

import sys
from pathlib import Path

_HOUSE = str(Path(__file__).resolve().parents[1])


def python(program: str, *arguments: str) -> tuple[str, ...]:
    """The command that runs `program`, Python text, with our rooms before all else.

    By themselves `-c` and `-m` put the current folder there: any `services` in it, or `json.py`, would be run as ours.
    """
    return (sys.executable, "-c", f"import sys; sys.path[:1] = [{_HOUSE!r}]; {program}", *arguments)


def module(name: str, *arguments: str) -> tuple[str, ...]:
    """As `python`, for a module that `-m` would run."""
    return python(f"import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)", *arguments)
