"""The tracks of one camera, from frame to frame."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from sink.tracking import kalman, stillness
from sink.tracking.bytetrack import join
from sink.tracking.settings import TrackerSettings
from sink.tracking.state import LiveTrack, TrackerState
from sink.tracking.stillness import NEVER, Still
from sink.tracks import Track, TrackedFrame
from wire.messages import Detection, DetectionRecord

# Of a longer gap between two frames only this counts as time that was watched: the motion gate or the adaptive profile
# saw nothing move, or the camera was away.
_WATCHED_US = 1_000_000
# The longest distance of two frames over which something that moves is still looked for, at few frames a second.
_LONGEST_STEP_US = 30_000_000
# Boxes of a frame, and tracks of a camera: more than our detectors give (300), so that garbage costs a bounded time.
MAX_TRACKS = 500
# Frames by which a new class must outweigh a long-known one: a flicker does not, a mistake of the beginning is mended.
_MAX_VOTES = 10
_MAX_PX = 100_000.0  # no picture has coordinates beyond this


@dataclass
class TrackerCounts:
    """Since the process started."""

    bad_boxes: int = 0  # not a number, empty or inside out: left out
    over_limit: int = 0  # boxes and unseen tracks beyond MAX_TRACKS: left out
    late_frames: int = 0  # older than the frame before: given no tracks
    clock_steps: int = 0  # times that event time went back


class Tracker:
    """Call `step` with each frame in order. `state` is all that another process needs to go on; it is changed in place.

    - A gap between frames: objects go on at their speed, and are given up when unseen for `lost_s`; those that stood
      still stay in their place, however long the gap.
    - Another session (the reader began anew): the same, unless it begins before the last one ended. Then it is other
      material, or the same again, and all tracks end.
    - A frame that comes late, out of order: it has no tracks and changes nothing.
    - Event time that goes back within a session: the tracks' times go back with it.
    """

    def __init__(self, settings: TrackerSettings, state: TrackerState | None = None) -> None:
        self._settings = settings
        self.state = state or TrackerState()
        self.counts = TrackerCounts()

    def step(self, record: DetectionRecord) -> TrackedFrame:
        """The frame's objects. Boxes that are none are left out of the frame's record, too."""
        record = self._sound(record)
        state, event_us = self.state, record.event_us
        if record.session == state.session and record.seq <= state.seq and event_us < state.event_us:
            self.counts.late_frames += 1
            return TrackedFrame(record, ())
        ended = self._go_back(record) if event_us < state.event_us else []
        step_us = event_us - state.event_us if state.tracks else 0
        state.session, state.seq, state.event_us = record.session, record.seq, event_us

        long_unseen = {track.id for track in state.tracks if self._long_unseen(track, step_us)}
        ended += self._give_up([track for track in state.tracks if self._is_gone(track, track.id in long_unseen)])
        for track in state.tracks:
            if step_us > _WATCHED_US and self._stands(track):
                kalman.stop(track.motion)
            kalman.predict(track.motion, step_us / 1e6)
        joined = join(
            [track for track in state.tracks if track.id not in long_unseen],
            [track for track in state.tracks if track.id in long_unseen],
            record.detections,
            self._settings,
        )
        for track in joined.missed:
            track.misses += 1
            track.missed_us += min(step_us, _WATCHED_US)
            kalman.stop_growing(track.motion)
        for track, detection in joined.pairs:
            self._take(track, detection)
        pairs = joined.pairs + [(self._begin(detection), detection) for detection in joined.fresh]
        ended += self._give_up(self._surplus())

        tracks = [self._seen(track, detection) for track, detection in pairs if track.confirmed]
        tracks.sort(key=lambda track: (-track.score, track.id))
        return TrackedFrame(record, tuple(tracks), tuple(sorted(ended)))

    def _sound(self, record: DetectionRecord) -> DetectionRecord:
        """The record without boxes that are none, and with no more than MAX_TRACKS, the surest."""
        sound = [detection for detection in record.detections if _is_sound(detection)]
        if len(sound) == len(record.detections) <= MAX_TRACKS:
            return record
        self.counts.bad_boxes += len(record.detections) - len(sound)
        if len(sound) > MAX_TRACKS:
            self.counts.over_limit += len(sound) - MAX_TRACKS
            sound = sorted(sound, key=lambda detection: -detection.score)[:MAX_TRACKS]
        return msgspec.structs.replace(record, detections=sound)

    def _go_back(self, record: DetectionRecord) -> list[int]:
        """Event time went back; returns the ids of tracks that end by it."""
        state = self.state
        self.counts.clock_steps += 1
        if record.session != state.session:
            return self._give_up(state.tracks)
        back_us = state.event_us - record.event_us
        for track in state.tracks:
            track.first_us -= back_us
            track.seen_us -= back_us
            track.still.since_us -= back_us
            track.still.left_us = NEVER
        state.event_us = record.event_us
        return []

    def _long_unseen(self, track: LiveTrack, step_us: int) -> bool:
        """Whether only its standing still can make it the same object when it is seen again."""
        unseen_us = self.state.event_us - track.seen_us
        return unseen_us > self._settings.lost_s * 1e6 and (track.misses > 0 or step_us > _LONGEST_STEP_US)

    def _is_gone(self, track: LiveTrack, long_unseen: bool) -> bool:
        if not track.confirmed:
            return track.misses > 0 or long_unseen
        waits = self._stands(track) and track.missed_us <= self._settings.lost_still_s * 1e6
        return long_unseen and not waits

    def _stands(self, track: LiveTrack) -> bool:
        return track.confirmed and _still_us(track) >= self._settings.still_after_s * 1e6

    def _give_up(self, tracks: list[LiveTrack]) -> list[int]:
        """Forget these; returns the ids of those that anybody was told of."""
        if not tracks:
            return []
        gone = {track.id for track in tracks}
        told = [track.id for track in tracks if track.confirmed]
        self.state.tracks = [track for track in self.state.tracks if track.id not in gone]
        return told

    def _begin(self, detection: Detection) -> LiveTrack:
        state = self.state
        track = LiveTrack(
            id=state.next_id,
            label=detection.label,
            motion=kalman.begin(detection.box),
            still=Still(detection.box, state.event_us),
            first_us=state.event_us,
            seen_us=state.event_us,
            confirmed=self._settings.confirm_frames == 1,
        )
        state.next_id += 1
        state.tracks.append(track)
        return track

    def _take(self, track: LiveTrack, detection: Detection) -> None:
        """The track is seen in this frame."""
        kalman.update(track.motion, detection.box)
        stillness.look(track.still, kalman.box_of(track.motion), self.state.event_us)
        _vote(track, detection.label)
        track.seen_us = self.state.event_us
        track.hits += 1
        track.misses = track.missed_us = 0
        track.confirmed = track.confirmed or track.hits >= self._settings.confirm_frames

    def _surplus(self) -> list[LiveTrack]:
        """What is beyond MAX_TRACKS: of the unseen tracks those unseen for longest."""
        surplus = len(self.state.tracks) - MAX_TRACKS
        if surplus <= 0:
            return []
        self.counts.over_limit += surplus
        return sorted(self.state.tracks, key=lambda track: (track.seen_us, track.id))[:surplus]

    def _seen(self, track: LiveTrack, detection: Detection) -> Track:
        motion = track.motion
        return Track(
            id=track.id,
            label=track.label,
            score=detection.score,
            box=detection.box,
            velocity=(motion.speed_x, motion.speed_y),
            first_us=track.first_us,
            hits=track.hits,
            still_us=_still_us(track) if self._stands(track) else 0,
        )


def _vote(track: LiveTrack, label: str) -> None:
    """The class of most frames is the track's (the majority vote of Boyer and Moore, 1981)."""
    if label == track.label:
        track.votes = min(track.votes + 1, _MAX_VOTES)
    elif track.votes > 0:
        track.votes -= 1
    else:
        track.label, track.votes = label, 1


def _still_us(track: LiveTrack) -> int:
    """For how long it had not moved when it was last seen."""
    return track.seen_us - track.still.since_us


def _is_sound(detection: Detection) -> bool:
    # A comparison with what is not a number is False.
    left, top, right, bottom = detection.box
    return 0 <= detection.score <= 1 and -_MAX_PX <= left < right <= _MAX_PX and -_MAX_PX <= top < bottom <= _MAX_PX
