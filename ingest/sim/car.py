"""Sprites of cars seen from the side: hatchbacks, saloons, estates, off-roaders and vans."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ingest.sim.sprites import Canvas, Colour, Image, Point, random_colour, shade


class Shape(NamedTuple):
    """Outline of a car. Shares of its length run from the rear bumper (0) to the front one (1)."""

    length_m: float
    height_m: float
    belt_m: float  # where the windows begin
    screen_foot: float
    roof_front: float
    roof_back: float
    rear_foot: float


SHAPES = {
    "hatchback": Shape(3.9, 1.48, 0.94, 0.76, 0.60, 0.12, 0.03),
    "saloon": Shape(4.6, 1.45, 0.94, 0.74, 0.58, 0.30, 0.15),
    "estate": Shape(4.6, 1.50, 0.94, 0.75, 0.60, 0.08, 0.02),
    "off-roader": Shape(4.5, 1.78, 1.12, 0.74, 0.62, 0.06, 0.01),
    "van": Shape(4.9, 2.05, 1.20, 0.88, 0.76, 0.03, 0.005),
}
_RUBBER: Colour = (28, 26, 26, 255)
_GLASS: Colour = (92, 80, 66, 255)
_GLASS_LIT: Colour = (150, 138, 120, 255)


@dataclass(frozen=True)
class Car:
    """How one car looks."""

    name: str
    paint: Colour
    roof_rails: bool
    dark_roof: bool
    windowless: bool  # a delivery van

    @classmethod
    def of(cls, rng: np.random.Generator) -> Car:
        """A car at random; half of them white, grey or black, as on real streets."""
        grey = rng.random() < 0.5
        name = str(rng.choice(list(SHAPES)))
        return cls(
            name,
            random_colour(rng, 0.08 if grey else 0.95, 0.12 if grey else 0.35, 0.95),
            roof_rails=bool(rng.random() < 0.3),
            dark_roof=bool(rng.random() < 0.15),
            windowless=name == "van" and bool(rng.random() < 0.6),
        )

    @property
    def length_m(self) -> float:
        """From bumper to bumper."""
        return SHAPES[self.name].length_m

    def sprite(self, phase: float, light: tuple[float, float, float], lamps_on: bool) -> Image:
        """The sprite with its wheels at `phase` (0..1) of a fifth of a turn (they have five spokes)."""
        shape = SHAPES[self.name]
        canvas = Canvas(shape.length_m + 0.1, shape.height_m + 0.12)
        self._body(canvas, shape)
        self._windows(canvas, shape)
        self._lines(canvas, shape)
        for share in (0.19, 0.81):
            _wheel(canvas, _at(shape, share, 0.31), phase)
        picture = canvas.finish(light)
        if lamps_on:  # after the ambient light, which does not dim them
            lamps = Canvas(shape.length_m + 0.1, shape.height_m + 0.12)
            _lamps(lamps, shape, (200, 245, 255, 255), (60, 60, 250, 255))
            lit = lamps.finish((1.0, 1.0, 1.0))
            picture[lit[..., 3] > 127] = lit[lit[..., 3] > 127]
        return picture

    def _body(self, canvas: Canvas, shape: Shape) -> None:
        belt = shape.belt_m
        cabin = [
            _at(shape, shape.rear_foot, belt),
            _at(shape, shape.roof_back, shape.height_m - 0.04),
            _at(shape, shape.roof_front, shape.height_m - 0.04),
            _at(shape, shape.screen_foot, belt),
        ]
        body = [
            _at(shape, 0.0, 0.32),
            _at(shape, 0.0, belt - 0.12),
            _at(shape, shape.rear_foot, belt),
            _at(shape, shape.screen_foot, belt),
            _at(shape, 0.95, belt - 0.14),
            _at(shape, 0.995, belt - 0.30),
            _at(shape, 1.0, 0.32),
            _at(shape, 0.96, 0.22),
            _at(shape, 0.04, 0.22),
        ]
        roof = (32, 30, 30, 255) if self.dark_roof else self.paint
        canvas.polygon(cabin, roof)
        canvas.limb([cabin[1], cabin[2]], 0.09, roof)
        canvas.polygon(body, self.paint)
        canvas.limb([body[2], body[3], body[4]], 0.05, shade(self.paint, 1.2))
        canvas.limb([_at(shape, 0.03, 0.29), _at(shape, 0.97, 0.29)], 0.12, shade(self.paint, 0.45))
        canvas.limb([_at(shape, 0.02, 0.62), _at(shape, 0.98, 0.6)], 0.025, shade(self.paint, 0.75))
        _lamps(canvas, shape, (225, 225, 218, 255), (40, 40, 165, 255))

    def _windows(self, canvas: Canvas, shape: Shape) -> None:
        low, high = shape.belt_m + 0.03, shape.height_m - 0.12
        pillar_m = 0.07 / shape.length_m
        rear_low, rear_high = shape.rear_foot + 0.03, shape.roof_back + 0.02
        front_low, front_high = shape.screen_foot - 0.025, shape.roof_front - 0.005
        cuts = [0.0, 0.34, 0.68, 1.0]
        for number, (near, far) in enumerate(pairwise(cuts)):
            if self.windowless and number < 2:
                continue
            left_low = rear_low + (front_low - rear_low) * near + pillar_m / 2
            right_low = rear_low + (front_low - rear_low) * far - pillar_m / 2
            left_high = rear_high + (front_high - rear_high) * near + pillar_m / 2
            right_high = rear_high + (front_high - rear_high) * far - pillar_m / 2
            pane = [
                _at(shape, left_low, low),
                _at(shape, left_high, high),
                _at(shape, right_high, high),
                _at(shape, right_low, low),
            ]
            canvas.polygon(pane, _GLASS)
            middle_low, middle_high = (left_low + right_low) / 2, (left_high + right_high) / 2
            sky = [pane[1], _at(shape, middle_high, high), _at(shape, middle_low - 0.02, low + 0.1), pane[0]]
            canvas.polygon(sky, _GLASS_LIT)

    def _lines(self, canvas: Canvas, shape: Shape) -> None:
        line = shade(self.paint, 0.55)
        for share in (0.31, 0.51, 0.71):
            canvas.limb([_at(shape, share, shape.belt_m - 0.02), _at(shape, share + 0.005, 0.38)], 0.015, line)
        for share in (0.36, 0.56):
            handle = [_at(shape, share, shape.belt_m - 0.14), _at(shape, share + 0.03, shape.belt_m - 0.14)]
            canvas.limb(handle, 0.035, line)
        mirror = _at(shape, shape.screen_foot - 0.02, shape.belt_m + 0.08)
        canvas.ellipse(mirror, (0.1, 0.07), shade(self.paint, 0.8))
        if self.roof_rails:
            rail = shape.height_m + 0.03
            ends = [_at(shape, shape.roof_back + 0.04, rail), _at(shape, shape.roof_front - 0.04, rail)]
            canvas.limb(ends, 0.035, (70, 70, 72, 255))


def _at(shape: Shape, share: float, up_m: float) -> Point:
    return (share - 0.5) * shape.length_m, up_m


def _lamps(canvas: Canvas, shape: Shape, front: Colour, back: Colour) -> None:
    belt = shape.belt_m
    canvas.limb([_at(shape, 0.955, belt - 0.22), _at(shape, 0.985, belt - 0.30)], 0.11, front)
    canvas.limb([_at(shape, 0.014, belt - 0.18), _at(shape, 0.016, belt - 0.34)], 0.1, back)


def _wheel(canvas: Canvas, hub: Point, phase: float) -> None:
    canvas.ellipse((hub[0], hub[1] + 0.06), (0.37, 0.36), (18, 18, 20, 255))  # the arch
    canvas.ellipse(hub, (0.31, 0.31), _RUBBER)
    canvas.ellipse(hub, (0.20, 0.20), (168, 166, 164, 255))
    for spoke in range(5):
        angle = math.radians(spoke * 72) - phase * math.radians(72)
        tip = (hub[0] + 0.19 * math.cos(angle), hub[1] + 0.19 * math.sin(angle))
        canvas.limb([hub, tip], 0.035, (78, 76, 74, 255))
    canvas.ellipse(hub, (0.05, 0.05), (60, 60, 60, 255))
