"""What a camera looks at: zones, lines and masks in its picture, and how far apart things are on its ground."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from sink.geometry import Point, area, is_convex, meeting_edges

# A share of the picture's width or height. Written so, a zone fits whatever size the camera sends.
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
SharePoint = tuple[Share, Share]
Metres = Annotated[float, Field(ge=-100_000, le=100_000, allow_inf_nan=False)]
MetresPoint = tuple[Metres, Metres]
SceneName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$", max_length=64)]

# Corners of one outline: more than anybody draws by hand, few enough to be gone round for every object.
MOST_POINTS = 100
# Of the picture (0.0001 is 14x14 pixels of 1080p): a smaller zone is a slip, no object's anchor would ever hit it.
SMALLEST_AREA = 1e-4


def _is_outline(points: list[SharePoint]) -> list[SharePoint]:
    if len(points) < 3:
        raise ValueError(f"found {len(points)} of them; expected at least 3 points, the corners of a polygon in turn")
    edges = meeting_edges(points)
    if edges is not None:
        first, second = (f"from point {i + 1} to point {(i + 1) % len(points) + 1}" for i in edges)
        raise ValueError(
            f"the polygon meets itself: its edge {first} and its edge {second}; "
            "expected the corners in turn around the outline, each once"
        )
    if area(points) < SMALLEST_AREA:
        raise ValueError("the polygon is next to empty; expected points as fractions of the picture, 0 to 1")
    return points


def _is_line(points: list[SharePoint]) -> list[SharePoint]:
    if len(points) < 2:
        raise ValueError(f"found {len(points)} of them; expected at least 2 points, the start and the end of a line")
    for place, (before, after) in enumerate(pairwise(points)):
        if before == after:
            raise ValueError(f"points {place + 1} and {place + 2} are the same; expected points one after the other")
    return points


Polygon = Annotated[list[SharePoint], Field(max_length=MOST_POINTS), AfterValidator(_is_outline)]
Line = Annotated[list[SharePoint], Field(max_length=MOST_POINTS), AfterValidator(_is_line)]


def _is_quad(points: list[Point]) -> list[Point]:
    if meeting_edges(points) is not None or not is_convex(points):
        raise ValueError(
            "these four points are no quadrilateral as seen from any camera; expected its corners in turn, "
            "without a dent, no three of them on one line"
        )
    return points


class GroundSettings(BaseModel):
    """Where four points of the picture lie on the ground: measures speed wherever that ground is level."""

    model_config = ConfigDict(extra="forbid")

    points: Annotated[list[SharePoint], Field(min_length=4, max_length=4), AfterValidator(_is_quad)] = Field(
        description="Four points of the picture on the ground, in turn, as [x, y] (fractions of the picture)."
    )
    metres: Annotated[list[MetresPoint], Field(min_length=4, max_length=4), AfterValidator(_is_quad)] = Field(
        description="Where they are on the ground, in the same order, as [x, y] from any origin (metres)."
    )

    @model_validator(mode="after")
    def _has_a_map(self) -> GroundSettings:
        homography(tuple(self.points), tuple(self.metres))
        return self


class SceneSettings(BaseModel):
    """One camera's scene."""

    model_config = ConfigDict(extra="forbid")

    zones: dict[SceneName, Polygon] = Field(
        default_factory=dict,
        description="Areas that rules name: the corners of a polygon in turn, as [x, y] (fractions of the picture).",
    )
    lines: dict[SceneName, Line] = Field(
        default_factory=dict,
        description="Lines that rules name: two or more points, as [x, y] (fractions of the picture). Crossing from "
        "the left to the right of somebody who walks along it from its first point is the direction `in`.",
    )
    masks: dict[SceneName, Polygon] = Field(
        default_factory=dict,
        description="Areas whose objects no rule of this camera sees; polygons as in zones (fractions of the picture).",
    )
    ground: GroundSettings | None = Field(default=None, description="Needed by rules of kind speed.")


Homography = tuple[float, ...]  # nine numbers, row by row


@lru_cache(maxsize=1024)  # one a camera; the sums behind one take 50 us
def homography(points: tuple[Point, ...], metres: tuple[Point, ...]) -> Homography:
    """The projective map that takes four points of the picture to their places on the ground.

    Solves the eight linear equations of the direct linear transform with the last entry fixed at 1, scaled so that
    its denominator is above 0 at the first point. Raises ValueError where no such map exists.
    """
    rows, right = [], []
    for (x, y), (u, v) in zip(points, metres, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        right += [u, v]
    try:
        solved = np.linalg.solve(np.array(rows, dtype=np.float64), np.array(right, dtype=np.float64))
    except np.linalg.LinAlgError as error:
        raise ValueError("no map takes the four points to these places; expected a larger quadrilateral") from error
    h = (*map(float, solved), 1.0)
    sign = 1.0 if h[6] * points[0][0] + h[7] * points[0][1] + 1 > 0 else -1.0
    return tuple(sign * value for value in h)


def to_ground(ground: GroundSettings, point: Point) -> Point | None:
    """A point of the picture as a place on the ground (metres); None at the horizon and above it."""
    h = homography(tuple(ground.points), tuple(ground.metres))
    x, y = point
    depth = h[6] * x + h[7] * y + h[8]
    # Relative to the picture's own scale; nearer to 0 is so near the horizon that a pixel is a street's length.
    if depth <= 1e-6:
        return None
    return (h[0] * x + h[1] * y + h[2]) / depth, (h[3] * x + h[4] * y + h[5]) / depth
