"""`sparsecam alerts`: print the alerts of a Redis, past and present."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any, cast

import msgspec
import redis
import typer

from services.config import Config
from services.process import catch_signals
from wire.alerts import ALERTS, Alert, follow_alerts, stored_alerts
from wire.logs import setup_logs
from wire.redis_link import Link, RedisAway, connect

LOWEST_ID = "0-0"
# More alerts than fit into a millisecond; the second half of a Redis stream id has 64 bits.
HIGHEST_SEQUENCE = 2**63 - 1


def alerts(config: Config, *, since: str | None, last: int, follow: bool, count: int | None, as_json: bool) -> int:
    """Print until Ctrl-C, or until `count` or the end of what is stored; raises RedisAway, WireError."""
    stop = threading.Event()
    catch_signals(stop)
    setup_logs("warning")  # "redis away" and the like go to stderr

    def connection() -> redis.Redis:
        return connect(config.redis, config.redis_url)

    newest = _newest_id(connection, config)
    if since is None and (last or not follow):
        since = _id_before_last(connection, last) if last else LOWEST_ID
    if not follow and _order(since or newest) >= _order(newest):
        return 0
    link = Link(connection())
    found = follow_alerts(connection, since, stop) if follow else stored_alerts(link, since or newest, newest)
    try:
        for printed, (stream_id, alert) in enumerate(found, start=1):
            typer.echo(_json_line(stream_id, alert) if as_json else line(alert, stream_id))
            if printed == count or stop.is_set():
                break
    finally:
        link.close()
    return 0


# An incident that is told so long after it began was held back, as by a cooldown, and not only confirmed.
HELD_BACK_S = 1.0


def line(alert: Alert, stream_id: str = "") -> str:
    """One alert for a person; the time is local."""
    when = datetime.fromisoformat(alert.event_time.replace("Z", "+00:00")).astimezone()
    parts = [f"{when:%Y-%m-%d %H:%M:%S}.{when.microsecond // 1000:03d}", alert.camera, alert.event, alert.text]
    if alert.label is not None and alert.score is not None:
        parts.append(f"{alert.label} {alert.score:.0%}")
    opened = datetime.fromisoformat(alert.opened_time.replace("Z", "+00:00")).astimezone()
    if alert.event == "opened" and (when - opened).total_seconds() > HELD_BACK_S:
        parts.append(f"since {opened:%H:%M:%S}.{opened.microsecond // 1000:03d}")
    parts.append(f"rule {alert.rule}")
    if alert.evidence is not None:
        parts.append(f"seen in {alert.evidence.frames_matched} of {alert.evidence.frames_seen} frames")
    if (box := alert.box) is not None:
        parts.append(f"at {box.left:.0f},{box.top:.0f}-{box.right:.0f},{box.bottom:.0f}")
    text = "  ".join(parts)
    return f"{text}  id {stream_id}" if stream_id else text


def _json_line(stream_id: str, alert: Alert) -> str:
    return msgspec.json.encode({**msgspec.to_builtins(alert), "stream_id": stream_id}).decode()


def _newest_id(connection: Callable[[], redis.Redis], config: Config) -> str:
    try:
        client = connection()
    except RedisAway as error:
        if config.embeds_valkey:
            raise RedisAway(f"{error}\nThe embedded Valkey runs while `sparsecam up` does; start that first.") from None
        raise
    try:
        newest = cast(list[tuple[bytes, Any]], client.xrevrange(ALERTS, count=1))
    finally:
        client.close()
    return newest[0][0].decode() if newest else LOWEST_ID


def _id_before_last(connection: Callable[[], redis.Redis], last: int) -> str:
    """The id after which exactly the newest `last` alerts come."""
    client = connection()
    try:
        entries = cast(list[tuple[bytes, Any]], client.xrevrange(ALERTS, count=last))
    finally:
        client.close()
    if not entries:
        return LOWEST_ID
    milliseconds, sequence = _order(entries[-1][0].decode())
    if sequence > 0:
        return f"{milliseconds}-{sequence - 1}"
    return f"{max(0, milliseconds - 1)}-{HIGHEST_SEQUENCE}"


def _order(stream_id: str) -> tuple[int, int]:
    """A stream id as Redis compares it. A malformed one counts as the lowest; follow_alerts refuses it in words."""
    milliseconds, _, sequence = stream_id.partition("-")
    if not milliseconds.isdecimal() or not (sequence or "0").isdecimal():
        return 0, 0
    return int(milliseconds), int(sequence or 0)
