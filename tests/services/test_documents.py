"""The whole configs that the documents show can be used as they are, and the metrics that they name are exported."""

from __future__ import annotations

import ast
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


def exported() -> set[str]:
    """Metrics as Prometheus gets them: counters end in _total there."""
    names = set()
    for path in (ROOT / "services").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "Count" and node.args:
                gauge = any(keyword.arg == "gauge" for keyword in node.keywords)
                name = node.args[0]
                if isinstance(name, ast.Constant):
                    names.add(name.value if gauge else f"{name.value}_total")
    return names


def test_metrics_that_the_documents_name_are_exported() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    named = {name for page in pages for name in re.findall(r"sparsecam_[a-z_]+[a-z](?!\w)(?!\*)", page.read_text())}
    assert len(named) >= 6
    assert named <= exported()
