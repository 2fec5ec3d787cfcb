"""Tracking: from the boxes of each frame to objects that keep an id from frame to frame.

Enters: the records of one camera, in order. Leaves: `TrackedFrame`s. ByteTrack (Zhang et al., ECCV 2022) on event time:
no clock, no input or output, and all its state can be stored, so that another process goes on where one stopped.
"""

from __future__ import annotations

from sink.tracking.settings import TrackerSettings
from sink.tracking.state import TrackerState
from sink.tracking.tracker import Tracker, TrackerCounts

__all__ = ["Tracker", "TrackerCounts", "TrackerSettings", "TrackerState"]
