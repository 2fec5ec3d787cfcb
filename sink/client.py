"""The subscriber library: every alert, in order, from where you were.

    from sink.client import alerts

    for id, alert in alerts(url, state="porch.id"):  # the one that `sparsecam up` logs
        print(alert.camera, alert.event, alert.text)

The stream is the truth: what came while this program, or Redis, was down is delivered when both are back, as long as
the stream still holds it (`redis.alerts_maxlen`). An alert counts as handled when the loop asks for the next one. A
program that dies before that gets it again: `alert.id` tells that it is the same. docs/subscribe.md has the same for
other languages.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import redis
import structlog

from wire.alerts import ALERTS, Alert, checked_id, follow_alerts
from wire.logs import redact
from wire.redis_link import Link, RedisAway, connect
from wire.redis_url import check_url
from wire.settings import RedisSettings
from wire.streams import id_order, last_id, oldest_id

__all__ = ["Alert", "Delivered", "StateError", "alerts", "async_alerts"]

log = structlog.get_logger()

# Between two attempts to reach a Redis that has not answered yet.
RETRY_S = 0.25
# The longest id: two numbers of 64 bits and a dash. A longer file is something else.
LONGEST_ID = 41


class StateError(ValueError):
    """The state file cannot be used: says which, why, and what to do."""


class Delivered(NamedTuple):
    """An alert, and its place in the stream: give it as `since` to go on after it."""

    id: str
    alert: Alert


def alerts(
    url: str,
    since: str | None = None,
    *,
    state: str | Path | None = None,
    wait_s: float = 0.0,
    timeout_s: float = 2.0,
    stop: threading.Event | None = None,
) -> Generator[Delivered, None, None]:
    """Yield each alert once, oldest first, and wait for new ones until `stop` is set.

    `url` is redis://, rediss:// or unix://. `since` is the id to go on after; "0" begins with the oldest that the
    stream holds, None with the next one. `state` names a file that remembers the last id handled: where it exists it
    wins over `since`. One program a file. Redis may go away and come back at any time after it has answered first, for
    which `wait_s` seconds are waited; `timeout_s` limits connecting and each reply.

    Raises RedisAway when Redis does not answer at first, RedisUrlError, WireError for a `since` that is no id, and
    StateError for a file that holds something else or cannot be written.
    """
    stop = stop or threading.Event()
    settings = RedisSettings.model_validate({"url": check_url(url), "timeout_s": timeout_s})

    def connection() -> redis.Redis:
        return connect(settings)

    file = None if state is None else Path(state)
    last = _saved(file) or since
    start = _start(connection, None if last is None else checked_id(last), time.monotonic() + wait_s, stop)
    if start is None:
        return
    if file is not None:
        # Also before the first alert: a program that dies while it waits must not begin with a later one.
        _save(file, start)
    for id_, alert in follow_alerts(connection, start, stop):
        yield Delivered(id_, alert)
        if file is not None:
            _save(file, id_)


async def async_alerts(
    url: str,
    since: str | None = None,
    *,
    state: str | Path | None = None,
    wait_s: float = 0.0,
    timeout_s: float = 2.0,
) -> AsyncGenerator[Delivered, None]:
    """As `alerts`, for asyncio: `async for id, alert in async_alerts(url, state="porch.id")`.

    A thread of its own waits for Redis, so the event loop never does. Cancelling the task, or closing the iterator,
    ends both.
    """
    stop = threading.Event()
    source = alerts(url, since, state=state, wait_s=wait_s, timeout_s=timeout_s, stop=stop)
    thread = ThreadPoolExecutor(1, thread_name_prefix="alerts")
    try:
        while (delivered := await asyncio.get_running_loop().run_in_executor(thread, next, source, None)) is not None:
            yield delivered
    finally:
        stop.set()
        # After the read that may be under way; an alert that it still brings was not handled, and is not saved.
        thread.submit(source.close)
        thread.shutdown(wait=False)


def _start(
    connection: Callable[[], redis.Redis], wanted: bytes | None, until_s: float, stop: threading.Event
) -> str | None:
    """The id to read on from; None when stopped before Redis answered."""
    while not stop.is_set():
        try:
            link = Link(connection())
            try:
                newest, oldest = last_id(link, ALERTS), oldest_id(link, ALERTS)
            finally:
                link.close()
        except (RedisAway, redis.RedisError, OSError) as error:
            if time.monotonic() >= until_s:
                raise RedisAway(redact(str(error))) from None
            stop.wait(RETRY_S)
            continue
        return _place(wanted, newest, oldest).decode()
    return None


def _place(wanted: bytes | None, newest: bytes, oldest: bytes | None) -> bytes:
    if wanted is None:
        return newest
    if id_order(wanted) > id_order(newest):
        # Redis lost its data and counts anew, perhaps from an earlier time: what it has now is all new to us.
        log.warning("redis is behind this subscriber: beginning with its oldest alert", last=wanted.decode())
        return b"0-0"
    if oldest is not None and (0, 0) < id_order(wanted) < id_order(oldest):
        # Ids have gaps, so whether anything came between the two cannot be known.
        log.warning("alerts may have been cut off unread", last=wanted.decode(), oldest=oldest.decode())
    return wanted


def _saved(file: Path | None) -> str | None:
    """The id in a state file; None where there is none yet. Raises StateError."""
    if file is None:
        return None
    try:
        with file.open("rb") as opened:
            text = opened.read(LONGEST_ID + 2).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"state file {file}: cannot be read: {error.strerror}") from error
    if not text:
        # A disk that lost its power in mid-write may leave it empty. Twice is better than never.
        log.warning("state file is empty: beginning with the oldest alert", file=str(file))
        return "0"
    try:
        return checked_id(text).decode()
    except ValueError:
        raise StateError(
            f"state file {file}: expected the id of an alert, such as 1700000000000-0, and it holds something else. "
            "Name another file, or delete this one to begin anew."
        ) from None


def _save(file: Path, id_: str) -> None:
    """Replace the file in one step, so that a reader finds the old id or the new one. Raises StateError."""
    fresh = file.with_name(f"{file.name}.new")
    try:
        fresh.write_text(f"{id_}\n")
        fresh.replace(file)
    except OSError as error:
        raise StateError(f"state file {file}: cannot be written: {error.strerror}") from error
