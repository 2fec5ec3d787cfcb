"""The standing part of the street: how the camera sees it, its background, and what stands in front of passers-by.

World metres: X to the right of the picture's middle, Z away from the camera, Y up. A pinhole camera looks level from
CAMERA_HEIGHT_M over the near pavement, across the road, at the houses on the far side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from ingest.sim.scene_url import Light, SceneSpec
from ingest.sim.sprites import PIXELS_PER_METRE, Canvas, Image

CAMERA_HEIGHT_M = 4.2
FOCAL = 0.625  # focal length in widths of a 16:9 picture: a horizontal view of 77 degrees
HORIZON = 0.30  # in picture heights from the top
# Where things lie, in metres from the camera: near kerb, far kerb, house fronts.
NEAR_KERB_M, FAR_KERB_M, HOUSES_M = 9.0, 15.5, 20.0
MIDDLE_LINE_M = 12.1
GROUND_NEAR_M, GROUND_HALF_M = 3.0, 24.0  # how far the drawn ground reaches
GROUND_PIXELS_PER_METRE = 64

# Gains for (blue, green, red).
AMBIENT: dict[Light, tuple[float, float, float]] = {
    "day": (1.0, 1.0, 1.0),
    "dusk": (0.72, 0.58, 0.62),
    "night": (0.36, 0.27, 0.25),
}
# Where the lamp posts stand, as (X, Z): one row at each kerb.
_LAMPS = [(-5.4, NEAR_KERB_M - 0.35), (5.0, NEAR_KERB_M - 0.35)]
_LAMPS += [(x, FAR_KERB_M + 0.4) for x in (-10.5, -1.2, 8.0)]
_WARM = (150, 215, 255)  # BGR of lamp light


@dataclass(frozen=True)
class View:
    """The camera's projection for one picture size."""

    width: int
    height: int

    @property
    def focal_px(self) -> float:
        """Pixels per metre at a distance of one metre."""
        return FOCAL * min(self.width, self.height * 16 / 9)

    def scale(self, z_m: float) -> float:
        """Pixels per metre at this distance."""
        return self.focal_px / z_m

    def x(self, x_m: float, z_m: float) -> float:
        """Column of a point."""
        return self.width / 2 + x_m * self.scale(z_m)

    def y(self, z_m: float, up_m: float = 0.0) -> float:
        """Row of a point this high above the ground."""
        return HORIZON * self.height + (CAMERA_HEIGHT_M - up_m) * self.scale(z_m)

    def half_width_m(self, z_m: float) -> float:
        """Metres from the middle to the picture's edge at this distance."""
        return self.width / 2 / self.scale(z_m)


@dataclass(frozen=True)
class Standing:
    """A thing that stands still and may hide passers-by: its sprite, top left corner and distance."""

    sprite: Image
    left: int
    top: int
    z_m: float


def zebra_x_m(spec: SceneSpec) -> float:
    """Where the zebra crossing lies."""
    return float(np.random.default_rng([spec.seed, 1]).uniform(-3.5, 3.5))


def ground(spec: SceneSpec, view: View) -> tuple[Image, int]:
    """The ground in perspective, (height, width, 3) BGR, and the first row that it covers."""
    flat = _ground_from_above(spec)
    columns, rows = np.meshgrid(np.arange(view.width, dtype=np.float32), np.arange(view.height, dtype=np.float32))
    first_row = int(np.ceil(view.y(HOUSES_M)))
    below_horizon = np.maximum(rows - HORIZON * view.height, 1e-3)
    z = CAMERA_HEIGHT_M * view.focal_px / below_horizon
    x = (columns - view.width / 2) * z / view.focal_px
    map_x = ((x + GROUND_HALF_M) * GROUND_PIXELS_PER_METRE).astype(np.float32)
    map_y = ((HOUSES_M - z) * GROUND_PIXELS_PER_METRE).astype(np.float32)
    seen = cv2.remap(flat, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    if spec.light != "day":
        for lamp_x, lamp_z in _LAMPS:
            distance = np.hypot(x - lamp_x, z - lamp_z)
            pool = 0.45 * np.exp(-((distance / 2.6) ** 2))[..., None] * np.array(_WARM, np.float32) / 255
            seen = np.minimum(seen + pool * (40 + seen), 255)
    return seen.astype(np.uint8), first_row


def _ground_from_above(spec: SceneSpec) -> Any:
    """Road, kerbs, pavements and markings seen from above, float32 BGR; row 0 is at the house fronts."""
    scale = GROUND_PIXELS_PER_METRE
    rng = np.random.default_rng([spec.seed, 3])
    size = (int((HOUSES_M - GROUND_NEAR_M) * scale), int(2 * GROUND_HALF_M * scale))

    def column(x_m: float) -> int:
        return int((x_m + GROUND_HALF_M) * scale)

    def row(z_m: float) -> int:
        return int((HOUSES_M - z_m) * scale)

    flat: Any = np.empty((*size, 3), np.uint8)
    asphalt, slab = int(rng.integers(82, 104)), int(rng.integers(150, 176))
    flat[:] = (slab - 8, slab, slab + 4)
    flat[row(FAR_KERB_M) : row(NEAR_KERB_M)] = (asphalt + 3, asphalt, asphalt - 1)
    _lay_slabs(flat[: row(FAR_KERB_M)], rng)
    _lay_slabs(flat[row(NEAR_KERB_M) :], rng)
    for kerb, gutter in ((FAR_KERB_M, -0.12), (NEAR_KERB_M, 0.12)):
        cv2.line(flat, (0, row(kerb)), (size[1], row(kerb)), (190, 196, 196), int(0.16 * scale))
        cv2.line(flat, (0, row(kerb + gutter)), (size[1], row(kerb + gutter)), (62, 60, 60), int(0.08 * scale))
    paint = (205, 212, 214)
    for start in np.arange(-GROUND_HALF_M, GROUND_HALF_M, 4.0):
        dash = (column(start), row(MIDDLE_LINE_M + 0.06)), (column(start + 2.0), row(MIDDLE_LINE_M - 0.06))
        cv2.rectangle(flat, *dash, paint, -1)
    zebra = zebra_x_m(spec)
    cv2.rectangle(  # no dashes on the crossing
        flat,
        (column(zebra - 2), row(FAR_KERB_M - 0.3)),
        (column(zebra + 2), row(NEAR_KERB_M + 0.3)),
        (asphalt,) * 3,
        -1,
    )
    for z in np.arange(NEAR_KERB_M + 0.5, FAR_KERB_M - 0.4, 1.0):
        cv2.rectangle(flat, (column(zebra - 1.8), row(z + 0.5)), (column(zebra + 1.8), row(z)), paint, -1)
    for _ in range(6):  # manhole covers and patches
        x, z = rng.uniform(-12, 12), rng.uniform(NEAR_KERB_M + 0.8, FAR_KERB_M - 0.8)
        cv2.circle(flat, (column(x), row(z)), int(0.35 * scale), (58, 60, 62), -1, cv2.LINE_AA)
        cv2.circle(flat, (column(x), row(z)), int(0.30 * scale), (84, 86, 88), int(0.05 * scale), cv2.LINE_AA)
        x, z = rng.uniform(-14, 14), rng.uniform(NEAR_KERB_M + 1, FAR_KERB_M - 1)
        corner = (column(x + rng.uniform(1, 3)), row(z + rng.uniform(0.4, 1.2)))
        cv2.rectangle(flat, (column(x), row(z)), corner, (asphalt - 12,) * 3, -1)
    grain = rng.normal(0, 9, size).astype(np.float32)
    stains = cv2.resize(
        rng.normal(0, 9, (size[0] // 96, size[1] // 96)).astype(np.float32), size[::-1], interpolation=cv2.INTER_CUBIC
    )
    textured = np.clip(flat + (grain + stains)[..., None], 0, 255) * np.array(AMBIENT[spec.light], np.float32)
    # The far half is seen at a third of this resolution: blurred, it does not flicker or alias.
    return cv2.GaussianBlur(textured.astype(np.float32), (3, 3), 0)


def _lay_slabs(flat: Any, rng: np.random.Generator) -> None:
    """Paving of one pavement, in place."""
    step = int(0.75 * GROUND_PIXELS_PER_METRE)
    stone = [int(channel) for channel in flat[0, 0]]
    for top in range(0, flat.shape[0], step):
        offset = step // 2 if (top // step) % 2 else 0
        for left in range(-offset, flat.shape[1], step):
            tone = int(rng.integers(-9, 9))
            corner = (left + step, top + step)
            cv2.rectangle(flat, (max(0, left), top), corner, [channel + tone for channel in stone], -1)
            cv2.rectangle(flat, (max(0, left), top), corner, (112, 116, 118), 1)


def standing(spec: SceneSpec, view: View) -> list[Standing]:
    """What stands at the kerbs: lamp posts, bollards, a bin. Farthest first."""
    things = [_place(view, _lamp_post(spec), x, z) for x, z in _LAMPS]
    rng = np.random.default_rng([spec.seed, 4])
    zebra = zebra_x_m(spec)
    for x in (zebra - 2.4, zebra + 2.4):
        for z in (NEAR_KERB_M - 0.3, FAR_KERB_M + 0.35):
            things.append(_place(view, _bollard(spec), x, z))
    bin_x = float(rng.uniform(-4, 4))
    things.append(_place(view, _bin(spec), bin_x, NEAR_KERB_M - 0.5))
    return sorted(things, key=lambda thing: -thing.z_m)


def _place(view: View, sprite: Image, x_m: float, z_m: float) -> Standing:
    """A sprite of PIXELS_PER_METRE put on the ground at (x, z)."""
    factor = view.scale(z_m) / PIXELS_PER_METRE
    size = (max(1, round(sprite.shape[1] * factor)), max(1, round(sprite.shape[0] * factor)))
    scaled = np.asarray(cv2.resize(sprite, size, interpolation=cv2.INTER_AREA), np.uint8)
    return Standing(scaled, round(view.x(x_m, z_m) - size[0] / 2), round(view.y(z_m)) - size[1], z_m)


def _lamp_post(spec: SceneSpec) -> Image:
    canvas = Canvas(1.6, 5.2)
    steel = (74, 80, 70, 255)
    canvas.limb([(0, 0.05), (0, 4.8), (0.5, 5.0)], 0.09, steel)
    canvas.limb([(0, 0.05), (0, 0.9)], 0.17, steel)
    if spec.light == "day":
        canvas.limb([(0.4, 4.96), (0.7, 5.0)], 0.1, (205, 210, 210, 255))
        return canvas.finish(AMBIENT["day"])
    post = canvas.finish(AMBIENT[spec.light])
    lamp = Canvas(1.6, 5.2)
    lamp.limb([(0.4, 4.96), (0.7, 5.0)], 0.14, (*_WARM, 255))
    lit = lamp.finish((1.0, 1.0, 1.0))
    post[lit[..., 3] > 127] = lit[lit[..., 3] > 127]
    return post


def _bollard(spec: SceneSpec) -> Image:
    canvas = Canvas(0.3, 1.0)
    canvas.limb([(0, 0.08), (0, 0.85)], 0.15, (62, 58, 56, 255))
    canvas.limb([(-0.05, 0.7), (0.05, 0.7)], 0.1, (210, 215, 220, 255))
    return canvas.finish(AMBIENT[spec.light])


def _bin(spec: SceneSpec) -> Image:
    canvas = Canvas(0.7, 1.1)
    canvas.polygon([(-0.27, 0.02), (0.27, 0.02), (0.3, 0.9), (-0.3, 0.9)], (70, 95, 60, 255))
    canvas.polygon([(-0.32, 0.88), (0.32, 0.88), (0.26, 1.04), (-0.26, 1.04)], (50, 70, 44, 255))
    canvas.polygon([(-0.18, 0.74), (0.18, 0.74), (0.18, 0.82), (-0.18, 0.82)], (24, 26, 24, 255))
    return canvas.finish(AMBIENT[spec.light])
