"""What an RTSP server needs of a media source, and what a source may ask of the server's clients."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Protocol

from ingest.sim.h264 import AccessUnit, ParameterSets


class Demand:
    """What a server's clients want of its source. Thread-safe; the server sets it, the source reads it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watched = False
        self._stopped = False
        self._keyframe_wanted = False

    def set_watched(self, watched: bool) -> None:
        """Say whether at least one client is playing."""
        with self._changed:
            self._watched = watched
            self._changed.notify_all()

    def want_keyframe(self) -> None:
        """A client has joined and can use nothing until the next keyframe."""
        with self._changed:
            self._keyframe_wanted = True

    def stop(self) -> None:
        """End the source: every wait returns False from now on."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def take_keyframe_request(self) -> bool:
        """True once for each time that a keyframe was wanted since the last call."""
        with self._changed:
            wanted, self._keyframe_wanted = self._keyframe_wanted, False
            return wanted

    def wait_watched(self) -> bool:
        """Wait until somebody watches; False when the server stops."""
        with self._changed:
            self._changed.wait_for(lambda: self._watched or self._stopped)
            return not self._stopped

    def wait_until(self, monotonic_s: float) -> bool:
        """Wait until this time.monotonic(); False when the server stops."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped, max(0.0, monotonic_s - time.monotonic()))
            return not self._stopped

    @property
    def stopped(self) -> bool:
        """Has the server stopped?"""
        with self._changed:
            return self._stopped

    @property
    def watched(self) -> bool:
        """Is at least one client playing?"""
        with self._changed:
            return self._watched


class MediaSource(Protocol):
    """An endless H.264 video. The server iterates `units` on a thread of its own; the source paces itself."""

    parameter_sets: ParameterSets
    fps: float
    # True: the source honours Demand.want_keyframe, so a new client simply waits for it.
    # False: the server keeps the units since the last keyframe and sends them to a new client at once.
    keyframe_on_demand: bool

    def units(self, demand: Demand) -> Iterator[AccessUnit]:
        """Access units in decoding order, each yielded when it is due, until `demand` stops."""
        ...
