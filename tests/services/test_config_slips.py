"""Common slips of a config, each told once with the mend: indentation, tabs, pixels, a key beside a wrong kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.config import load
from services.config_errors import ConfigError
from services.yaml_source import parse_yaml


def complaints(folder: Path, text: str) -> list[str]:
    path = folder / "sparsecam.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    return [str(problem).removeprefix(f"{path}:") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "cameras:\n  hall:\n    source: rtsp://u:hunter22@h/1\n      fps: 5\n",
            '4:10: not YAML: mapping values are not allowed here: line 4 ("      fps: ...") is indented deeper than '
            'line 3 ("    source: ..."), which has a value; align the two',
        ),
        (
            "cameras:\n  hall: {source: a.mp4}  # one\n\n   yard: {source: b.mp4}\n",
            'line 4 ("   yard: ...") is indented deeper than line 2 ("  hall: ..."), which has a value; align the two',
        ),
        (
            "rules:\n  r:\n    labels: [person]\n   min_score: 0.5\n",
            'line 4 ("   min_score: ...") is indented by 3, and no line above it; align it with its neighbours, '
            'such as line 3 ("    labels: ...") by 4',
        ),
        ("redis:\n  url: x\n\ttimeout_s: 3\n", 'line 3 ("<tab>timeout_s: ...") is indented with a tab; YAML wants spa'),
        ("cameras:\n  hall:\n    source: a: hunter22\n", 'line 3 ("    source: ..."): a value with a colon and a spac'),
    ],
)
def test_a_slip_of_indentation_is_shown_with_its_mend(tmp_path: Path, text: str, expected: str) -> None:
    (found,) = complaints(tmp_path, text)
    assert expected in found
    assert "hunter22" not in found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "cameras:\nhall:\n  source: a.mp4\nrules: {}\n",
            [
                "1:9: cameras: found nothing; expected `key: value` lines (Cameras by name (letters, digits, dash, "
                "underscore, dot)); is 'hall' meant to stand under 'cameras'? Indent it",
                "2:1: hall: unknown key 'hall'; is it meant to stand under 'cameras'? Indent it",
            ],
        ),
        (
            "cameras:\n  hall:\n  source: a.mp4\n",
            [
                "2:8: cameras.hall: found nothing; expected `key: value` lines; is 'source' meant to stand under "
                "'hall'? Indent it",
                "3:11: cameras.source: found 'a.mp4'; is it meant to stand under 'hall'? Indent it",
            ],
        ),
        (
            "cameras:\nredis: 3\n",
            [
                "1:9: cameras: found nothing; expected `key: value` lines (Cameras by name (letters, digits, dash, "
                "underscore, dot))",
                "2:8: redis: found 3; expected `key: value` lines (Where detections and alerts go)",
            ],
        ),
    ],
)
def test_what_was_not_indented_is_asked_for(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert complaints(tmp_path, text) == expected


def test_corners_in_pixels_are_told_once_an_outline(tmp_path: Path) -> None:
    text = "scenes:\n  yard:\n    zones:\n      z: [[0, 200], [500, 200], [500, 1]]\n    lines: {l: [[0, 0], [1, 9]]}\n"
    how = "these look like pixels, expected fractions of the picture, 0 to 1: divide each x by the picture's width and"
    assert [line.partition(how)[0] for line in complaints(tmp_path, text)] == [
        "4:10: scenes.yard.zones.z: found 200, 500, 200, 500; ",
        "5:16: scenes.yard.lines.l: found 9; ",
    ]


def test_an_unknown_key_is_named_beside_a_wrong_kind(tmp_path: Path) -> None:
    text = "rules:\n  r: {kind: zon, zone: porch, lables: [person]}\noutputs:\n  o: {urll: x}\n"
    kind, key, missing, other = complaints(tmp_path, text)
    assert kind.endswith("did you mean 'zone'? (more may show once this is mended)")
    assert key == "2:31: rules.r.lables: unknown key 'lables'; did you mean 'labels'?"
    assert missing.startswith("4:3: outputs.o.kind: missing")
    assert other == "4:7: outputs.o.urll: unknown key 'urll'; did you mean 'url'?"


@given(st.text(alphabet="ab:- \t\n#'", max_size=80))
def test_any_indentation_is_read_or_refused_in_words(text: str) -> None:
    assert all(str(problem).startswith("any.yaml:") for problem in parse_yaml(text, "any.yaml").problems)
