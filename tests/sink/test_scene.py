"""The ground of a scene: a projective map, exact at its four points."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sink.scene import GroundSettings, SceneSettings, to_ground

ROAD = GroundSettings(
    points=[(0.4, 0.5), (0.6, 0.5), (0.9, 1.0), (0.1, 1.0)], metres=[(0, 0), (4, 0), (4, 15), (0, 15)]
)

low, high = st.floats(0, 0.3), st.floats(0.7, 1)
# A point in each corner of the picture: never dented.
quads = st.tuples(st.tuples(low, low), st.tuples(high, low), st.tuples(high, high), st.tuples(low, high)).map(list)


@given(quad=quads)
def test_the_four_points_lie_where_they_were_said_to(quad: list[tuple[float, float]]) -> None:
    ground = GroundSettings(points=quad, metres=[(0, 0), (4, 0), (4, 15), (0, 15)])
    for point, metres in zip(ground.points, ground.metres, strict=True):
        assert to_ground(ground, point) == pytest.approx(metres, abs=1e-6)


def test_further_up_the_same_step_is_longer_and_beyond_the_horizon_there_is_no_ground() -> None:
    near = [to_ground(ROAD, (0.5, y)) for y in (0.9, 0.95)]
    far = [to_ground(ROAD, (0.5, y)) for y in (0.5, 0.55)]
    assert far[1][1] - far[0][1] > 5 * (near[1][1] - near[0][1]) > 0
    assert to_ground(ROAD, (0.5, 0.1)) is None  # its edges meet at 0.333
    assert to_ground(ROAD, (0.5, 1 / 3)) is None


@pytest.mark.parametrize(
    "ground",
    [
        {"points": [[0, 0], [1, 0], [1, 1]], "metres": [[0, 0], [1, 0], [1, 1]]},
        {"points": [[0, 0], [1, 0], [1, 1], [0, 1]], "metres": [[0, 0], [1, 1], [1, 0], [0, 1]]},  # a bow tie
        {"points": [[0, 0], [1, 0], [1, 1], [0, 1]], "metres": [[0, 0], [1, 0], [2, 0], [0, 1]]},  # three on a line
        {"points": [[0, 0], [0.5, 0], [1, 0], [0, 1]], "metres": [[0, 0], [1, 0], [1, 1], [0, 1]]},
        {"points": [[0, 0], [1, 0], [0.1, 0.1], [0, 1]], "metres": [[0, 0], [1, 0], [1, 1], [0, 1]]},  # dented
    ],
)
def test_ground_that_is_no_quadrilateral_is_refused(ground: dict[str, list[list[float]]]) -> None:
    with pytest.raises(ValidationError):
        SceneSettings.model_validate({"ground": ground})
