"""The whole configs that the documents show can be used as they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from services.config import load

ROOT = Path(__file__).parents[2]
BLOCKS = [
    (path.relative_to(ROOT), number, block)
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for number, block in enumerate(re.findall(r"^```yaml\n(.*?)^```", path.read_text(), re.M | re.S))
    if re.search("^cameras:", block, re.M)  # others are pieces of one
]


def test_there_are_some() -> None:
    assert {str(path) for path, _, _ in BLOCKS} >= {"README.md", "docs/alerts.md"}


@pytest.mark.parametrize(("path", "number", "block"), BLOCKS)
def test_a_shown_config_loads(path: Path, number: int, block: str, tmp_path: Path) -> None:
    config = tmp_path / "sparsecam.yaml"
    config.write_text(block)
    assert load(config, env={}).cameras, f"{path}, block {number}"
