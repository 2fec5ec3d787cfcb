"""The far side of the street: sky, houses, trees; with `street.ground` they make the background."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from ingest.sim.scene_url import Light, SceneSpec
from ingest.sim.sprites import Image
from ingest.sim.street import AMBIENT, HOUSES_M, View, ground, zebra_x_m

Colour = tuple[int, int, int]  # BGR

_SKY: dict[Light, tuple[Colour, Colour]] = {  # at the top, at the horizon
    "day": ((214, 160, 104), (238, 224, 206)),
    "dusk": ((128, 84, 74), (120, 150, 225)),
    "night": ((38, 24, 18), (70, 50, 42)),
}
_WALLS: list[Colour] = [
    (92, 112, 168),  # brick
    (84, 98, 140),
    (178, 200, 214),  # render
    (150, 178, 190),
    (168, 160, 150),
    (128, 158, 184),
    (196, 206, 206),
]
_ROOFS: list[Colour] = [(62, 72, 110), (78, 76, 76), (66, 84, 128)]
_GLASS: Colour = (112, 96, 80)
_LAMPLIGHT: Colour = (120, 200, 250)


def background(spec: SceneSpec, view: View) -> Image:
    """The empty street, (height, width, 3) BGR."""
    front = _Front(spec, view)
    front.sky()
    front.row_of_houses()
    picture: Image = cv2.resize(front.pixels, (spec.width, spec.height), interpolation=cv2.INTER_AREA)
    below, first_row = ground(spec, view)
    picture[first_row:] = below[first_row:]
    return picture


class _Front:
    """Draws at twice the size, in metres of the plane of the house fronts."""

    def __init__(self, spec: SceneSpec, view: View) -> None:
        self._spec = spec
        self._rng = np.random.default_rng([spec.seed, 2])
        self._double = View(spec.width * 2, spec.height * 2)
        self._half_width_m = view.half_width_m(HOUSES_M)
        self.pixels: Any = np.zeros((spec.height * 2, spec.width * 2, 3), np.uint8)

    def sky(self) -> None:
        """A gradient and some clouds."""
        height, width = self.pixels.shape[:2]
        top, low = (np.array(colour, np.float32) for colour in _SKY[self._spec.light])
        horizon = self._double.y(HOUSES_M, 4.2)
        share = np.clip(np.arange(height, dtype=np.float32) / horizon, 0, 1)[:, None, None]
        colours = np.broadcast_to(top + (low - top) * share, (height, width, 3))
        puffs: Any = np.zeros((height, width), np.float32)
        for cells, weight in ((4, 1.0), (8, 0.6), (16, 0.35), (32, 0.2)):
            grid = self._rng.normal(0, weight, (cells * 3, cells * 2)).astype(np.float32)  # wider than high
            puffs += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        cover = np.clip(puffs - 0.3, 0, 1)[..., None] * (0.75 if self._spec.light == "day" else 0.25)
        white = np.array(low if self._spec.light != "day" else (248, 246, 244), np.float32)
        self.pixels[:] = (colours + (white - colours) * cover).astype(np.uint8)

    def row_of_houses(self) -> None:
        """Houses of differing width from edge to edge, with a tree in front of some seams."""
        x = -self._half_width_m - float(self._rng.uniform(0, 3))
        seams = []
        while x < self._half_width_m:
            width = float(self._rng.uniform(4.8, 8.5))
            self._house(x, width)
            x += width
            seams.append(x)
        self._door(zebra_x_m(self._spec) - 0.6, 1.2)
        for seam in seams[:-1]:
            if self._rng.random() < 0.55 and abs(seam - zebra_x_m(self._spec)) > 2.5:
                self._tree(seam)

    def _house(self, left: float, width: float) -> None:
        rng = self._rng
        storeys = int(rng.choice([2, 2, 3]))
        height = 3.2 + 2.7 * (storeys - 1)
        wall = _WALLS[int(rng.integers(len(_WALLS)))]
        self._pitched_roof(left, width, height)
        self._box(left, 0, width, height, wall)
        self._bricks(left, width, height)
        self._box(left, height - 0.18, width, 0.26, tuple(int(c * 0.8) for c in wall))
        self._box(left, 0, width, 0.35, tuple(int(c * 0.6) for c in wall))
        columns = max(2, int(width / 1.9))
        for storey in range(1, storeys):
            for column in range(columns):
                self._window(left + (column + 0.5) * width / columns - 0.5, 3.6 + 2.7 * (storey - 1), 1.0, 1.45)
        if rng.random() < 0.5:
            self._shop(left + 0.4, width - 0.8)
        else:
            self._door(left + 0.5, 1.05)
            for column in range(1, columns):
                self._window(left + (column + 0.5) * width / columns - 0.55, 0.95, 1.1, 1.4)

    def _pitched_roof(self, left: float, width: float, height: float) -> None:
        roof = _ROOFS[int(self._rng.integers(len(_ROOFS)))]
        self._shape(
            [
                (left - 0.2, height),
                (left + 0.9, height + 1.5),
                (left + width - 0.9, height + 1.5),
                (left + width + 0.2, height),
            ],
            roof,
        )
        for up in np.arange(0.2, 1.5, 0.22):
            inset = -0.2 + 1.1 * up / 1.5
            self._line(
                (left + inset, height + up), (left + width - inset, height + up), tuple(int(c * 0.82) for c in roof)
            )
        chimney = left + float(self._rng.uniform(1.2, max(1.3, width - 1.8)))
        self._box(chimney, height + 1.0, 0.6, 1.2, (70, 84, 120))

    def _bricks(self, left: float, width: float, height: float) -> None:
        """Courses and weathering of one wall."""
        x0, y0 = self._at((left, height))
        x1, y1 = self._at((left + width, 0))
        x0, x1, y0 = max(0, x0), min(self.pixels.shape[1], x1), max(0, y0)
        if x1 <= x0 or y1 <= y0:
            return
        wall = self.pixels[y0:y1, x0:x1].astype(np.float32)
        course = max(3, round(0.16 * self._double.scale(HOUSES_M)))
        wall[::course] *= 0.9
        grain = self._rng.normal(0, 5, wall.shape[:2]).astype(np.float32)
        weather = self._rng.normal(0, 7, (6, 6)).astype(np.float32)
        wall += (grain + cv2.resize(weather, (x1 - x0, y1 - y0), interpolation=cv2.INTER_CUBIC))[..., None]
        self.pixels[y0:y1, x0:x1] = np.clip(wall, 0, 255).astype(np.uint8)

    def _window(self, left: float, up: float, width: float, height: float) -> None:
        lit = self._spec.light != "day" and self._rng.random() < 0.45
        frame: Colour = (222, 226, 228)
        self._box(left - 0.09, up - 0.09, width + 0.18, height + 0.18, frame)
        if lit:
            self._box(left, up, width, height, _LAMPLIGHT, ambient=False)
        else:
            self._box(left, up, width, height, _GLASS)
            self._shape(
                [(left, up + height), (left + 0.6 * width, up + height), (left, up + 0.3 * height)], (150, 136, 118)
            )
        curtain = tuple(int(c) for c in self._rng.integers(120, 230, 3))
        for side in (left, left + width * 0.8):
            self._box(side, up, width * 0.2, height, curtain)
        self._box(left + width / 2 - 0.03, up, 0.06, height, frame)
        self._box(left, up + height * 0.6, width, 0.06, frame)
        self._box(left - 0.15, up - 0.18, width + 0.3, 0.1, (176, 180, 182))

    def _door(self, left: float, width: float) -> None:
        colour = tuple(int(c) for c in self._rng.integers(40, 150, 3))
        self._box(left - 0.1, 0, width + 0.2, 2.35, (206, 210, 212))
        self._box(left, 0, width, 2.25, colour)
        self._box(left + 0.15, 1.2, width - 0.3, 0.85, tuple(int(c * 0.7) for c in colour))
        self._box(left + 0.15, 0.2, width - 0.3, 0.8, tuple(int(c * 0.8) for c in colour))

    def _shop(self, left: float, width: float) -> None:
        sign = tuple(int(c) for c in self._rng.integers(30, 200, 3))
        lit = self._spec.light != "day"
        self._box(left, 0.0, width, 2.5, (58, 60, 64))
        pane = (width - 1.5) / 2
        for start in (left + 0.1, left + pane + 1.4):
            self._box(start, 0.5, pane, 1.85, _LAMPLIGHT if lit else (128, 116, 100), ambient=not lit)
            for _ in range(int(pane * 3)):
                x, up = start + self._rng.uniform(0.05, pane - 0.35), self._rng.choice([0.55, 1.1, 1.6])
                goods = tuple(int(c) for c in self._rng.integers(40, 230, 3))
                self._box(float(x), float(up), 0.28, float(self._rng.uniform(0.2, 0.4)), goods)
        self._box(left + pane + 0.25, 0, 1.0, 2.3, (74, 78, 90))
        self._box(left, 2.5, width, 0.5, sign)
        stripe = width / 9
        for number in range(9):
            colour = (232, 234, 236) if number % 2 else sign
            x = left + number * stripe
            self._shape([(x, 2.5), (x + stripe, 2.5), (x + stripe + 0.05, 2.15), (x + 0.05, 2.15)], colour)

    def _tree(self, x: float) -> None:
        rng = self._rng
        trunk = (48, 66, 84)
        self._box(x - 0.14, 0, 0.28, 2.6, trunk)
        self._box(x - 0.6, 0, 1.2, 0.12, (50, 70, 90))
        radius = float(rng.uniform(1.1, 1.6))
        green = np.array([50, 110, 70]) + rng.integers(-20, 20, 3)
        for number in range(160):
            angle, reach = rng.uniform(0, 2 * np.pi), radius * np.sqrt(rng.random())
            dx, dy = reach * np.cos(angle), 0.85 * reach * np.sin(angle)
            # Leaves at the lower right lie in shade and are drawn first.
            tone = 0.62 + 0.5 * number / 160 + 0.12 * (dy - dx) / radius
            leaf = tuple(int(c) for c in np.clip(green * tone, 0, 255))
            self._disc((x + dx, 3.5 + dy), float(rng.uniform(0.16, 0.32)), leaf)

    def _at(self, point: tuple[float, float]) -> tuple[int, int]:
        return round(self._double.x(point[0], HOUSES_M)), round(self._double.y(HOUSES_M, point[1]))

    def _tinted(self, colour: Any, ambient: bool = True) -> Any:
        gains = AMBIENT[self._spec.light] if ambient else (1.0, 1.0, 1.0)
        return tuple(int(channel * gain) for channel, gain in zip(colour, gains, strict=True))

    def _box(self, left: float, up: float, width: float, height: float, colour: Any, *, ambient: bool = True) -> None:
        low, high = self._at((left, up)), self._at((left + width, up + height))
        cv2.rectangle(self.pixels, (low[0], low[1] - 1), (high[0] - 1, high[1]), self._tinted(colour, ambient), -1)

    def _shape(self, points: list[tuple[float, float]], colour: Any) -> None:
        corners = np.array([self._at(point) for point in points], np.int32)
        cv2.fillPoly(self.pixels, [corners], self._tinted(colour), cv2.LINE_AA)

    def _line(self, start: tuple[float, float], end: tuple[float, float], colour: Any) -> None:
        cv2.line(self.pixels, self._at(start), self._at(end), self._tinted(colour), 1, cv2.LINE_AA)

    def _disc(self, middle: tuple[float, float], radius_m: float, colour: Any) -> None:
        radius = round(radius_m * self._double.scale(HOUSES_M))
        cv2.circle(self.pixels, self._at(middle), radius, self._tinted(colour), -1, cv2.LINE_AA)
