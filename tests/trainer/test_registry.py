"""The registry gives a model by its name only as its card describes it, and says what is there otherwise."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from trainer.card import read_card, read_told
from trainer.errors import CardError, RegistryError
from trainer.gate import GateSettings, refusals
from trainer.registry import Entry, add, entries, find, is_name, remove

ONNX = b"the bytes of a model"


def put(cards: ModuleType, folder: Path, name: str = "street-n", onnx: bytes = ONNX, *, replace: bool = False) -> Entry:
    return add(folder, onnx, cards.card(name, hashlib.sha256(onnx).hexdigest()), replace=replace)


def test_what_was_added_is_found_with_its_card(cards: ModuleType, tmp_path: Path) -> None:
    put(cards, tmp_path / "models")
    entry = find("street-n", [tmp_path / "models"])
    assert entry.path.read_bytes() == ONNX
    assert entry.card == cards.card("street-n", hashlib.sha256(ONNX).hexdigest())
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [
        "street-n.card.md",
        "street-n.card.yaml",
        "street-n.onnx",
    ]


def test_a_wrong_name_lists_what_is_there(cards: ModuleType, tmp_path: Path) -> None:
    for name in ("b", "a"):
        put(cards, tmp_path, name)
    with pytest.raises(RegistryError, match=r"no model 'c'.* has: a, b"):
        find("c", [tmp_path])
    with pytest.raises(RegistryError, match="has: no model"):
        find("c", [tmp_path / "nothing here"])


@pytest.mark.parametrize("wrong", ["pistol-yolov5n-oneshot", "pistols", "yolov5n"])
def test_the_name_that_was_meant_is_told(cards: ModuleType, tmp_path: Path, wrong: str) -> None:
    put(cards, tmp_path, "pistols-yolov5n-oneshot")
    with pytest.raises(RegistryError, match=r"; did you mean 'pistols-yolov5n-oneshot'\?"):
        find(wrong, [tmp_path])


def test_a_changed_file_is_refused(cards: ModuleType, tmp_path: Path) -> None:
    entry = put(cards, tmp_path)
    entry.path.write_bytes(ONNX + b".")
    with pytest.raises(RegistryError, match="has changed since its card was written"):
        find("street-n", [tmp_path])
    entry.path.unlink()
    with pytest.raises(RegistryError, match="cannot be read"):
        find("street-n", [tmp_path])


def test_a_model_without_a_card_or_with_a_broken_or_borrowed_one_is_named_and_refused(
    cards: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "bare.onnx").write_bytes(ONNX)
    (tmp_path / "broken.onnx").write_bytes(ONNX)
    (tmp_path / "broken.card.yaml").write_text("format: 1\nname: broken\n")
    put(cards, tmp_path, "whole")
    for suffix in (".onnx", ".card.yaml"):
        (tmp_path / f"borrowed{suffix}").write_bytes((tmp_path / f"whole{suffix}").read_bytes())
    problems = {entry.name: entry.problem for entry in entries([tmp_path])}
    assert problems.pop("whole") == ""
    assert "has no card" in problems["bare"]
    assert "sha256: Field required" in problems["broken"]
    assert "is the card of 'whole'" in problems["borrowed"]
    for name in problems:
        with pytest.raises(RegistryError, match=f"{name}.* cannot be used"):
            find(name, [tmp_path])


def test_the_first_folder_with_the_name_wins(cards: ModuleType, tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    put(cards, theirs, onnx=b"theirs")
    put(cards, mine, onnx=b"mine")
    put(cards, theirs, "other", onnx=b"other")
    assert find("street-n", [mine, theirs]).path.read_bytes() == b"mine"
    assert find("other", [mine, theirs]).path.read_bytes() == b"other"
    assert [entry.path.parent.name for entry in entries([mine, theirs])] == ["theirs", "mine"]


def test_a_name_is_taken_until_it_is_replaced_or_removed(cards: ModuleType, tmp_path: Path) -> None:
    put(cards, tmp_path)
    with pytest.raises(RegistryError, match="there already"):
        put(cards, tmp_path, onnx=b"newer")
    assert find("street-n", [tmp_path]).path.read_bytes() == ONNX
    put(cards, tmp_path, onnx=b"newer", replace=True)
    assert find("street-n", [tmp_path]).path.read_bytes() == b"newer"
    assert len(remove(tmp_path, "street-n")) == 3
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine.onnx").write_bytes(ONNX)
    for name in ("street-n", "mine", "../street-n"):
        with pytest.raises(RegistryError):
            remove(tmp_path, name)
    assert (tmp_path / "mine.onnx").exists()


def test_who_was_killed_while_adding_a_model_adds_it_again(cards: ModuleType, tmp_path: Path) -> None:
    put(cards, tmp_path)
    put(cards, tmp_path)
    (tmp_path / "street-n.card.yaml").unlink()
    put(cards, tmp_path)
    assert find("street-n", [tmp_path]).path.read_bytes() == ONNX


def test_a_card_enters_with_its_own_file_only(cards: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="of another file"):
        add(tmp_path, ONNX, cards.card("street-n", "0" * 64))
    with pytest.raises(RegistryError, match="leave the suffix out"):
        put(cards, tmp_path, "street.onnx")
    assert not list(tmp_path.iterdir())


def test_two_writers_leave_one_whole_model(cards: ModuleType, tmp_path: Path) -> None:
    models = [bytes([number]) * 100_000 for number in range(8)]
    threads = [
        threading.Thread(target=put, args=(cards, tmp_path), kwargs={"onnx": one, "replace": True}) for one in models
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert find("street-n", [tmp_path]).path.read_bytes() in models
    assert len(list(tmp_path.iterdir())) == 3


@given(st.text(max_size=70))
def test_no_name_leads_out_of_the_folder(text: str) -> None:
    if is_name(text):
        assert (Path("/models") / f"{text}.onnx").parent == Path("/models")
        assert "\n" not in text
        assert len(text) <= 64


def test_a_trainers_part_says_all_that_is_wrong_at_once(tmp_path: Path) -> None:
    path = tmp_path / "facts.yaml"
    path.write_text("licence: ''\ndata: {name: street}\nlicense: MIT\n")
    with pytest.raises(CardError) as caught:
        read_told(path)
    for word in ("licence", "data.licence", "training", "provenance", "license"):
        assert f"{word}: " in str(caught.value)
    for text in ("{", "- 1", "\x00", ""):
        path.write_text(text)
        with pytest.raises(CardError, match=r"facts\.yaml"):
            read_told(path)
    with pytest.raises(CardError, match="cannot read"):
        read_told(tmp_path / "gone.yaml")


def test_a_card_survives_being_written(cards: ModuleType, tmp_path: Path) -> None:
    entry = put(cards, tmp_path)
    path = tmp_path / "street-n.card.yaml"
    assert read_card(path) == entry.card
    text = yaml.safe_load(path.read_text())
    text["measured"]["made"] = "2026-01-31T12:00:00"
    path.write_text(yaml.safe_dump(text))
    with pytest.raises(CardError, match="with its zone"):
        read_card(path)


def test_the_gate_names_both_figures_of_what_it_refuses(cards: ModuleType) -> None:
    limits = GateSettings(max_map_drop=0.02, min_speedup=1.5)
    assert refusals(cards.measured(), limits) == []
    assert refusals(cards.measured(map50=0.9, baseline=0.86), limits) == []
    lost, slow = refusals(cards.measured(map50=0.8, baseline=0.86, ms=10, dense_ms=12), limits)
    assert "0.8000" in lost
    assert "0.8600" in lost
    assert "10.00 ms" in slow
    assert "12.00 ms" in slow
    # At the limit itself nothing has been proved.
    assert (
        len(
            refusals(
                cards.measured(map50=0.5, baseline=0.75, ms=2, dense_ms=3),
                GateSettings(max_map_drop=0.25, min_speedup=1.5),
            )
        )
        == 2
    )
