"""Tells Redis once a second how each camera is doing, for the sinks' incidents about cameras themselves."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Mapping

import redis
import structlog

from ingest.status import CameraSnapshot
from wire.cameras import CameraStatus, write_status
from wire.ledger import LedgerSnapshot
from wire.logs import redact
from wire.messages import DropCause
from wire.redis_link import Link, RedisAway, connect
from wire.settings import RedisSettings

log = structlog.get_logger()

WRITE_S = 1.0
# Of the time that a process has to stop: enough for one write to a Redis that answers.
STOP_S = 0.5

# Once is the process before, which ended just now. A living one writes as often as we do, but not between any two of
# ours: neither keeps its second exactly.
SHARED_AFTER, ALONE_AFTER = 3, 5

# What becomes of a frame that no detector was to see, or that ended with the process: nobody owes it.
_UNWANTED: frozenset[DropCause] = frozenset(
    {"rate_limited", "not_keyframe", "asleep", "static", "decode_error", "stopped"}
)
# A file is up in every state but this; a live camera in one only.
_FILE_DOWN = "failed"
_LIVE_UP = "streaming"


def camera_status(camera: CameraSnapshot, ledger: LedgerSnapshot) -> CameraStatus:
    """What the sinks are told of a camera."""
    # Only what has ended: a frame on its way is owed by nobody yet.
    missed = sum(count for cause, count in ledger.dropped.items() if cause not in _UNWANTED)
    return CameraStatus(
        state=camera.state,
        up=camera.state == _LIVE_UP if camera.live else camera.state != _FILE_DOWN,
        error=camera.error or "",
        error_text=camera.error_text,
        wanted=ledger.detected + missed,
        detected=ledger.detected,
        same_s=int(camera.same_s),
        live=camera.live,
    )


SHARED_MEND = "end the other ingest, or rename the camera in one of the two; until then it raises no sound alerts"


class StatusWriter:
    """Writes from a thread of its own, so that a slow or absent Redis never holds up a camera."""

    def __init__(
        self, settings: RedisSettings, default_url: str, statuses: Callable[[], Mapping[str, CameraStatus]]
    ) -> None:
        self._settings = settings
        self._default_url = default_url
        self._statuses = statuses
        self._stop = threading.Event()
        self._link: Link | None = None
        self._told = False
        self._writer = uuid.uuid4().hex[:12]
        self._contested: Counter[str] = Counter()  # camera: how often another process had written of it
        self._quiet: Counter[str] = Counter()  # camera: how often in a row none had
        self._thread = threading.Thread(target=self._run, name="camera-status", daemon=True)

    def start(self) -> None:
        """Begin; Redis need not be there."""
        self._thread.start()

    def stop(self) -> None:
        """Write once more, and end."""
        self._stop.set()
        self._thread.join(STOP_S)

    @property
    def shared(self) -> list[str]:
        """Cameras whose name another ingest on this Redis has too: nothing sound comes of either. Any thread."""
        return sorted(camera for camera, times in self._contested.copy().items() if times >= SHARED_AFTER)

    def _run(self) -> None:
        while not self._stop.wait(WRITE_S):
            self._try_to_write()
        self._try_to_write()
        if self._link is not None:
            self._link.close()

    def _try_to_write(self) -> None:
        try:
            if self._link is None:
                self._link = Link(connect(self._settings, self._default_url))
            statuses = self._statuses()
            commands = [write_status(camera, status, self._writer) for camera, status in statuses.items()]
            replies = self._link.send(*commands)
            self._contest({camera: reply == 1 for camera, reply in zip(statuses, replies, strict=True)})
            refused = next((str(reply) for reply in replies if isinstance(reply, redis.ResponseError)), "")
            self._tell("camera states refused", refused)
        except (redis.RedisError, RedisAway, OSError) as error:
            if self._link is not None:
                self._link.close()
                self._link = None
            self._tell("camera states not written", str(error))

    def _contest(self, others: Mapping[str, bool]) -> None:
        for camera, by_another in others.items():
            self._quiet[camera] = 0 if by_another else self._quiet[camera] + 1
            if self._quiet[camera] >= ALONE_AFTER:
                self._contested[camera] = 0
            if not by_another:
                continue
            self._contested[camera] += 1
            if self._contested[camera] == SHARED_AFTER:
                log.error("another process on this redis has a camera of this name", camera=camera, mend=SHARED_MEND)

    def _tell(self, event: str, reason: str) -> None:
        if reason and not self._told:
            log.warning(event, reason=redact(reason))
        self._told = bool(reason)
