"""Points, polygons and lines: against plain references, with exact arithmetic (small whole numbers)."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from sink.geometry import area, crossings, inside, meeting_edges, side, touch

numbers = st.integers(-8, 8)
points = st.tuples(numbers, numbers)
outlines = st.lists(points, min_size=3, max_size=7)
simple = outlines.filter(lambda outline: meeting_edges(outline) is None)


def winding(point: tuple[int, int], outline: list[tuple[int, int]]) -> int:
    """How often the outline goes around the point, by counting which edges pass a ray to the right of it."""
    turns = 0
    for a, b in zip(outline, outline[1:] + outline[:1], strict=True):
        if (a[1] > point[1]) != (b[1] > point[1]):
            x = Fraction(a[0]) + Fraction((point[1] - a[1]) * (b[0] - a[0]), b[1] - a[1])
            if x > point[0]:
                turns += 1 if b[1] > a[1] else -1
    return turns


@given(point=points, outline=simple)
def test_inside_is_what_the_outline_goes_around(point: tuple[int, int], outline: list[tuple[int, int]]) -> None:
    assert inside(point, outline) == (winding(point, outline) != 0)


@given(point=points, outline=simple, turn=st.integers(0, 6), back=st.booleans())
def test_where_an_outline_begins_and_which_way_it_runs_does_not_matter(
    point: tuple[int, int], outline: list[tuple[int, int]], turn: int, back: bool
) -> None:
    turned = outline[turn % len(outline) :] + outline[: turn % len(outline)]
    assert inside(point, turned[::-1] if back else turned) == inside(point, outline)
    assert area(turned) == area(outline)


@given(point=st.tuples(st.integers(0, 20), st.integers(0, 20)), x=st.integers(1, 19), y=st.integers(1, 19))
def test_of_zones_that_share_an_edge_a_point_is_in_exactly_one(point: tuple[int, int], x: int, y: int) -> None:
    quarters = [[(a, c), (b, c), (b, d), (a, d)] for a, b in ((-1, x), (x, 21)) for c, d in ((-1, y), (y, 21))]
    assert sum(inside(point, quarter) for quarter in quarters) == 1


@given(a=points, b=points, c=points, d=points)
def test_touch_is_symmetric_and_agrees_with_exact_intersection(
    a: tuple[int, int], b: tuple[int, int], c: tuple[int, int], d: tuple[int, int]
) -> None:
    assume(a != b and c != d)
    assert touch((a, b), (c, d)) == touch((c, d), (a, b)) == touch((b, a), (c, d)) == _meets(a, b, c, d)


def _meets(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int], d: tuple[int, int]) -> bool:
    """Solve a + s (b - a) = c + t (d - c)."""
    (ux, uy), (vx, vy) = (b[0] - a[0], b[1] - a[1]), (d[0] - c[0], d[1] - c[1])
    wx, wy = c[0] - a[0], c[1] - a[1]
    det = ux * vy - uy * vx
    if det:
        s, t = Fraction(wx * vy - wy * vx, det), Fraction(wx * uy - wy * ux, det)
        return 0 <= s <= 1 and 0 <= t <= 1
    if wx * uy - wy * ux:
        return False
    length = ux * ux + uy * uy
    ends = sorted(Fraction((p[0] - a[0]) * ux + (p[1] - a[1]) * uy, length) for p in (c, d))
    return ends[0] <= 1 and ends[1] >= 0


@given(outline=outlines)
def test_a_polygon_is_refused_exactly_when_edges_meet_that_should_not(outline: list[tuple[int, int]]) -> None:
    count = len(outline)
    edges = [(outline[i], outline[(i + 1) % count]) for i in range(count)]
    bad = len(set(outline)) < count
    for i in range(count):
        for j in range(i + 1, count):
            if bad:
                break
            if j - i in (1, count - 1):  # neighbours may share one point: the far end of each is off the other
                first, second = (i, j) if j - i == 1 else (j, i)
                bad |= _on(edges[second][1], *edges[first]) or _on(edges[first][0], *edges[second])
            else:
                bad |= _meets(*edges[i], *edges[j])
    assert (meeting_edges(outline) is not None) == bad


def _on(point: tuple[int, int], a: tuple[int, int], b: tuple[int, int]) -> bool:
    return side(point, a, b) == 0 and min(a, b) <= point <= max(a, b)


@pytest.mark.parametrize(
    ("outline", "edges"),
    [
        ([(0, 0), (1, 0), (1, 1), (0, 1)], None),
        ([(0, 0), (1, 1), (1, 0), (0, 1)], (0, 2)),  # a bow tie
        ([(0, 0), (2, 0), (1, 0), (1, 1)], (0, 1)),  # folds back on itself
        ([(0, 0), (1, 0), (2, 0)], (0, 2)),  # a line, there and back
        ([(0, 0), (0, 0), (1, 1)], (0, 1)),
    ],
)
def test_meeting_edges_are_named(outline: list[tuple[int, int]], edges: tuple[int, int] | None) -> None:
    assert meeting_edges(outline) == edges


@given(way=st.lists(points, min_size=2, max_size=8), start=points, end=points)
def test_a_way_back_undoes_every_crossing(
    way: list[tuple[int, int]], start: tuple[int, int], end: tuple[int, int]
) -> None:
    assume(start != end)
    there = sum(crossings(a, b, [start, end]) for a, b in pairwise(way))
    # Only of steps that miss the line's ends: there it is a matter of rounding which side of the end they pass.
    assume(all(side(p, a, b) for p in (start, end) for a, b in pairwise(way) if a != b))
    back = sum(crossings(b, a, [start, end]) for a, b in pairwise(way))
    assert back == -there


@given(xs=st.lists(st.integers(-8, 8), min_size=2, max_size=10), ys=st.lists(st.integers(-3, 3), min_size=10))
def test_a_way_over_a_long_line_crosses_it_as_often_as_it_changes_sides(xs: list[int], ys: list[int]) -> None:
    way = list(zip(xs, ys, strict=False))
    line = [(-1000, 0), (1000, 0)]  # walked to the right: below (y > 0) is right, above is left
    net = sum(crossings(a, b, line) for a, b in pairwise(way))
    assert net == (way[-1][1] >= 0) - (way[0][1] >= 0)


@given(way=st.lists(points, min_size=2, max_size=6), outline=simple)
@example(way=[(-8, 0), (8, 0)], outline=[(0, -1), (1, 0), (0, 1), (-1, 0)])
def test_the_crossings_of_a_closed_line_say_how_it_was_left_or_entered(
    way: list[tuple[int, int]], outline: list[tuple[int, int]]
) -> None:
    closed = [*outline, outline[0]]
    # In general position; through a corner and along an edge have tests of their own.
    steps = [(a, b) for a, b in pairwise(way) if a != b]
    assume(all(side(corner, a, b) for corner in outline for a, b in steps))
    assume(all(side(point, a, b) for point in way for a, b in pairwise(closed)))
    net = sum(crossings(a, b, closed) for a, b in steps)
    clockwise = sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(closed)) > 0
    entered = inside(way[-1], outline) - inside(way[0], outline)
    assert net == (entered if clockwise else -entered)  # with y down, clockwise has its inside to the right


@pytest.mark.parametrize(
    ("way", "net"),
    [
        ([(0.5, 0.2), (0.5, 0.8)], 1),
        ([(0.5, 0.8), (0.5, 0.2)], -1),
        ([(0.5, 0.2), (0.5, 0.5), (0.5, 0.8)], 1),  # stops on the line
        ([(0.5, 0.2), (0.5, 0.5), (0.5, 0.2)], 0),  # touches it and goes back
        ([(0.2, 0.5), (0.8, 0.5)], 0),  # along it
        ([(0.95, 0.2), (0.95, 0.8)], 0),  # past its end
    ],
)
def test_ways_over_a_line_in_the_picture(way: list[tuple[float, float]], net: int) -> None:
    line = [(0.1, 0.5), (0.5, 0.5), (0.9, 0.5)]  # a way through its middle corner counts once
    assert sum(crossings(a, b, line) for a, b in pairwise(way)) == net
