"""Sprites of people, bicycles and cars, drawn from simple shapes.

Sprites are BGRA uint8 with premultiplied alpha: OpenCV's antialiased drawing on a zeroed four-channel picture blends
the colour *and* the alpha towards full, which is just that. Drawn at PIXELS_PER_METRE, facing right, feet or wheels on
the bottom edge; every appearance follows from the generator that is passed in.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Colour = tuple[int, int, int, int]  # BGRA
Point = tuple[float, float]  # metres: right of the middle, above the ground

# A 720p street shows objects at 40 to 116 pixels a metre: always scaled down from this, which smooths the edges too.
PIXELS_PER_METRE = 160
_ALPHA = np.array([0, 0, 0, 255], np.uint8)
_SHIFT = 4  # cv2 takes fixed-point coordinates: 1/16 pixel


class Canvas:
    """A transparent picture in metres: x from the middle to the right, y from the ground up."""

    def __init__(self, width_m: float, height_m: float) -> None:
        self.pixels: Any = np.zeros(
            (round(height_m * PIXELS_PER_METRE), round(width_m * PIXELS_PER_METRE), 4), np.uint8
        )
        self._middle = width_m / 2
        self._height = height_m

    def _at(self, point: Point) -> tuple[int, int]:
        scale = PIXELS_PER_METRE * (1 << _SHIFT)
        return round((point[0] + self._middle) * scale), round((self._height - point[1]) * scale)

    def polygon(self, points: list[Point], colour: Colour) -> None:
        """Fill a polygon."""
        corners = np.array([self._at(point) for point in points], np.int32)
        cv2.fillPoly(self.pixels, [corners], colour, cv2.LINE_AA, _SHIFT)

    def limb(self, points: list[Point], thickness_m: float, colour: Colour) -> None:
        """A line of this thickness with round joints and ends."""
        corners = np.array([self._at(point) for point in points], np.int32)
        cv2.polylines(
            self.pixels, [corners], False, colour, max(1, round(thickness_m * PIXELS_PER_METRE)), cv2.LINE_AA, _SHIFT
        )

    def ellipse(self, middle: Point, radii: Point, colour: Colour, thickness_m: float = 0.0) -> None:
        """An ellipse, filled when no thickness is given."""
        size = (round(radii[0] * PIXELS_PER_METRE * (1 << _SHIFT)), round(radii[1] * PIXELS_PER_METRE * (1 << _SHIFT)))
        line = max(1, round(thickness_m * PIXELS_PER_METRE)) if thickness_m else -1
        cv2.ellipse(self.pixels, self._at(middle), size, 0, 0, 360, colour, line, cv2.LINE_AA, _SHIFT)

    def finish(self, light: tuple[float, float, float]) -> Image:
        """Shade from above and tint by the ambient light (gains for B, G, R)."""
        height, width = self.pixels.shape[:2]
        fall = np.linspace(1.08, 0.84, height, dtype=np.float32)[:, None] * np.array([*light, 0], np.float32)
        fall[:, 3] = 1.0  # alpha stays
        gains = np.ascontiguousarray(np.broadcast_to(fall[:, None], (height, width, 4)))
        shaded = cv2.multiply(self.pixels, gains, dtype=cv2.CV_8U)
        # Premultiplied: no colour over its alpha.
        return np.asarray(cv2.min(shaded, cv2.cvtColor(self.pixels[..., 3], cv2.COLOR_GRAY2BGRA) | _ALPHA), np.uint8)


def random_colour(rng: np.random.Generator, saturation: float = 0.6, low: float = 0.15, high: float = 0.9) -> Colour:
    """A colour at random: value from `low` to `high`, saturation up to `saturation`."""
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.random() * saturation, rng.uniform(low, high))
    return int(blue * 255), int(green * 255), int(red * 255), 255


def shade(colour: Colour, gain: float) -> Colour:
    """The colour made lighter or darker."""
    blue, green, red = (min(255, int(channel * gain)) for channel in colour[:3])
    return blue, green, red, 255


def _turn(origin: Point, length: float, degrees: float) -> Point:
    """The point `length` away from `origin`, 0 degrees straight down, positive forwards."""
    angle = math.radians(degrees)
    return origin[0] + length * math.sin(angle), origin[1] - length * math.cos(angle)


@dataclass(frozen=True)
class Person:
    """How one person looks."""

    height_m: float
    build: float  # 0.85 slim to 1.2 stout
    skin: Colour
    hair: Colour
    top: Colour
    trousers: Colour
    shoes: Colour
    coat: bool
    long_hair: bool
    hat: bool
    bag: Colour | None

    @classmethod
    def of(cls, rng: np.random.Generator) -> Person:
        """A person at random."""
        tone = rng.uniform(0.35, 0.95)
        grey = rng.random() < 0.3
        hair = (60 + int(90 * grey), 60 + int(90 * grey), 60 + int(90 * grey), 255)
        return cls(
            height_m=rng.uniform(1.5, 1.92),
            build=rng.uniform(0.88, 1.2),
            skin=(int(150 * tone), int(180 * tone), int(230 * tone), 255),
            hair=shade(hair, rng.uniform(0.4, 1.2)),
            top=random_colour(rng, 0.85),
            trousers=random_colour(rng, 0.5, 0.1, 0.6),
            shoes=random_colour(rng, 0.3, 0.05, 0.9),
            coat=bool(rng.random() < 0.35),
            long_hair=bool(rng.random() < 0.4),
            hat=bool(rng.random() < 0.2),
            bag=random_colour(rng, 0.8) if rng.random() < 0.4 else None,
        )

    def walking(self, phase: float, light: tuple[float, float, float]) -> Image:
        """The sprite at `phase` (0..1) of the walking cycle of two steps."""
        canvas = Canvas(1.5, 2.05)
        size = self.height_m / 1.75
        swing = math.sin(phase * 2 * math.pi)
        hip = (0.0, (0.88 + 0.02 * abs(swing)) * size)
        shoulder = (0.03 * size, 1.42 * size)
        for side, gain in ((-1, 0.75), (1, 1.0)):  # the far side first, darker
            self._arm(canvas, shoulder, -side * swing, size, gain)
            speed = side * math.cos(phase * 2 * math.pi)
            self._leg(canvas, hip, side * swing, speed=speed, size=size, gain=gain)
            if side == -1:
                self._trunk(canvas, hip, shoulder, size)
        self._head(canvas, (shoulder[0] + 0.02, shoulder[1] + 0.2 * size), size)
        return canvas.finish(light)

    def riding(self, phase: float, light: tuple[float, float, float]) -> Image:
        """The sprite on a bicycle, at `phase` (0..1) of the pedals' turn; made to fit Bicycle.sprite."""
        canvas = Canvas(2.1, 2.05)
        size = self.height_m / 1.75
        hip, shoulder = (-0.2, 0.98), (0.12, 0.98 + 0.52 * size)
        for side, gain in ((-1, 0.75), (1, 1.0)):
            turn = phase * 2 * math.pi + (math.pi if side < 0 else 0)
            foot = (0.02 + 0.17 * math.cos(turn), 0.30 - 0.17 * math.sin(turn))
            # The knee lies ahead of the line from hip to foot.
            knee = ((hip[0] + foot[0]) / 2 + 0.22, (hip[1] + foot[1]) / 2 + 0.10)
            canvas.limb([hip, knee, foot], 0.14 * self.build, shade(self.trousers, gain))
            canvas.limb([foot, (foot[0] + 0.14, foot[1])], 0.08, shade(self.shoes, gain))
            if side == -1:
                canvas.limb([hip, shoulder], 0.28 * self.build, self.top)
        canvas.limb([shoulder, (0.36, 1.16), (0.52, 1.08)], 0.1 * self.build, shade(self.top, 1.15))
        canvas.ellipse((0.53, 1.08), (0.05, 0.05), self.skin)
        self._head(canvas, (shoulder[0] + 0.08, shoulder[1] + 0.18 * size), size)
        return canvas.finish(light)

    def _leg(self, canvas: Canvas, hip: Point, swing: float, *, speed: float, size: float, gain: float) -> None:
        thigh = 26 * swing
        knee = _turn(hip, 0.42 * size, thigh)
        # The knee bends while the leg swings forwards.
        ankle = _turn(knee, 0.42 * size, thigh - (38 * max(0.0, speed) + 6))
        foot = (ankle[0], max(0.04, ankle[1]))
        canvas.limb([hip, knee, foot], 0.15 * self.build * size, shade(self.trousers, gain))
        canvas.limb([foot, (foot[0] + 0.15 * size, max(0.04, foot[1] - 0.02))], 0.08 * size, shade(self.shoes, gain))

    def _arm(self, canvas: Canvas, shoulder: Point, swing: float, size: float, gain: float) -> None:
        elbow = _turn(shoulder, 0.3 * size, 24 * swing)
        hand = _turn(elbow, 0.27 * size, 24 * swing + 22)
        canvas.limb([shoulder, elbow, hand], 0.1 * self.build * size, shade(self.top, 1.12 * gain))
        canvas.ellipse(hand, (0.05 * size, 0.05 * size), shade(self.skin, gain))
        if self.bag and gain == 1.0:
            low = (hand[0], hand[1] - 0.2 * size)
            canvas.limb([hand, low], 0.02, shade(self.bag, 0.6))
            canvas.limb([(low[0] - 0.08, low[1] - 0.05), (low[0] + 0.08, low[1] - 0.05)], 0.22 * size, self.bag)

    def _trunk(self, canvas: Canvas, hip: Point, shoulder: Point, size: float) -> None:
        half = 0.15 * self.build * size
        hem = hip[1] - (0.32 * size if self.coat else 0.02)
        wide = half * (1.35 if self.coat else 1.0)
        canvas.polygon(
            [
                (shoulder[0] - half, shoulder[1] + 0.03),
                (shoulder[0] + half, shoulder[1] + 0.03),
                (hip[0] + wide, hem),
                (hip[0] - wide, hem),
            ],
            self.top,
        )
        canvas.limb([(shoulder[0] - half * 0.6, shoulder[1]), (shoulder[0] + half * 0.6, shoulder[1])], 0.1, self.top)

    def _head(self, canvas: Canvas, middle: Point, size: float) -> None:
        x, y = middle
        canvas.limb([(x - 0.02, y - 0.05), (x - 0.03, y - 0.17 * size)], 0.1 * size, shade(self.skin, 0.85))
        if self.long_hair:
            canvas.limb([(x - 0.05, y + 0.03), (x - 0.09, y - 0.17 * size)], 0.13 * size, self.hair)
        canvas.ellipse((x, y), (0.1 * size, 0.125 * size), self.skin)
        canvas.ellipse((x - 0.025, y + 0.045), (0.105 * size, 0.095 * size), self.hair)
        canvas.ellipse((x + 0.055, y - 0.015), (0.06 * size, 0.085 * size), self.skin)
        if self.hat:
            canvas.ellipse((x - 0.01, y + 0.09), (0.12 * size, 0.07 * size), self.shoes)
            canvas.limb([(x, y + 0.06), (x + 0.15, y + 0.05)], 0.03, self.shoes)


@dataclass(frozen=True)
class Bicycle:
    """How one bicycle looks."""

    frame: Colour
    wheel_m: float
    low_step: bool
    basket: bool

    @classmethod
    def of(cls, rng: np.random.Generator) -> Bicycle:
        """A bicycle at random."""
        return cls(
            random_colour(rng, 0.9, 0.1, 0.95),
            rng.uniform(0.31, 0.36),
            bool(rng.random() < 0.4),
            bool(rng.random() < 0.3),
        )

    def sprite(self, phase: float, light: tuple[float, float, float]) -> Image:
        """The sprite with its wheels at `phase` (0..1) of the pedals' turn."""
        canvas = Canvas(2.1, 2.05)
        r = self.wheel_m
        back, front, pedals = (-0.52, r), (0.55, r), (0.02, 0.30)
        dark: Colour = (30, 30, 32, 255)
        for hub in (back, front):
            canvas.ellipse(hub, (r - 0.025, r - 0.025), dark, 0.05)
            for spoke in range(6):
                angle = math.radians(spoke * 60) - phase * 2 * math.pi
                tip = (hub[0] + (r - 0.05) * math.cos(angle), hub[1] + (r - 0.05) * math.sin(angle))
                canvas.limb([hub, tip], 0.012, (150, 150, 150, 255))
            canvas.ellipse(hub, (0.04, 0.04), dark)
        saddle, head = (-0.2, 0.86), (0.42, 0.86)
        top = (-0.12, 0.5) if self.low_step else (-0.17, 0.76)
        for tube in ([back, pedals], [back, top], [pedals, saddle], [pedals, head], [top, head]):
            canvas.limb(tube, 0.045, self.frame)
        canvas.limb([(0.40, 0.92), front], 0.045, shade(self.frame, 0.85))
        canvas.limb([(0.40, 0.92), (0.40, 1.04), (0.54, 1.07)], 0.035, dark)
        canvas.limb([(-0.32, 0.90), (-0.1, 0.90)], 0.06, dark)
        canvas.ellipse(pedals, (0.1, 0.1), (90, 90, 95, 255), 0.02)
        crank = phase * 2 * math.pi
        across = (0.17 * math.cos(crank), -0.17 * math.sin(crank))
        canvas.limb(
            [(pedals[0] - across[0], pedals[1] - across[1]), (pedals[0] + across[0], pedals[1] + across[1])],
            0.03,
            dark,
        )
        if self.basket:
            canvas.polygon([(0.5, 0.98), (0.85, 0.98), (0.8, 0.74), (0.55, 0.74)], (70, 110, 140, 255))
        return canvas.finish(light)
