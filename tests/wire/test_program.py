"""What runs as ours is ours, whatever lies in the folder that somebody stands in."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from wire.program import module, python


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A folder with files named like our rooms and like a module of Python's own."""
    for name in ("services/__init__.py", "wire/__init__.py", "json.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("raise SystemExit('a stranger was run')\n")
    return tmp_path


def test_strangers_of_the_current_folder_are_not_run(trap: Path, bright_box_model: Path) -> None:
    for command in (
        python("import json, sys; print(json.dumps(sys.argv[1:]))", "bright"),
        module("services.model_classes", str(bright_box_model)),
    ):
        done = subprocess.run(command, cwd=trap, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert "bright" in done.stdout
