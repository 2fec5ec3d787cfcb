"""A simulated street: pictures and ground truth for any frame index, from nothing but the seed.

    street = Street(parse("sim://street?seed=1"))
    picture, boxes = street.render(250)     # BGR uint8 (height, width, 3), list[TruthBox]

`render` is a pure function of the spec and the index: caches only make it fast. The background is drawn once; a frame
is a copy of it, the sprites blitted from far to near, a slow change of the light and sensor noise.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import cv2
import numpy as np

from ingest.sim.car import Car
from ingest.sim.houses import background
from ingest.sim.scene_url import SceneSpec
from ingest.sim.sprites import PIXELS_PER_METRE, Bicycle, Image, Person
from ingest.sim.street import AMBIENT, View, standing
from ingest.sim.traffic import Present, Traffic

LABELS = ("person", "bicycle", "car")
_SOLID = 128  # alpha from which a pixel counts as the object's
_WALK_PHASES, _PEDAL_PHASES, _WHEEL_PHASES = 12, 10, 4
_STEP_PAIR_M, _PEDAL_TURN_M, _SPOKE_M = 1.5, 4.0, 0.39  # way per cycle of walking, pedalling, a fifth of a wheel's turn
_NOISE_MARGIN = 64  # the noise is one large tile, shifted by up to this from frame to frame
_LIGHT_PERIOD_S, _LIGHT_SWING = 47.0, 0.04  # clouds: the whole picture's gain swings this much


@dataclass(frozen=True)
class TruthBox:
    """One object of a frame.

    `box` is (left, top, right, bottom) in pixels, right and bottom one past the last: the whole object, also what is
    hidden, cut at the picture's edge. `visible` is the share (0..1) of all its pixels, also of those outside the
    picture, that nothing hides.
    """

    label: str
    object_id: int  # the same in every frame of one pass; a rider and a bicycle share it
    box: tuple[int, int, int, int]
    visible: float


@dataclass(frozen=True)
class _Layer:
    """One sprite of a frame, at its place."""

    label: str  # "" for what stands still
    object_id: int
    sprite: Image
    left: int
    top: int
    z_m: float


class Street:
    """One scene. Not for several threads at once."""

    def __init__(self, spec: SceneSpec) -> None:
        self.spec = spec
        self.view = View(spec.width, spec.height)
        self._light = AMBIENT[spec.light]
        self._standing = [_Layer("", 0, s.sprite, s.left, s.top, s.z_m) for s in standing(spec, self.view)]
        self._traffic = Traffic(spec, self.view)
        # Full-size sprites (0.1-0.5 MB each) and those scaled to their distance: some 60 and 20 MB at most.
        self._drawn = lru_cache(maxsize=192)(self._draw)
        self._scaled = lru_cache(maxsize=512)(self._scale)
        self._shadow = lru_cache(maxsize=64)(_shadow)

    @cached_property
    def _background(self) -> Image:
        return background(self.spec, self.view)

    @cached_property
    def _noise(self) -> Image:
        tile = (self.spec.height + _NOISE_MARGIN, self.spec.width + _NOISE_MARGIN, 3)
        return np.random.default_rng([self.spec.seed, 5]).integers(0, self.spec.noise + 1, tile, np.uint8)

    def render(self, index: int, hidden: Collection[int] = ()) -> tuple[Image, list[TruthBox]]:
        """Picture and truth of frame `index` (>= 0), without the objects whose ids are `hidden`."""
        layers = [layer for layer in self._layers(index) if layer.object_id not in hidden or not layer.label]
        picture = self._background.copy()
        for present in self._traffic.at(self.scene_time_s(index)):
            self._cast_shadow(picture, present)
        for layer in layers:
            _blit(picture, layer.sprite, layer.left, layer.top)
        return self._expose(picture, index), self._truth(layers)

    def truth(self, index: int) -> list[TruthBox]:
        """The truth of frame `index` (>= 0), without drawing it."""
        return self._truth(self._layers(index))

    def scene_time_s(self, index: int) -> float:
        """How long things have moved by frame `index`; stands still in quiet periods."""
        time_s = index / self.spec.fps
        if not self.spec.quiet_s:
            return time_s
        busy_s = self.spec.period_s - self.spec.quiet_s
        periods, into_s = divmod(time_s, self.spec.period_s)
        return periods * busy_s + min(into_s, busy_s)

    def is_quiet(self, index: int) -> bool:
        """Does nothing move between the frame before `index` and `index`?"""
        return index > 0 and self.scene_time_s(index) == self.scene_time_s(index - 1)

    def _layers(self, index: int) -> list[_Layer]:
        """All sprites of a frame, farthest first."""
        moving = [layer for present in self._traffic.at(self.scene_time_s(index)) for layer in self._moving(present)]
        return sorted([*self._standing, *moving], key=lambda layer: -layer.z_m)

    def _moving(self, present: Present) -> Iterator[_Layer]:
        # Steps of 1.5 % keep the cache of scaled sprites useful while somebody walks towards the camera.
        step = round(math.log(self.view.scale(present.z_m) / PIXELS_PER_METRE) / math.log(1.015))
        looks, way = present.looks, present.travelled_m
        if isinstance(looks, Person):
            parts: list[tuple[str, Any, int]] = [
                ("person", looks, int(way / _STEP_PAIR_M * _WALK_PHASES) % _WALK_PHASES)
            ]
        elif isinstance(looks, Car):
            parts = [("car", looks, int(way / _SPOKE_M * _WHEEL_PHASES) % _WHEEL_PHASES)]
        else:
            phase = int(way / _PEDAL_TURN_M * _PEDAL_PHASES) % _PEDAL_PHASES
            parts = [("bicycle", looks[0], phase), ("person", looks[1], phase)]
        for label, drawn, phase in parts:
            riding = len(parts) == 2
            sprite = self._scaled(drawn, phase, riding, present.direction < 0, step)
            height, width = sprite.shape[:2]
            left = round(self.view.x(present.x_m, present.z_m) - width / 2)
            yield _Layer(label, present.object_id, sprite, left, round(self.view.y(present.z_m)) - height, present.z_m)

    def _draw(self, looks: Person | Car | Bicycle, phase: int, riding: bool) -> Image:
        if isinstance(looks, Car):
            return looks.sprite(phase / _WHEEL_PHASES, self._light, self.spec.light != "day")
        if isinstance(looks, Bicycle):
            return looks.sprite(phase / _PEDAL_PHASES, self._light)
        if riding:
            return looks.riding(phase / _PEDAL_PHASES, self._light)
        return looks.walking(phase / _WALK_PHASES, self._light)

    def _scale(self, looks: Person | Car | Bicycle, phase: int, riding: bool, flipped: bool, step: int) -> Image:
        sprite = self._drawn(looks, phase, riding)
        factor = 1.015**step
        size = (max(2, round(sprite.shape[1] * factor)), max(2, round(sprite.shape[0] * factor)))
        scaled: Any = cv2.resize(sprite, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
        return np.ascontiguousarray(cv2.flip(scaled, 1) if flipped else scaled)

    def _cast_shadow(self, picture: Image, present: Present) -> None:
        length = present.looks.length_m if isinstance(present.looks, Car) else 1.7 if present.kind == "bicycle" else 0.7
        scale = self.view.scale(present.z_m)
        strength = 110 if self.spec.light == "day" else 60
        sprite = self._shadow(max(4, round(length * 1.25 * scale)), max(3, round(0.32 * scale)), strength)
        height, width = sprite.shape[:2]
        left = round(self.view.x(present.x_m, present.z_m) - width / 2)
        _blit(picture, sprite, left, round(self.view.y(present.z_m) - height * 0.6))

    def _expose(self, picture: Image, index: int) -> Image:
        """The slow change of the light, then the sensor's noise."""
        gain = 1 + _LIGHT_SWING * math.sin(2 * math.pi * index / self.spec.fps / _LIGHT_PERIOD_S + self.spec.seed)
        picture = np.asarray(cv2.convertScaleAbs(picture, alpha=gain), np.uint8)
        if self.spec.noise:
            # Steps without a short cycle through the tile (both are prime to its margin).
            down, right = index * 29 % _NOISE_MARGIN, index // 2 * 37 % _NOISE_MARGIN
            tile = self._noise[down : down + self.spec.height, right : right + self.spec.width]
            cv2.add(picture, tile, dst=picture)
        return picture

    def _truth(self, layers: list[_Layer]) -> list[TruthBox]:
        """Boxes from the sprites' own alpha; hiding is counted pixel by pixel, from near to far."""
        height, width = self.spec.height, self.spec.width
        taken = np.zeros((height, width), np.bool_)
        boxes = []
        for layer in reversed(layers):
            solid = layer.sprite[..., 3] >= _SOLID
            place = _inside(layer.sprite, layer.left, layer.top, width, height)
            if place is None:
                continue
            rows, columns, sprite_rows, sprite_columns = place
            seen_here = solid[sprite_rows, sprite_columns]
            free = np.count_nonzero(seen_here & ~taken[rows, columns])
            taken[rows, columns] |= seen_here
            if layer.label and free:
                box = _extent(seen_here, columns.start, rows.start)
                boxes.append(TruthBox(layer.label, layer.object_id, box, round(free / np.count_nonzero(solid), 4)))
        return boxes[::-1]


def _extent(solid: Any, left: int, top: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) around the true pixels; right and bottom lie one past the last."""
    x, y, width, height = cv2.boundingRect(solid.astype(np.uint8))
    return left + x, top + y, left + x + width, top + y + height


def _inside(sprite: Image, left: int, top: int, width: int, height: int) -> tuple[slice, slice, slice, slice] | None:
    """Rows and columns of the picture and of the sprite where they overlap, or None."""
    right, bottom = left + sprite.shape[1], top + sprite.shape[0]
    x0, y0, x1, y1 = max(0, left), max(0, top), min(width, right), min(height, bottom)
    if x0 >= x1 or y0 >= y1:
        return None
    return slice(y0, y1), slice(x0, x1), slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)


def _blit(picture: Image, sprite: Image, left: int, top: int) -> None:
    """Lay a premultiplied sprite over the picture: picture * (1 - alpha) + sprite."""
    place = _inside(sprite, left, top, picture.shape[1], picture.shape[0])
    if place is None:
        return
    rows, columns, sprite_rows, sprite_columns = place
    under: Any = picture[rows, columns]
    over = sprite[sprite_rows, sprite_columns]
    clear = cv2.cvtColor(255 - over[..., 3], cv2.COLOR_GRAY2BGR)
    kept = cv2.multiply(under, clear, scale=1 / 255)
    cv2.add(kept, cv2.cvtColor(over, cv2.COLOR_BGRA2BGR), dst=under)


def _shadow(width: int, height: int, strength: int) -> Image:
    """A soft dark ellipse: black, with alpha up to `strength`."""
    across = np.linspace(-1, 1, width, dtype=np.float32)[None]
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    shadow = np.zeros((height, width, 4), np.uint8)
    shadow[..., 3] = np.clip(1.4 * (1 - across**2 - down**2), 0, 1) * strength
    return shadow
