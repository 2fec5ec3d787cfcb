"""Roboflow's ByteTrack (`trackers`) on the same detections. Run with a Python that has it.

Reads from standard input `{"fps": .., "min_iou": .., "frames": [[[label, score, box]...]...]}`; one tracker a class,
with this project's thresholds; writes for each frame `[[label, id, box]...]`, of confirmed tracks only.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

# Those of sink.tracking.TrackerSettings, as far as there is the like.
_SETTINGS = {
    "track_activation_threshold": 0.3,
    "high_conf_det_threshold": 0.3,
    "minimum_consecutive_frames": 2,
    "lost_track_buffer": 60,  # frames at 30 a second: 2 s
}


def track(frames: list[list[Any]], fps: float, min_iou: float) -> list[list[Any]]:
    """Boxes with ids, frame by frame."""
    import supervision as sv  # type: ignore[import-not-found,unused-ignore]  # in an environment of its own
    from trackers import ByteTrackTracker  # type: ignore[import-not-found,unused-ignore]  # in an environment of its own

    labels = sorted({one[0] for frame in frames for one in frame})
    of_label = {label: ByteTrackTracker(frame_rate=fps, minimum_iou_threshold=min_iou, **_SETTINGS) for label in labels}
    out = []
    for frame in frames:
        found: list[Any] = []
        for label, tracker in of_label.items():
            mine = [one for one in frame if one[0] == label]
            detections = sv.Detections(
                xyxy=np.array([one[2] for one in mine], np.float32).reshape(-1, 4),
                confidence=np.array([one[1] for one in mine], np.float32),
                class_id=np.zeros(len(mine), int),
            )
            tracked = tracker.update(detections)
            ids = [] if tracked.tracker_id is None else tracked.tracker_id.tolist()
            found += [[label, id_, box] for id_, box in zip(ids, tracked.xyxy.tolist(), strict=True) if id_ >= 0]
        out.append(found)
    return out


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    json.dump(track(asked["frames"], asked["fps"], asked["min_iou"]), sys.stdout)
