"""Points, lines and polygons in the picture.

x runs right and y down; the unit is the caller's (rules use fractions of the picture). Left and right are those of
somebody who walks along the line over the picture: on the way from the picture's left edge to its right one, the
upper half lies to the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

Point = tuple[float, float]


def side(point: Point, start: Point, end: Point) -> float:
    """Above 0: `point` lies to the right of the line from `start` to `end`; 0: on it; below 0: to the left."""
    return (end[0] - start[0]) * (point[1] - start[1]) - (end[1] - start[1]) * (point[0] - start[0])


def inside(point: Point, polygon: Sequence[Point]) -> bool:
    """Whether a point lies in a simple polygon: the even-odd rule, counting the edges to its right.

    Of two polygons that share an edge a point on that edge lies in exactly one.
    """
    y = point[1]
    within = False
    before_x, before_y = polygon[-1]
    for corner_x, corner_y in polygon:
        if (corner_y > y) != (before_y > y):
            # Always from the upper end to the lower one, so that neighbours round a shared edge the same way.
            if corner_y < before_y:
                right_of = side(point, (corner_x, corner_y), (before_x, before_y)) > 0
            else:
                right_of = side(point, (before_x, before_y), (corner_x, corner_y)) > 0
            within ^= right_of
        before_x, before_y = corner_x, corner_y
    return within


def crossings(start: Point, end: Point, line: Sequence[Point]) -> int:
    """How often the way from `start` straight to `end` crosses a line of two or more points.

    From the line's left to its right counts 1, back counts -1. A point on the line counts as right of it, so a way that
    stops on the line crosses it once in all; a way through a corner of the line crosses it once.
    """
    net = 0
    for first, second in pairwise(line):
        from_right, to_right = side(start, first, second) >= 0, side(end, first, second) >= 0
        if from_right != to_right and (side(first, start, end) >= 0) != (side(second, start, end) >= 0):
            net += 1 if to_right else -1
    return net


def touch(first: tuple[Point, Point], second: tuple[Point, Point]) -> bool:
    """Whether two segments have a point in common, ends included."""
    (a, b), (c, d) = first, second
    abc, abd, cda, cdb = side(c, a, b), side(d, a, b), side(a, c, d), side(b, c, d)
    if min(abc, abd) < 0 < max(abc, abd) and min(cda, cdb) < 0 < max(cda, cdb):
        return True
    return (
        (abc == 0 and _spans(a, b, c))
        or (abd == 0 and _spans(a, b, d))
        or (cda == 0 and _spans(c, d, a))
        or (cdb == 0 and _spans(c, d, b))
    )


def _spans(start: Point, end: Point, point: Point) -> bool:
    """Whether a point of the segment's line lies between its ends."""
    return min(start[0], end[0]) <= point[0] <= max(start[0], end[0]) and (
        min(start[1], end[1]) <= point[1] <= max(start[1], end[1])
    )


def meeting_edges(polygon: Sequence[Point]) -> tuple[int, int] | None:
    """The first two edges of a polygon that meet where they should not; None where it is simple.

    Edge i runs from corner i to the next one. Corners that coincide or fold back on themselves count as well.
    """
    count = len(polygon)
    edges = [(polygon[i], polygon[(i + 1) % count]) for i in range(count)]
    for i in range(count):
        for j in range(i + 1, count):
            if j == i + 1 or (i == 0 and j == count - 1):
                one, other = (edges[j], edges[i]) if j != i + 1 else (edges[i], edges[j])
                # Neighbours share a corner; they may share no more.
                if _folds_back(one[0], one[1], other[1]):
                    return i, j
            elif touch(edges[i], edges[j]):
                return i, j
    return None


def _folds_back(before: Point, corner: Point, after: Point) -> bool:
    """Whether the way turns round on the spot at `corner`, or does not leave it."""
    if corner in (before, after):
        return True
    ahead = (corner[0] - before[0]) * (after[0] - corner[0]) + (corner[1] - before[1]) * (after[1] - corner[1])
    return side(after, before, corner) == 0 and ahead < 0


def is_convex(polygon: Sequence[Point]) -> bool:
    """Whether a simple polygon turns the same way at every corner, and nowhere goes straight on."""
    count = len(polygon)
    turns = [side(polygon[(i + 2) % count], polygon[i], polygon[(i + 1) % count]) for i in range(count)]
    return min(turns) > 0 or max(turns) < 0


def area(polygon: Sequence[Point]) -> float:
    """Area of a simple polygon (square units)."""
    twice = sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(polygon, (*polygon[1:], polygon[0]), strict=True))
    return abs(twice) / 2
