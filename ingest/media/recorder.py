"""Writes the snapshots and clips of incidents. It lives on one thread, and nothing waits for it.

Whatever goes wrong costs a picture, which is counted, and never an alert: those have been sent when they come here.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Literal

import structlog

from ingest.media.clip import ClipError, ClipWriter
from ingest.media.retention import Swept, sweep
from ingest.media.ring import Cursor, Kept, Mark, PacketRing, after_s
from ingest.media.settings import MediaSettings
from ingest.media.snapshot import decode_frame, draw_boxes, to_jpeg, upright
from ingest.media.store import Store
from wire.alerts import Alert
from wire.media import media_path
from wire.messages import WireError

log = structlog.get_logger()

Kind = Literal["snapshot", "clip"]
# Why a snapshot or clip is missing. One word a cause, the same in metrics and logs.
Missed = Literal[
    "gone",  # the frame's packets are not in the ring: the alert came late, or is of an earlier run
    "no_packets",  # of a folder of images; or the camera has not been opened yet
    "undecodable",
    "disk",  # full, or not writable
    "codec",  # MP4 does not take it
    "busy",  # as many clips are open as can be, or alerts come faster than pictures can be made
    "malformed",  # the alert names no file or no time
]

# Each open clip writes its camera's bitrate: so many are one incident on each camera of a large unit.
MAX_OPEN_CLIPS = 32
# No packet for three times a camera's usual read limit: it is down, and the clip is given to whoever waits for it.
STALL_S = 15.0
# Between packets of one time line; more means that the camera's clock was set. Codecs reorder within a second.
LEAP_BACK_S, LEAP_AHEAD_S = 1.0, 10.0
# Packets go into a clip when they are this old: the word that its incident is over comes a little after its frame.
HOLD_S = 1.0
RETENTION_S = 60.0
# A sweep of a huge folder takes at most this share of the time.
RETENTION_SHARE = 0.005
# A cause is told at most this often; the counters have the rest.
TELL_S = 60.0

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class MediaCounts:
    """The recorder's counts since it started."""

    snapshots: int = 0
    clips: int = 0
    clips_open: int = 0
    clips_late: int = 0  # of the finished: begin later than their pre-roll, because the ring no longer held it
    clips_cut: int = 0  # of the finished: end before their post-roll, because the stream ended
    missed: dict[tuple[Kind, Missed], int] = field(default_factory=dict)
    deleted: int = 0
    undeletable: int = 0  # files that the last sweep could not delete
    files: int = 0  # in the folder, at the last sweep
    bytes: int = 0


@dataclass
class _OpenClip:
    writer: ClipWriter
    partial: Path
    ring: PacketRing
    cursor: Cursor
    mark: Mark
    opened_us: int
    end_s: float  # after the opening frame, in stream time
    fresh_s: float  # when the last packet was written (monotonic)
    reached_s: float  # stream time of the newest packet, after the opening frame
    late: bool


class Recorder:
    """Call `handle`, `tick` and `close` from one thread; `counts` and `overrun` from any."""

    def __init__(
        self,
        settings: MediaSettings,
        rings: Mapping[str, PacketRing],
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        """`rings`: by camera. The clocks are injected for tests."""
        self._settings = settings
        self._rings = rings
        self._monotonic_s = monotonic_s
        self._wall_s = wall_s
        self._store = Store(settings.folder, settings.min_free_bytes)
        self._clips: dict[str, _OpenClip] = {}
        self._missed: Counter[tuple[Kind, Missed]] = Counter()
        self._lock = threading.Lock()  # over the missed
        self._told_s: dict[tuple[Kind, Missed], float] = {}
        self._snapshots = self._done = self._late = self._cut = self._deleted = 0
        self._swept = Swept()
        self._sweep_due_s = self._monotonic_s()

    def counts(self) -> MediaCounts:
        """The counts now."""
        with self._lock:
            missed = dict(self._missed)
        return MediaCounts(
            snapshots=self._snapshots,
            clips=self._done,
            clips_open=len(self._clips),
            clips_late=self._late,
            clips_cut=self._cut,
            missed=missed,
            deleted=self._deleted,
            undeletable=self._swept.failed,
            files=self._swept.files,
            bytes=self._swept.bytes,
        )

    def overrun(self, alert: Alert) -> None:
        """An alert cannot even be handed over: too many wait. Any thread may say so."""
        if alert.event != "opened":
            return  # a clip that misses its close ends at its longest
        if self._settings.snapshots:
            self._miss("snapshot", "busy", alert)
        if self._settings.clips:
            self._miss("clip", "busy", alert)

    def _miss(self, kind: Kind, why: Missed, alert: Alert, detail: str = "") -> None:
        with self._lock:
            self._missed[kind, why] += 1
        now_s = self._monotonic_s()
        if now_s - self._told_s.get((kind, why), float("-inf")) >= TELL_S:
            self._told_s[kind, why] = now_s
            log.warning(f"no {kind}", why=why, camera=alert.camera, incident=alert.incident, detail=detail)

    def handle(self, alert: Alert) -> None:
        """An alert has been published. Those of other processes' cameras are none of ours."""
        ring = self._rings.get(alert.camera)
        if ring is None:
            return
        if alert.event == "closed":
            self._incident_closed(alert)
        elif alert.event == "opened" and alert.session is not None and alert.seq is not None:
            # The clip first: while the snapshot is decoded its packets might go.
            if self._settings.clips:
                self._guarded("clip", alert, ring, self._open_clip)
            if self._settings.snapshots:
                self._guarded("snapshot", alert, ring, self._write_snapshot)

    def tick(self) -> None:
        """Call a few times a second: clips go on, old files are deleted."""
        for incident in list(self._clips):
            self._go_on(incident)
        now_s = self._monotonic_s()
        if now_s >= self._sweep_due_s:
            self._swept = sweep(
                self._store.folder, self._settings.keep_days * 86_400, self._settings.max_bytes, self._wall_s()
            )
            self._deleted += self._swept.deleted
            ended_s = self._monotonic_s()
            self._sweep_due_s = ended_s + max(RETENTION_S, (ended_s - now_s) / RETENTION_SHARE)

    def close(self) -> None:
        """Complete the open clips as they are."""
        for incident, clip in list(self._clips.items()):
            self._write(incident, clip.ring.read(clip.cursor) or [])
            if incident in self._clips:
                self._finish(incident, cut=True)

    def _guarded(
        self, kind: Kind, alert: Alert, ring: PacketRing, work: Callable[[Alert, PacketRing, str, Mark], Missed | None]
    ) -> None:
        """Do the work of one picture, and count what it meets."""
        try:
            # Of its frame, as in the sink's links. `opened_time` is when it began: long before, if it was held back.
            opened_us = _microseconds(alert.event_time)
            path = media_path(alert.camera, alert.incident, opened_us, "jpg" if kind == "snapshot" else "mp4")
            # An alert may be delivered twice.
            if self._store.has(path) or (kind == "clip" and alert.incident in self._clips):
                return
            mark = ring.find(alert.session or "", alert.seq or 0)
            if mark is None:
                why: Missed | None = "gone" if ring.used else "no_packets"
            else:
                why = work(alert, ring, path, mark)
            if why is not None:
                self._miss(kind, why, alert)
        except WireError as error:
            self._miss(kind, "malformed", alert, str(error))
        except OSError as error:
            self._miss(kind, "disk", alert, f"{error}; media.dir must be writable and have room")
        except ClipError as error:
            self._miss(kind, "codec", alert, str(error))
        # A picture that our own code stumbles over must cost that picture and not the ones after it.
        except Exception:
            self._miss(kind, "undecodable", alert)
            log.exception(f"a {kind} could not be made", camera=alert.camera)

    def _write_snapshot(self, alert: Alert, ring: PacketRing, path: str, mark: Mark) -> Missed | None:
        found = ring.to_decode(mark)
        if found is None:
            return "gone"
        frame = decode_frame(mark.segment.format, *found)
        if frame is None:
            return "undecodable"
        image = upright(frame, mark.turn)
        if self._settings.boxes:
            draw_boxes(image, alert)
        self._store.write(path, to_jpeg(image, self._settings.jpeg_quality))
        self._snapshots += 1
        return None

    def _open_clip(self, alert: Alert, ring: PacketRing, path: str, mark: Mark) -> Missed | None:
        if len(self._clips) >= MAX_OPEN_CLIPS:
            return "busy"
        if not self._store.has_room():
            return "disk"
        cursor = ring.seek(mark, self._settings.pre_roll_s)
        first = ring.peek(cursor) if cursor else None
        if first is None or cursor is None:
            return "gone"
        partial = self._store.begin(path)
        writer = ClipWriter(partial, mark.segment.format)
        self._clips[alert.incident] = _OpenClip(
            writer=writer,
            partial=partial,
            ring=ring,
            cursor=cursor,
            mark=mark,
            opened_us=_microseconds(alert.event_time),
            end_s=self._settings.clip_max_s,
            fresh_s=self._monotonic_s(),
            reached_s=after_s(mark, first),
            late=after_s(mark, first) > -self._settings.pre_roll_s,
        )
        return None

    def _incident_closed(self, alert: Alert) -> None:
        clip = self._clips.get(alert.incident)
        if clip is None:
            return
        try:
            lasted_s = (_microseconds(alert.event_time) - clip.opened_us) / 1e6
        except WireError:
            lasted_s = 0.0
        clip.end_s = min(self._settings.clip_max_s, max(0.0, lasted_s) + self._settings.post_roll_s)

    def _go_on(self, incident: str) -> None:
        clip = self._clips[incident]
        if clip.reached_s >= clip.end_s:  # closed, when it was that long already
            self._finish(incident)
            return
        ended = clip.cursor.segment.ended
        now_s = self._monotonic_s()
        packets = clip.ring.read(clip.cursor, (now_s - HOLD_S) * 1e9)
        if packets:
            self._write(incident, packets)
        elif packets is None or (ended and not clip.cursor.more) or now_s - clip.fresh_s > STALL_S:
            self._finish(incident, cut=True)

    def _write(self, incident: str, packets: list[Kept]) -> None:
        """Write what belongs to the clip, and finish it with the first that does not."""
        clip = self._clips[incident]
        mine: list[Kept] = []
        over = cut = False
        for kept in packets:
            at_s = after_s(clip.mark, kept)
            cut = not -LEAP_BACK_S <= at_s - clip.reached_s <= LEAP_AHEAD_S
            over = at_s >= clip.end_s
            if over or cut:
                break
            clip.reached_s = max(clip.reached_s, at_s)
            mine.append(kept)
        clip.fresh_s = self._monotonic_s()
        try:
            clip.writer.write(mine)
        except (OSError, ClipError) as error:
            self._break_off(incident, error)
            return
        if over or cut:
            self._finish(incident, cut=cut)

    def _finish(self, incident: str, *, cut: bool = False) -> None:
        clip = self._clips[incident]
        try:
            clip.writer.close()
            self._store.finish(clip.partial)
        except (OSError, ClipError) as error:
            self._break_off(incident, error)
            return
        del self._clips[incident]
        self._done += 1
        self._cut += cut
        self._late += clip.late

    def _break_off(self, incident: str, error: Exception) -> None:
        """A clip that cannot be written any further is of no use: it has no index."""
        clip = self._clips.pop(incident)
        clip.writer.abort()
        self._store.discard(clip.partial)
        why: Missed = "disk" if isinstance(error, OSError) else "codec"
        with self._lock:
            self._missed["clip", why] += 1
        log.warning("clip broken off", why=why, incident=incident, error=str(error))


def _microseconds(text: str) -> int:
    """An alert's time as microseconds since the epoch; raises WireError."""
    try:
        moment = datetime.fromisoformat(text.removesuffix("Z") + "+00:00")
    except ValueError as error:
        raise WireError(f"time {text!r}: {error}") from None
    return (moment - _EPOCH) // timedelta(microseconds=1)
