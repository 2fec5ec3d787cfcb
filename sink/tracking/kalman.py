"""A Kalman filter of a box that moves and grows steadily, on real time steps.

State: centre, width and height, and how fast they change. The model is the usual one of constant velocity, disturbed
by white acceleration noise (Bar-Shalom, Li, Kirubarajan: Estimation with Applications to Tracking and Navigation,
2001, section 6.2.2), so that a frame that comes late or not at all needs no special case. All noise is proportional to
the box's longer side and the same for the four quantities. So they have the same 2x2 covariance, and the filter of
eight states falls into four of two that share it.

The width has no speed: that of a walker swings with every step, and a swing that is carried on is the wrong way round
a fifth of a second later. Two who passed each other then changed their ids.
"""

from __future__ import annotations

from msgspec import Struct

from sink.tracks import BoxPx

# Shares of the box's longer side. The first two are ByteTrack's, whose unit of time is a frame, at 30 a second.
# Its third would be 1.0; 0.5 kept more ids on the simulated street (benchmarks/tracking.py), at 25 and at 5 frames a
# second.
_MEASURED = 1 / 20  # standard deviation of a detected edge
_FIRST_SPEED = 2.0  # of the speed of an object of which one box is known (1/s)
_ACCELERATION = 0.5  # of the change of speed in one second (1/s)
# The longest step: beyond it the place is as good as unknown, and the arithmetic should stay tame.
_MAX_STEP_S = 5.0
_MIN_SIDE_PX = 1.0  # a shrinking box that is not seen must not turn inside out


class Motion(Struct, array_like=True, gc=False):
    """What is known of one box. Pixels and pixels a second; the covariance is of each of the four quantities."""

    x: float  # of the centre
    y: float
    width: float
    height: float
    speed_x: float
    speed_y: float
    speed_height: float
    variance: float  # of the four above the speeds
    covariance: float  # of a quantity with its speed
    speed_variance: float


def begin(box: BoxPx) -> Motion:
    """The motion of an object seen once."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    side = max(width, height)
    variance, speed_variance = (_MEASURED * side) ** 2, (_FIRST_SPEED * side) ** 2
    return Motion((left + right) / 2, (top + bottom) / 2, width, height, 0, 0, 0, variance, 0, speed_variance)


def predict(motion: Motion, step_s: float) -> None:
    """Go `step_s` (>= 0) ahead, in place."""
    dt = min(step_s, _MAX_STEP_S)
    motion.x += motion.speed_x * dt
    motion.y += motion.speed_y * dt
    motion.height = max(_MIN_SIDE_PX, motion.height + motion.speed_height * dt)
    noise = (_ACCELERATION * max(motion.width, motion.height)) ** 2
    motion.variance += dt * (2 * motion.covariance + dt * motion.speed_variance) + noise * dt**3 / 3
    motion.covariance += dt * motion.speed_variance + noise * dt**2 / 2
    motion.speed_variance += noise * dt


def update(motion: Motion, box: BoxPx) -> None:
    """Take in a box that was detected at the time of the last prediction, in place."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    total = motion.variance + (_MEASURED * max(width, height)) ** 2
    gain, speed_gain = motion.variance / total, motion.covariance / total
    x, y = (left + right) / 2 - motion.x, (top + bottom) / 2 - motion.y
    wider, higher = width - motion.width, height - motion.height
    motion.x += gain * x
    motion.y += gain * y
    motion.width += gain * wider
    motion.height += gain * higher
    motion.speed_x += speed_gain * x
    motion.speed_y += speed_gain * y
    motion.speed_height += speed_gain * higher
    motion.speed_variance -= speed_gain * motion.covariance
    motion.covariance *= 1 - gain
    motion.variance *= 1 - gain


def stop_growing(motion: Motion) -> None:
    """For a box out of sight: half a box, hidden step by step, seems to shrink and would go on to nothing."""
    motion.speed_height = 0.0


def stop(motion: Motion) -> None:
    """For what stands still, before a long step: what is left of its speed is noise."""
    motion.speed_x = motion.speed_y = motion.speed_height = 0.0


def box_of(motion: Motion) -> BoxPx:
    """Where the object is thought to be."""
    half_width, half_height = motion.width / 2, motion.height / 2
    return motion.x - half_width, motion.y - half_height, motion.x + half_width, motion.y + half_height
