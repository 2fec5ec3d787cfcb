"""The filter of a box is the textbook's, whatever the steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sink.tracking import kalman

Box = tuple[float, float, float, float]
steps_s = st.floats(0, 5)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    left, top = draw(st.floats(0, 1000)), draw(st.floats(0, 1000))
    return left, top, left + draw(st.floats(20, 300)), top + draw(st.floats(20, 300))


def textbook(seen: list[tuple[float, Box]]) -> np.ndarray:
    """The same in matrices: eight states, (centre, size, their speeds); noise as in sink.tracking.kalman.

    The width's speed is held at 0.
    """

    def measure(box: Box) -> np.ndarray:
        left, top, right, bottom = box
        return np.array([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top])

    one = np.eye(4)
    z = measure(seen[0][1])
    side = max(z[2:])
    x, p = np.concatenate([z, np.zeros(4)]), np.kron(np.diag([(side / 20) ** 2, (2.0 * side) ** 2]), one)
    for dt, box in seen[1:]:
        f = np.kron(np.array([[1, dt], [0, 1]]), one)
        x = f @ x
        x[2:4] = np.maximum(x[2:4], 1.0)
        q = (0.5 * max(x[2:4])) ** 2 * np.kron(np.array([[dt**3 / 3, dt**2 / 2], [dt**2 / 2, dt]]), one)
        p = f @ p @ f.T + q
        z = measure(box)
        h = np.hstack([one, 0 * one])
        gain = p @ h.T @ np.linalg.inv(h @ p @ h.T + (max(z[2:]) / 20) ** 2 * one)
        x = x + gain @ (z - h @ x)
        x[6] = 0.0
        p = (np.eye(8) - gain @ h) @ p
    return np.concatenate([np.delete(x, 6), [p[0, 0], p[0, 4], p[4, 4]]])


@given(st.lists(st.tuples(steps_s, boxes()), min_size=1, max_size=6))
def test_it_agrees_with_the_matrices(seen: list[tuple[float, Box]]) -> None:
    motion = kalman.begin(seen[0][1])
    for dt, box in seen[1:]:
        kalman.predict(motion, dt)
        kalman.update(motion, box)
    found = [getattr(motion, name) for name in motion.__struct_fields__]
    assert found == pytest.approx(textbook(seen).tolist(), rel=1e-6, abs=1e-6)


@given(boxes(), st.lists(steps_s, min_size=1, max_size=5))
def test_many_small_steps_are_one_large_step(box: Box, parts: list[float]) -> None:
    total = sum(parts)
    if total > 5:  # longer steps are cut
        parts = [part * 5 / total for part in parts]
        total = 5.0
    one, many = kalman.begin(box), kalman.begin(box)
    one.speed_x = many.speed_x = 30.0
    kalman.predict(one, total)
    for part in parts:
        kalman.predict(many, part)
    assert (many.x, many.variance, many.covariance, many.speed_variance) == pytest.approx(
        (one.x, one.variance, one.covariance, one.speed_variance), rel=1e-6, abs=1e-6
    )


def test_it_learns_the_speed() -> None:
    motion = kalman.begin((0, 0, 40, 100))
    for index in range(1, 26):
        kalman.predict(motion, 0.04)
        kalman.update(motion, (index * 4, 0, index * 4 + 40, 100))
    assert motion.speed_x == pytest.approx(100, rel=0.05)
    assert motion.speed_y == pytest.approx(0, abs=1)
