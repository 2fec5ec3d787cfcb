"""Recipes are found, filled in and checked without SparseML, and without running what is in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from services.cli import app
from trainer import recipes
from trainer.errors import RecipeError
from trainer.lint import lint
from trainer.model import SIZES, YoloV5

RECIPE = """
end: 10
half: eval(end / 2)
goal: 0.5
pruning_modifiers:
  - !GMPruningModifier
      start_epoch: 0
      end_epoch: eval(half)
      update_frequency: 0.5
      init_sparsity: 0.05
      final_sparsity: eval(goal)
      mask_type: [1, 4]
      params: ['re:model\\.3\\.conv\\.weight']
training_modifiers:
  - !EpochRangeModifier {start_epoch: 0, end_epoch: eval(end)}
"""


@pytest.fixture(scope="module")
def network() -> YoloV5:
    return YoloV5(SIZES["n"], 3)


@pytest.mark.parametrize("name", recipes.names())
@pytest.mark.parametrize("epochs", [2, 3, 4, 20, 240])
def test_every_recipe_fits_every_network_however_long_it_trains(name: str, epochs: int, network: YoloV5) -> None:
    report = lint(recipes.load(name, num_epochs=epochs), network)
    assert report.findings == []
    assert report.zeros >= 0.75 or "pruned" not in name or "transfer" in name


@pytest.mark.parametrize("name", ["yolov5.pruned", "yolov5.pruned_quantized"])
def test_one_epoch_is_too_short_to_prune_in_and_lint_says_so(name: str, network: YoloV5) -> None:
    assert not lint(recipes.load(name, num_epochs=1), network).good


def test_recipes_say_when_to_use_them() -> None:
    for name in recipes.names():
        recipe = recipes.load(name)
        assert recipe.summary
        assert len(recipe.text.splitlines()) >= 3


def test_parameters_go_through_expressions() -> None:
    recipe = recipes.parse(RECIPE, end=30)
    assert recipe.modifiers[0].values["end_epoch"] == 15
    assert recipe.of_kind("EpochRangeModifier")[0].values["end_epoch"] == 30
    assert recipes.parse(recipes.to_yaml(recipe)).modifiers == recipe.modifiers


@given(a=st.integers(-1000, 1000), b=st.integers(1, 1000), c=st.floats(-100, 100))
def test_expressions_are_arithmetic(a: int, b: int, c: float) -> None:
    text = f"a: {a}\nb: {b}\nc: {c}\nd: eval(max(a, (a + c) * 2 / b) - min(b, 3))\nmodifiers:\n  - !X {{v: eval(d)}}"
    (modifier,) = recipes.parse(text).modifiers
    assert modifier.values["v"] == pytest.approx(max(a, (a + c) * 2 / b) - min(b, 3), abs=1e-6)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("modifiers: [", "no YAML"),
        ("modifiers:\n  - !!python/object/apply:os.system ['true']", "no YAML"),
        ("modifiers:\n  - plain", "holds 'plain'"),
        ("a: eval(__import__('os').getpid())\nmodifiers:\n  - !X {}", "worked out"),
        ("a: eval(b)\nb: eval(a)\nmodifiers:\n  - !X {}", "circle"),
        ("a: eval(missing)\nmodifiers:\n  - !X {}", "no parameter missing"),
        ("a: 1", "no modifiers"),
        ("stage:\n  modifiers: []", "stage"),
        ("[1, 2]", "list at its top"),
        ("a: 2021-99-99\nmodifiers:\n  - !X {}", "'2021-99-99' reads as a timestamp, but is none"),
        ("[" * 3000, "hundreds deep"),
        ("a: eval(int(1e308 * 10))\nmodifiers:\n  - !X {}", "cannot be worked out"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said_and_nothing_in_it_runs(text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        recipes.parse(text)


def test_unknown_parameters_and_names_are_refused_with_those_there_are() -> None:
    with pytest.raises(RecipeError, match="no parameter epochs; it has end, goal, half"):
        recipes.parse(RECIPE, epochs=3)
    with pytest.raises(RecipeError, match=r"yolov5\.pruned_quantized"):
        recipes.load("yolov5.prnued")


def test_a_name_is_the_recipe_shipped_whatever_lies_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "yolov5.quantized").write_text("[admin]: hunter2 {secret\n")
    assert recipes.load("yolov5.quantized").summary.startswith("Quantised, not pruned")
    (tmp_path / "yolov5.quantized").write_text(RECIPE)
    assert "end" in recipes.load("./yolov5.quantized").parameters


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("model\\.3", "model\\.99", "matches no weights"),
        ("model\\.3\\.conv", "model\\.0\\.conv", "do not divide"),
        ("end: 10", "end: 0", "no end"),
        ("end_epoch: eval(half)", "end_epoch: 11", "training ends at 10"),
        ("start_epoch: 0\n      end", "start_epoch: 7\n      end", "not after its start"),
        ("goal: 0.5", "goal: 1.5", "expected a share"),
        ("eval(goal)", "[0.5]", "expected a share"),
        ("\\.3\\.", "\\.(3\\.", "is no regular expression: missing ), unterminated subpattern"),
        ("params: ['re:model\\.3\\.conv\\.weight']", "params:", "params: empty; expected a list of names like model.1"),
        ("['re:model\\.3\\.conv\\.weight']", "[3]", "params: [3]; expected a list of names"),
        ("[1, 4]", "[1, four]", "mask_type [1, 'four']; expected whole numbers"),
        ("  - !EpochRange", "  - !QuantizationModifier {ignore: 24}\n  - !EpochRange", "ignore: 24; expected a list"),
        ("end_epoch: eval(half)", "end_epoch: 10", "is at its goal from epoch 10, but the last is number 9"),
        ("end_epoch: eval(half)", "end_epoch: 9.5", "is at its goal from epoch 9.5, but the last is number 9"),
    ],
)
def test_lint_finds_what_would_fail_hours_later(old: str, new: str, words: str, network: YoloV5) -> None:
    assert lint(recipes.parse(RECIPE), network).good
    report = lint(recipes.parse(RECIPE.replace(old, new, 1)), network)
    assert not report.good
    assert any(words in finding.what for finding in report.findings)


def test_lint_knows_that_names_to_ignore_are_compared_by_their_beginnings(network: YoloV5) -> None:
    text = recipes.read_recipe("yolov5.quantized").replace("- model.24", "- model.2")
    findings = lint(recipes.parse(text), network).findings
    assert any("which would be left out too" in finding.what for finding in findings)


def test_the_command_shows_and_checks_recipes(tmp_path: Path) -> None:
    run = CliRunner()
    listed = run.invoke(app, ["recipes", "list", "--json"])
    assert {row["name"] for row in json.loads(listed.stdout)} == set(recipes.names())
    shown = run.invoke(app, ["recipes", "show", "yolov5.pruned", "--recipe-args", '{"num_epochs": 20}'])
    assert "end_epoch: 14" in shown.stdout
    good = run.invoke(app, ["recipes", "lint", "yolov5.pruned_quantized", "--cfg", "yolov5s"])
    assert good.exit_code == 0
    assert "zeros in all" in good.stdout
    bad = tmp_path / "bad.yaml"
    bad.write_text(RECIPE.replace("model\\.3", "model\\.99"), encoding="utf-8")
    found = run.invoke(app, ["recipes", "lint", str(bad)])
    assert found.exit_code == 1
    assert "model\\.99" in found.stdout


def test_recipes_are_plain_yaml_for_sparseml() -> None:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda loader, kind, node: (kind, loader.construct_mapping(node, deep=True)))
    data = yaml.load(recipes.read_recipe("yolov5.pruned_quantized"), Loader=Loader)
    assert [kind for kind, _ in data["modifiers"]].count("QuantizationModifier") == 1
    assert "eval" not in json.dumps(data)
