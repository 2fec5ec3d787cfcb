"""Who is on the street, where and when: a pure function of the seed and the time.

Each object has a slot. A slot's time is cut into equal passes; in each pass one object, newly drawn by lot, comes in at
one side and goes out at the other. So the state at any moment follows at once, with no history to play through.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from ingest.sim.car import Car
from ingest.sim.scene_url import SceneSpec
from ingest.sim.sprites import Bicycle, Person
from ingest.sim.street import FAR_KERB_M, HOUSES_M, NEAR_KERB_M, View, zebra_x_m

Kind = Literal["person", "car", "bicycle"]
PASSES_PER_SLOT = 1_000_000  # object id = slot * this + pass; 16-bit slots and years of passes fit in an int64

# Slots are handed out in this order, over and over: half of them people, as a pistol, fall or queue detector wants.
_ORDER: tuple[Kind, ...] = ("person", "car", "bicycle", "person", "person", "car")
_CAR_M_S = {1: 6.5, -1: 7.5}  # one speed a lane, so that nobody drives through the car ahead
_CAR_GAP_S = 1.6  # between two cars of one lane: at 6.5 m/s more than the longest car
_CAR_LANE_Z_M = {1: 10.6, -1: 13.7}
_CYCLE_LANE_Z_M = {1: 9.45, -1: 15.0}
_LONGEST_HALF_M = 2.6  # of any object, so that it is wholly out of sight when its pass ends


@dataclass(frozen=True)
class Lane:
    """One slot's way across the picture. `direction` is 1 to the right, -1 to the left (or away from us)."""

    slot: int
    kind: Kind
    direction: int
    crossing: bool  # over the zebra crossing, not along the street
    z_m: float
    slowest_m_s: float
    period_s: float
    offset_s: float


@dataclass(frozen=True)
class Present:
    """One object at one moment. `travelled_m` drives its legs and wheels."""

    object_id: int
    kind: Kind
    looks: Person | Car | tuple[Bicycle, Person]
    direction: int
    x_m: float
    z_m: float
    travelled_m: float


class Traffic:
    """All slots of one scene."""

    def __init__(self, spec: SceneSpec, view: View) -> None:
        self._spec = spec
        self._view = view
        self._zebra_x_m = zebra_x_m(spec)
        kinds = [_ORDER[slot % len(_ORDER)] for slot in range(spec.objects)]
        self._lanes = [
            self._lane(slot, kind, kinds[:slot].count(kind), kinds.count(kind)) for slot, kind in enumerate(kinds)
        ]
        # Bounded, and larger than what any scene shows at once; looks are drawn anew when they are needed again.
        self._looks = lru_cache(maxsize=256)(self._draw_lots)

    def at(self, time_s: float) -> Iterator[Present]:
        """The objects on their way at this time (some may be out of the picture)."""
        for lane in self._lanes:
            number, into_s = divmod(time_s + lane.offset_s, lane.period_s)
            speed, side_m, looks = self._looks(lane.slot, int(number))
            travelled = speed * into_s
            if lane.crossing:
                # From the house door towards us and out under the picture, or back.
                x, z = self._zebra_x_m + side_m, HOUSES_M - 0.3 - travelled
                if lane.direction < 0:
                    z = 3.0 + travelled
                if not 3.0 <= z <= HOUSES_M - 0.3:
                    continue
            else:
                z = lane.z_m + side_m
                x = lane.direction * (travelled - self._view.half_width_m(z) - _LONGEST_HALF_M)
            object_id = lane.slot * PASSES_PER_SLOT + int(number) % PASSES_PER_SLOT
            yield Present(object_id, lane.kind, looks, lane.direction, x, z, travelled)

    def _lane(self, slot: int, kind: Kind, number: int, of_kind: int) -> Lane:
        rng = np.random.default_rng([self._spec.seed, 10, slot])
        direction = 1 if number % 2 == 0 else -1
        crossing = kind == "person" and number % 4 == 1
        if kind == "car":
            z, slowest = _CAR_LANE_Z_M[direction], _CAR_M_S[direction]
        elif kind == "bicycle":
            z, slowest = _CYCLE_LANE_Z_M[direction], 3.2
        elif number % 4 == 0:
            z, slowest = float(rng.uniform(NEAR_KERB_M - 1.9, NEAR_KERB_M - 0.8)), 1.0
        else:
            z, slowest = float(rng.uniform(FAR_KERB_M + 1.0, HOUSES_M - 1.5)), 1.0
        if kind == "person":
            direction = int(rng.choice([-1, 1]))
        way = HOUSES_M - 3.3 if crossing else 2 * (self._view.half_width_m(z + 0.4) + _LONGEST_HALF_M)
        period = way / slowest
        offset = float(rng.uniform(0, period))
        if kind == "car":  # evenly spread over their lane
            in_lane = (of_kind + 1 - number % 2) // 2
            period = max(period, in_lane * _CAR_GAP_S)
            first = np.random.default_rng([self._spec.seed, 11, direction + 1]).uniform(0, period)
            offset = float(first) + (number // 2) * period / in_lane
        return Lane(slot, kind, direction, crossing, z, slowest, period, offset)

    def _draw_lots(self, slot: int, number: int) -> tuple[float, float, Person | Car | tuple[Bicycle, Person]]:
        """Speed in m/s, metres to the side of the lane's middle, and looks of one pass."""
        lane = self._lanes[slot]
        rng = np.random.default_rng([self._spec.seed, 12, slot, number])
        if lane.kind == "car":
            return lane.slowest_m_s, 0.0, Car.of(rng)
        if lane.kind == "bicycle":
            return (
                lane.slowest_m_s * float(rng.uniform(1, 1.6)),
                float(rng.uniform(-0.2, 0.2)),
                (Bicycle.of(rng), Person.of(rng)),
            )
        return lane.slowest_m_s * float(rng.uniform(1, 1.6)), float(rng.uniform(-0.4, 0.4)), Person.of(rng)
