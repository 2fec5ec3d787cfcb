"""Frames as a tracker would hand them on."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from sink.tracks import Track, TrackedFrame
from wire.messages import DetectionRecord


@pytest.fixture(scope="session")
def tracked(detection_record: Callable[..., DetectionRecord]) -> Callable[..., TrackedFrame]:
    """Makes a TrackedFrame: `tracked(seq, *objects, ended=(), field=value...)`; frames are 100 ms apart.

    An object is `(id, x, y)` or `(id, x, y, {field: value})`: a person of 40x100 pixels in a picture of 1000x1000,
    whose bottom centre stands at the fractions x and y.
    """

    def make(seq: int, *objects: tuple, ended: tuple[int, ...] = (), **changes: object) -> TrackedFrame:
        record = detection_record(seq, source_width=1000, source_height=1000)
        record = msgspec.structs.replace(record, **changes)
        tracks = []
        for number, x, y, *more in objects:
            box = (1000 * x - 20, 1000 * y - 100, 1000 * x + 20, 1000 * y)
            track = Track(number, "person", 0.9, box, (0.0, 0.0), record.event_us, 1, 0)
            tracks.append(msgspec.structs.replace(track, **(more[0] if more else {})))
        return TrackedFrame(record, tuple(tracks), ended)

    return make


@pytest.fixture(scope="session")
def of_detections(detection_record: Callable[..., DetectionRecord]) -> Callable[[DetectionRecord], TrackedFrame]:
    """A TrackedFrame of a record, each detection a track of its own."""

    def make(record: DetectionRecord) -> TrackedFrame:
        tracks = [
            Track(place, one.label, one.score, one.box, (0.0, 0.0), record.event_us, 1, 0)
            for place, one in enumerate(record.detections)
        ]
        return TrackedFrame(record, tuple(tracks))

    return make
