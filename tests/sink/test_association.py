"""Boxes and tracks are joined so that the sum of their likeness is the greatest."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sink.tracking.association import _alike, match
from sink.tracking.stillness import overlap

Box = tuple[float, float, float, float]


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    left, top = draw(st.floats(-50, 200)), draw(st.floats(-50, 200))
    return left, top, left + draw(st.floats(1, 150)), top + draw(st.floats(1, 150))


def best_sum(gain: list[list[float]]) -> float:
    """The greatest sum of an assignment, by trying all; the matrix is no wider than 4."""
    rows, columns = len(gain), len(gain[0])
    padded = [[gain[r][c] if r < rows and c < columns else 0.0 for c in range(4)] for r in range(4)]
    return max(sum(padded[r][c] for r, c in enumerate(order)) for order in permutations(range(4)))


@given(st.lists(boxes(), min_size=1, max_size=4), st.lists(boxes(), min_size=1, max_size=4), st.data())
def test_the_pairs_have_the_greatest_sum_of_likeness_times_score(
    tracks: list[Box], seen: list[Box], data: st.DataObject
) -> None:
    scores = [data.draw(st.floats(0.01, 1)) for _ in seen]
    pairs = match(tracks, [0.0] * len(tracks), seen, scores, 0.2)

    def likeness(one: Box, other: Box) -> float:
        height = overlap((0, one[1], 1, one[3]), (0, other[1], 1, other[3]))
        return both * height**2 if (both := overlap(one, other)) >= 0.2 else 0.0

    gain = [[likeness(track, box) * score for box, score in zip(seen, scores, strict=True)] for track in tracks]
    assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)
    assert all(gain[row][column] > 0 for row, column in pairs)
    assert sum(gain[row][column] for row, column in pairs) == pytest.approx(best_sum(gain), abs=1e-9)


@given(boxes(), boxes(), st.floats(0, 50))
def test_a_margin_is_a_larger_box_on_both_sides(one: Box, other: Box, margin: float) -> None:
    def grown(box: Box) -> Box:
        return box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin

    gain = sum(each for _, _, each in _alike([one], [margin], [other], [0.5], 0.0))
    one, other = grown(one), grown(other)
    height = overlap((0, one[1], 1, one[3]), (0, other[1], 1, other[3]))
    assert gain == pytest.approx(0.5 * overlap(one, other) * height**2, abs=1e-9)


def test_nothing_matches_nothing() -> None:
    box = (0.0, 0.0, 10.0, 10.0)
    assert match([], [], [box], [0.9], 0.2) == match([box], [0.0], [], [], 0.2) == []
    assert match([box], [0.0], [(11.0, 0.0, 21.0, 10.0)], [0.9], 0.2) == []
