"""The benchmark's detector is as noisy as it says, and the tracker keeps the street's objects apart."""

from __future__ import annotations

from collections import defaultdict

import pytest

from benchmarks.tracking import scene, track
from benchmarks.tracking_noise import CONFIDENCE, VISIBLE
from ingest.sim.scene_url import SceneSpec
from sink.tracking import TrackerSettings
from sink.tracking.stillness import overlap

SPEC = SceneSpec(width=640, height=360, seed=9)


def test_the_same_seed_gives_the_same_detections_with_some_missing_and_some_false() -> None:
    one, again = (scene(SPEC, 5, 40) for _ in range(2))
    assert one.records == again.records
    asked = sum(box.visible >= VISIBLE for boxes in one.truth for box in boxes)
    said = [detection for record in one.records for detection in record.detections]
    assert 0.8 < len(said) / asked < 1.1
    assert all(CONFIDENCE <= detection.score <= 1 for detection in said)


@pytest.mark.parametrize("fps", [25, 5])
def test_an_object_of_the_street_has_hardly_more_than_one_id(fps: float) -> None:
    played = scene(SPEC, fps, 30)
    ids: defaultdict[tuple[str, int], set[int]] = defaultdict(set)
    followed = asked = 0
    for boxes, tracks in zip(played.truth, track(played, TrackerSettings()), strict=True):
        for box in boxes:
            if box.visible < 0.8:
                continue
            asked += 1
            of_label = [one for one in tracks if one[0] == box.label]
            best = max(of_label, key=lambda one: overlap(one[2], box.box), default=None)
            if best and overlap(best[2], box.box) > 0.5:
                followed += 1
                ids[box.label, box.object_id].add(best[1])
    assert len(ids) >= 8
    assert sum(map(len, ids.values())) / len(ids) < 1.3
    assert followed / asked > 0.8
