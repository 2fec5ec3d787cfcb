"""From the truth of a simulated street to what a detector would say of it: misses, jitter, doubt and false boxes.

Figures are those of a small detector on a fair picture: it finds 97 % of what is in full view, loses objects for a
fifth of a second at a time rather than for single frames, and raises a false box every few seconds.
"""

from __future__ import annotations

import math

import numpy as np

from ingest.sim.scene import TruthBox
from ingest.sim.scene_url import SceneSpec
from wire.messages import Detection

VISIBLE = 0.3  # share of an object that must be in view to be found, or to be asked for
CONFIDENCE = 0.25  # what the detector leaves out by default (conf_thres)
_FOUND = 0.97  # share of frames that find an object in full view; falls in a straight line to half that at VISIBLE
_MISS_S = 0.2  # how long one is lost, on average
_JITTER = 0.03  # standard deviation of an edge, of the box's side; half of it stays from frame to frame
_FALSE_PER_S = 0.3
_FALSE_S = 0.15  # how long a false box lasts, on average


class NoisyDetector:
    """Looks at frame after frame of one scene, `1 / fps` apart."""

    def __init__(self, spec: SceneSpec, fps: float, seed: int) -> None:
        self._spec = spec
        self._step_s = 1 / fps
        self._rng = np.random.default_rng([spec.seed, seed, 77])
        self._lost: set[tuple[str, int]] = set()
        self._offset: dict[tuple[str, int], np.ndarray] = {}
        self._false: list[Detection] = []

    def look(self, truth: list[TruthBox]) -> list[Detection]:
        """The detections of the next frame."""
        seen = [self._detect(one) for one in truth if one.visible >= VISIBLE]
        found = [one for one in seen if one is not None and one.score >= CONFIDENCE]
        return found + self._false_boxes()

    def _detect(self, one: TruthBox) -> Detection | None:
        key = (one.label, one.object_id)
        found = _FOUND * (0.5 + 0.5 * min(1.0, (one.visible - VISIBLE) / (0.8 - VISIBLE)))
        # A chain of two states with that share of found frames, whose misses last `_MISS_S`.
        back = 1 - math.exp(-self._step_s / _MISS_S)
        away = min(1.0, back * (1 - found) / found)
        if self._rng.random() < (back if key in self._lost else away):
            self._lost ^= {key}
        left, top, right, bottom = one.box
        sides = np.array([right - left, bottom - top] * 2)
        offset = 0.5**0.5 * self._offset.get(key, np.zeros(4)) + 0.5**0.5 * self._rng.normal(0, _JITTER, 4)
        self._offset[key] = offset
        score = float(np.clip(0.3 + 0.55 * one.visible + self._rng.normal(0, 0.08), 0, 1))
        if key in self._lost:
            return None
        return self._boxed(one.label, score, np.array(one.box) + offset * sides)

    def _false_boxes(self) -> list[Detection]:
        rng = self._rng
        self._false = [one for one in self._false if rng.random() < math.exp(-self._step_s / _FALSE_S)]
        for _ in range(rng.poisson(_FALSE_PER_S * self._step_s)):
            height = float(rng.uniform(0.05, 0.3)) * self._spec.height
            width = height * float(rng.uniform(0.3, 1.5))
            x, y = rng.uniform(0, self._spec.width - width), rng.uniform(0, self._spec.height - height)
            label = str(rng.choice(["person", "bicycle", "car"]))
            box = self._boxed(label, float(rng.uniform(0.25, 0.6)), np.array([x, y, x + width, y + height]))
            self._false.append(box)
        return list(self._false)

    def _boxed(self, label: str, score: float, box: np.ndarray) -> Detection:
        left, right = np.clip(box[[0, 2]], 0, self._spec.width).tolist()
        top, bottom = np.clip(box[[1, 3]], 0, self._spec.height).tolist()
        return Detection(label, 0, score, (left, top, right, bottom))
