"""The alerts that tell of an incident: opened, updated, closed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Literal

import msgspec
from msgspec import Struct

from sink.tracks import Finding, Track
from wire.alerts import Alert, Box, Evidence, FrameSize, Object, rfc3339
from wire.messages import DetectionRecord

Event = Literal["opened", "updated", "closed"]
Reason = Literal["rule_removed", "camera_removed", "state_lost"]
# Why an incident was closed by something else than its end.
REASONS: dict[Reason, str] = {
    "rule_removed": "its rule watches the camera no more",
    "camera_removed": "nobody watches the camera any more",
    "state_lost": "what was known of it is lost",
}
# (camera, incident, event time of its opening in microseconds) to the links of its snapshot and clip, if any
Links = Callable[[str, str, int], tuple[str | None, str | None]]


class Incident(Struct, array_like=True):
    """Something that a rule finds and found before; kept in Redis."""

    rule: str
    key: str  # what it is about, within its rule and camera
    label: str
    text: str
    began_us: int  # event time of its first frame
    seen_us: int  # ... of the newest frame that showed it
    id: str = ""  # empty while nothing was told of it: its cooldown or the camera's budget keeps it back
    opened_us: int = 0  # event time of the message that opened it
    told_us: int = 0  # ... of the newest message
    updates: int = 0
    closed: bool = False  # told; it stays for the merge window, so that what was momentary is not opened again
    track: int | None = None
    over_budget: bool = False  # counted as suppressed


def message_id(incident: str, event: Event, number: int) -> str:
    """The id of an incident's `number`-th message of a kind: 128 bits, in hexadecimal."""
    return hashlib.sha256(msgspec.json.encode([incident, event, number])).hexdigest()[:32]


def told(camera: str, incident: Incident, finding: Finding, event_us: int, record: DetectionRecord | None) -> Alert:
    """The message that opens an incident (`updates` is 0), or updates it."""
    event: Event = "updated" if incident.updates else "opened"
    best = finding.objects[0] if finding.objects else None
    alert = Alert(
        version=1,
        id=message_id(incident.id, event, incident.updates),
        incident=incident.id,
        event=event,
        camera=camera,
        rule=incident.rule,
        text=f"{finding.text} at {camera}",
        event_time=rfc3339(event_us),
        opened_time=rfc3339(incident.began_us),
        label=finding.label or None,
        score=best.score if best else None,
        track=best.id if best else None,
        box=Box(*best.box) if best else None,
        objects=[_object(one) for one in finding.objects],
        detail=finding.detail,
    )
    if record is None:
        return alert
    return msgspec.structs.replace(
        alert,
        frame=FrameSize(record.source_width, record.source_height),
        evidence=Evidence(max(1, finding.frames_matched), max(1, finding.frames_seen)),
        model=record.model,
        session=record.session,
        seq=record.seq,
        detection_ms=round((record.inference_end_ns - record.captured_ns) / 1e6, 3),
    )


def over(camera: str, incident: Incident) -> Alert:
    """The message that closes an incident: of the last time it was seen, whatever tells that it is over."""
    lasted_s = round((incident.seen_us - incident.began_us) / 1e6, 3)
    return Alert(
        version=1,
        id=message_id(incident.id, "closed", 0),
        incident=incident.id,
        event="closed",
        camera=camera,
        rule=incident.rule,
        text=f"{incident.text} at {camera}: over after {lasted_s:g} s",
        event_time=rfc3339(incident.seen_us),
        opened_time=rfc3339(incident.began_us),
        label=incident.label or None,
        track=incident.track,
        detail={"duration_s": lasted_s},
    )


def because(alert: Alert, reason: Reason) -> Alert:
    """An alert that closes an incident, with why."""
    text = f"{alert.text}; {REASONS[reason]}"
    return msgspec.structs.replace(alert, text=text, detail={**alert.detail, "reason": reason})


def over_since_unknown(opened: Alert, reason: Reason) -> Alert:
    """The message that closes an incident of which nothing is known but what opened it."""
    closed = Alert(
        version=1,
        id=message_id(opened.incident, "closed", 0),
        incident=opened.incident,
        event="closed",
        camera=opened.camera,
        rule=opened.rule,
        text=f"{opened.text}: over",
        event_time=opened.event_time,
        opened_time=opened.opened_time,
        label=opened.label,
        track=opened.track,
        snapshot=opened.snapshot,
        clip=opened.clip,
    )
    return because(closed, reason)


def _object(track: Track) -> Object:
    return Object(track.label, track.score, Box(*track.box), track.id)
