"""The public alert: its type, its JSON, its JSON Schema, and following the alerts of a Redis.

An alert is one entry of the stream `sparsecam:alerts` (`v` = "1", `d` = the JSON) and one message of the pub/sub
channel of the same name (the JSON alone). The stream comes first: whoever hears of an alert can also read it again.
Which incidents are open is written with it (wire/open_incidents.py).
`python -m wire.alerts > docs/alert.schema.json` writes the schema.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Annotated, Any, Literal

import msgspec
import redis
import structlog
from msgspec import Meta, Struct

from wire.logs import redact
from wire.messages import MALFORMED, WireError
from wire.redis_link import Link, RedisAway
from wire.streams import VERSION, Script, id_order, last_id

log = structlog.get_logger()

ALERTS = "sparsecam:alerts"
OPEN_INCIDENTS = f"sparsecam:open:{{{ALERTS}}}"
# How long an alert's id is remembered, so that a sink that died before it could say "done" does not send it again. What
# it had not finished it takes up at its next start; that may be the next morning.
ALERT_SEEN_TTL_S = 86_400
# How long one read of the stream may wait: how soon `stop` is heard.
FOLLOW_WAIT_S = 0.25
FOLLOW_RETRY_S = 0.25
FOLLOW_COUNT = 256

LAST_EVENT_US = 253_402_300_799_999_999  # the end of the year 9999, the last that RFC 3339 can write

_TIME = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$"
Pixels = Annotated[float, Meta(description="Pixels of the source picture.")]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0)]


class Box(Struct, frozen=True):
    """Where the object is, in pixels of the source picture; the origin is its left upper corner."""

    left: Pixels
    top: Pixels
    right: Pixels
    bottom: Pixels


class FrameSize(Struct, frozen=True):
    """The source picture's size."""

    width: Annotated[int, Meta(ge=1, description="Pixels.")]
    height: Annotated[int, Meta(ge=1, description="Pixels.")]


class Evidence(Struct, frozen=True):
    """Why the rule believed it."""

    frames_matched: Annotated[int, Meta(ge=1, description="Frames of the window that showed the label.")]
    frames_seen: Annotated[int, Meta(ge=1, description="Frames in the window when the alert was raised.")]


class Object(Struct, frozen=True):
    """An object in the frame that the alert is about."""

    label: Annotated[str, Meta(description="Its class.")]
    score: Annotated[float, Meta(ge=0, le=1, description="The model's confidence in this frame.")]
    box: Box
    track: Annotated[int, Meta(ge=0, description="Its id: the same from frame to frame of this camera.")]


class Alert(Struct, frozen=True):
    """Something has begun, goes on or is over in a camera's picture, or with a camera itself.

    What is null does not apply: a camera that is down shows no object.
    """

    version: Annotated[Literal[1], Meta(description="Version of this form. New fields may come without a new one.")]
    id: Annotated[str, Meta(description="The same for the same message, however often it is delivered.")]
    incident: Annotated[str, Meta(description="The same from the opening of an incident to its close.")]
    event: Annotated[
        Literal["opened", "updated", "closed"],
        Meta(
            description="opened: it begins. updated: it goes on. closed: it is over, for as long as the merge window."
        ),
    ]
    camera: Annotated[str, Meta(description="Name of the camera in the configuration.")]
    rule: Annotated[
        str,
        Meta(
            description="Name of the rule in the configuration; of the system's own: system.camera_down, "
            "system.picture_frozen, system.detector_slow, system.suppressed."
        ),
    ]
    text: Annotated[str, Meta(description="One line for people.")]
    event_time: Annotated[
        str,
        Meta(
            description="When the frame of this message was taken: RFC 3339, UTC, microseconds.",
            pattern=_TIME,
            extra_json_schema={"format": "date-time"},
        ),
    ]
    opened_time: Annotated[
        str,
        Meta(
            description="When the incident began: RFC 3339, UTC, microseconds.",
            pattern=_TIME,
            extra_json_schema={"format": "date-time"},
        ),
    ]
    label: Annotated[str | None, Meta(description="Class that the incident is about.")] = None
    score: Annotated[Share | None, Meta(description="The model's confidence in the first of `objects`.")] = None
    track: Annotated[Count | None, Meta(description="Id of the first of `objects`.")] = None
    box: Annotated[Box | None, Meta(description="Box of the first of `objects`.")] = None
    objects: Annotated[list[Object], Meta(description="What raised it, the best first.")] = []
    detail: Annotated[
        dict[str, str | float],
        Meta(
            description="Of the rule's kind: zone, line, direction, count, dwell_s, speed_kmh... `reason` where an "
            "incident was closed before its end."
        ),
    ] = {}
    suppressed: Annotated[
        int, Meta(ge=0, description="Incidents that the camera's budget kept back (system.suppressed).")
    ] = 0
    frame: Annotated[FrameSize | None, Meta(description="Size of the source picture.")] = None
    evidence: Annotated[Evidence | None, Meta(description="What confirmed it.")] = None
    model: Annotated[str | None, Meta(description="The model that saw it.")] = None
    session: Annotated[str | None, Meta(description="The run of the camera's reader that the frame belongs to.")] = None
    seq: Annotated[Count | None, Meta(description="Number of the frame in its session.")] = None
    snapshot: Annotated[
        str | None, Meta(description="Link to the picture of the frame that opened the incident; it follows the alert.")
    ] = None
    clip: Annotated[
        str | None, Meta(description="Link to the incident's clip; it is complete after its post-roll.")
    ] = None
    detection_ms: Annotated[
        float | None,
        Meta(
            description="Milliseconds from capture (of a camera on another host: from the frame's arrival at the "
            "broker) to the end of inference."
        ),
    ] = None
    latency_ms: Annotated[
        float | None,
        Meta(
            description="Milliseconds from capture (as in detection_ms) to this alert; null when the sink runs on "
            "another host."
        ),
    ] = None


_decoder = msgspec.json.Decoder(Alert)
_encoder = msgspec.json.Encoder()


def alert_id(camera: str, rule: str, label: str, session: str, seq: int) -> str:
    """The id of a finding: 128 bits, in hexadecimal."""
    # A list in JSON, so that no two different sets of names run together into one text.
    text = msgspec.json.encode([camera, rule, label, session, seq])
    return hashlib.sha256(text).hexdigest()[:32]


def rfc3339(event_us: int) -> str:
    """Microseconds since the epoch as RFC 3339 in UTC; raises WireError outside the years 1970 to 9999."""
    if not 0 <= event_us <= LAST_EVENT_US:
        raise WireError(f"event time {event_us} us: expected 0 to {LAST_EVENT_US} (the years 1970 to 9999)")
    seconds, microseconds = divmod(event_us, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%S}.{microseconds:06d}Z"


def to_json(alert: Alert) -> bytes:
    """The alert as users read it."""
    return _encoder.encode(alert)


def from_json(text: bytes) -> Alert:
    """An alert from its JSON; raises WireError naming what is wrong with it."""
    try:
        return _decoder.decode(text)
    except MALFORMED as error:
        raise WireError(f"not an alert of version 1: {error}") from error


# As in PUBLISH_ONCE the mark comes last, and what may be done twice comes first. An incident is known by the alert that
# opened it; where Redis lost that one, by the next. What is over is open no more also when that was told already: by a
# build that did not keep this hash. All keys carry the same hash tag: the stream's whole name.
ALERT_ONCE = Script("""
if ARGV[5] == 'closed' then redis.call('HDEL', KEYS[3], ARGV[6]) end
if redis.call('EXISTS', KEYS[2]) == 1 then return false end
if ARGV[5] ~= 'closed' then redis.call('HSETNX', KEYS[3], ARGV[6], ARGV[4]) end
local id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'v', ARGV[3], 'd', ARGV[4])
redis.call('PUBLISH', KEYS[1], ARGV[4])
redis.call('SET', KEYS[2], id, 'EX', ARGV[2])
return id
""")


def alert_once(alert: Alert, maxlen: int) -> tuple[Any, ...]:
    """The command that adds an alert to the stream and publishes it, unless that was done already.

    The reply is the entry's id, or nil for an alert that was there. The whole script goes along: alerts are few, and
    inside a transaction there is no second try for a server that does not know the script.
    """
    keys = (ALERTS, f"sparsecam:seen:{{{ALERTS}}}:{alert.id}", OPEN_INCIDENTS)
    incident = msgspec.json.encode([alert.camera, alert.incident])
    stored = (maxlen, ALERT_SEEN_TTL_S, VERSION, to_json(alert), alert.event, incident)
    return ("EVAL", ALERT_ONCE.source, len(keys), *keys, *stored)


def follow_alerts(
    connect: Callable[[], redis.Redis], since_id: str | None, stop: threading.Event
) -> Iterator[tuple[str, Alert]]:
    """Yield (stream id, alert): those after `since_id` that the stream still holds, then each as it comes.

    None begins with the next alert; "0" with the oldest kept. No alert is left out or told twice on the way from the
    past to the present, nor when Redis goes away and comes back. Ends when `stop` is set. Raises RedisAway,
    RedisUrlError or (a bad id) WireError only before the first answer. An entry of another version is skipped, logged.
    """
    checked = None if since_id is None else checked_id(since_id)
    link: Link | None = Link(connect())
    try:
        assert link is not None
        last = checked or last_id(link, ALERTS)
        while not stop.is_set():
            try:
                if link is None:
                    link = Link(connect())
                    # A Redis that lost its newest entries counts on from an older one.
                    last = min(last, last_id(link, ALERTS), key=id_order)
                wait = ("COUNT", FOLLOW_COUNT, "BLOCK", link.block_ms(FOLLOW_WAIT_S))
                reply = link.one("XREAD", *wait, "STREAMS", ALERTS, last)
            except (redis.RedisError, RedisAway, OSError) as error:
                if link is not None:
                    log.warning("redis away", reason=redact(str(error)))
                    link.close()
                    link = None
                stop.wait(FOLLOW_RETRY_S)
                continue
            for _, items in reply or ():
                for id_, fields in items:
                    last = id_
                    alert = _alert_of(id_, fields)
                    if alert is not None:
                        yield id_.decode(), alert
    finally:
        if link is not None:
            link.close()


def stored_alerts(link: Link, since_id: str, until_id: str) -> Iterator[tuple[str, Alert]]:
    """Yield (stream id, alert) of those after `since_id` up to `until_id`, as `follow_alerts` does; then it ends."""
    last = checked_id(since_id)
    while items := link.one("XRANGE", ALERTS, b"(" + last, checked_id(until_id), "COUNT", FOLLOW_COUNT):
        for id_, fields in items:
            last = id_
            alert = _alert_of(id_, fields)
            if alert is not None:
                yield id_.decode(), alert


def checked_id(text: str) -> bytes:
    """The id of a stream entry as Redis takes it; raises WireError for anything else."""
    if not re.fullmatch(r"[0-9]{1,19}(-[0-9]{1,19})?", text):
        raise WireError(f"alert id {text!r}: expected the id of a stream entry, such as 1700000000000-0")
    return text.encode()


def _alert_of(id_: bytes, fields: list[bytes]) -> Alert | None:
    values = dict(zip(fields[::2], fields[1::2], strict=False))
    try:
        if values.get(b"v") != VERSION:
            raise WireError(f"entry of version {values.get(b'v')!r}; this build knows {VERSION!r}")
        return from_json(values.get(b"d", b""))
    except WireError as error:
        log.warning("alert skipped", id=id_.decode(), reason=str(error))
        return None


def alert_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of Alert."""
    schema = msgspec.json.schema(Alert)
    for definition in schema["$defs"].values():
        if "description" in definition:  # a docstring, which msgspec before 0.23 takes with its indentation
            definition["description"] = inspect.cleandoc(definition["description"])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:sparsecam:alert:1",
        "title": "Sparsecam alert",
        "description": "An entry of the Redis stream sparsecam:alerts, and a message of the channel of that name.",
        **schema,
    }


def schema_text() -> str:
    """docs/alert.schema.json as it must be."""
    return msgspec.json.format(msgspec.json.encode(alert_schema()), indent=2).decode() + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
