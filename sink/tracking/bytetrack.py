"""ByteTrack's stages: boxes that are sure find their tracks first, then unsure ones keep alive tracks that are left.

Zhang et al., ByteTrack: Multi-Object Tracking by Associating Every Detection Box, ECCV 2022, section 3. Every class by
itself. A margin for what is not known of a track's place, and the stage for what stood still, are ours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from sink.tracking import kalman
from sink.tracking.association import match
from sink.tracking.settings import TrackerSettings
from sink.tracking.state import LiveTrack
from wire.messages import Detection

# Overlaps from which a box is its track's: an unsure box's (as in ByteTrack); a sure one's with a track seen once,
# whose speed is not known (ByteTrack asks for 0.3, which loses walkers at 5 frames a second); and a sure one's with
# what stood there some time ago.
_MIN_IOU_UNSURE = 0.5
_MIN_IOU_NEW = 0.2
_MIN_IOU_RESTING = 0.5
# A box of another class in the very place of a track in sight that nothing else fits: the same object, misnamed. More
# than a rider overlaps with the bicycle.
_MIN_IOU_RENAMED = 0.7
# A margin is the standard deviation of the track's place, but no more than this share of its shorter side, lest it
# reach whatever is near.
_MAX_MARGIN = 0.5


@dataclass
class Joined:
    """A frame's boxes and the tracks, each in one place."""

    pairs: list[tuple[LiveTrack, Detection]] = field(default_factory=list)
    missed: list[LiveTrack] = field(default_factory=list)
    fresh: list[Detection] = field(default_factory=list)  # boxes of no track that may begin one


def join(
    tracks: Sequence[LiveTrack],
    resting: Sequence[LiveTrack],
    detections: Sequence[Detection],
    settings: TrackerSettings,
) -> Joined:
    """Join boxes to tracks whose motions were predicted to the frame's time.

    `resting` are tracks long out of sight that stood still: they take boxes in their very place only, of those left.
    """
    joined = Joined()
    tracks_of: defaultdict[str, list[LiveTrack]] = defaultdict(list)
    resting_of: defaultdict[str, list[LiveTrack]] = defaultdict(list)
    boxes_of: defaultdict[str, list[Detection]] = defaultdict(list)
    for track in tracks:
        tracks_of[track.label].append(track)
    for track in resting:
        resting_of[track.label].append(track)
    for detection in detections:
        if detection.score >= settings.low_score:
            boxes_of[detection.label].append(detection)
    for label in dict.fromkeys((*tracks_of, *resting_of, *boxes_of)):
        _join_label(joined, tracks_of[label], resting_of[label], boxes_of[label], settings)
    _join_renamed(joined)
    return joined


def _join_renamed(joined: Joined) -> None:
    """Give boxes that would begin a track to tracks in sight that none of their own class fits."""
    in_sight = [track for track in joined.missed if track.confirmed and track.misses == 0]
    left, joined.fresh = _stage(joined, in_sight, joined.fresh, _MIN_IOU_RENAMED)
    found = {track.id for track in in_sight} - {track.id for track in left}
    joined.missed = [track for track in joined.missed if track.id not in found]


def _join_label(
    joined: Joined,
    tracks: list[LiveTrack],
    resting: list[LiveTrack],
    boxes: list[Detection],
    settings: TrackerSettings,
) -> None:
    """The stages for one class; what they find is added to `joined`."""
    sure = [box for box in boxes if box.score >= settings.high_score]
    unsure = [box for box in boxes if box.score < settings.high_score]
    known = [track for track in tracks if track.confirmed]
    new = [track for track in tracks if not track.confirmed]

    known, sure = _stage(joined, known, sure, settings.min_iou)
    in_sight = [track for track in known if track.misses == 0]
    lost = [track for track in known if track.misses > 0]
    in_sight, _ = _stage(joined, in_sight, unsure, _MIN_IOU_UNSURE)
    resting, sure = _stage(joined, resting, sure, _MIN_IOU_RESTING)
    new, sure = _stage(joined, new, sure, _MIN_IOU_NEW)
    joined.missed += [*in_sight, *lost, *resting, *new]
    joined.fresh += [box for box in sure if box.score >= settings.new_score]


def _stage(
    joined: Joined, tracks: list[LiveTrack], boxes: list[Detection], min_iou: float
) -> tuple[list[LiveTrack], list[Detection]]:
    """Add the pairs found to `joined`; returns the tracks and boxes that are left."""
    if not tracks or not boxes:
        return tracks, boxes
    found = match(
        [kalman.box_of(track.motion) for track in tracks],
        [_margin_px(track) for track in tracks],
        [box.box for box in boxes],
        [box.score for box in boxes],
        min_iou,
    )
    joined.pairs += [(tracks[row], boxes[column]) for row, column in found]
    rows, columns = {row for row, _ in found}, {column for _, column in found}
    return (
        [track for row, track in enumerate(tracks) if row not in rows],
        [box for column, box in enumerate(boxes) if column not in columns],
    )


def _margin_px(track: LiveTrack) -> float:
    """How far off the place of an object in sight may be. One that is lost has none: it would take others' boxes."""
    motion = track.motion
    return 0.0 if track.misses else float(min(motion.variance**0.5, _MAX_MARGIN * min(motion.width, motion.height)))
