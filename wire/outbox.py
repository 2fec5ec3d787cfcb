"""The outbox: detections wait here while Redis is away, and one thread publishes them."""

from __future__ import annotations

import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import redis
import structlog

from wire.logs import redact
from wire.messages import DetectionRecord
from wire.redis_link import Link, RedisAway, trouble_name
from wire.redis_url import RedisUrlError
from wire.room import Room, is_full
from wire.streams import PUBLISH_ONCE, publish_once

log = structlog.get_logger()

# Records in one write. From 64 on a record gets hardly cheaper, and what is on its way cannot be shed.
BATCH = 128
# Attempts to reach Redis: the first at once, then doubling to this. Short, because the sink waits only about a second
# for the slower of two workers that come back (reorder_timeout_s); two attempts a second cost next to nothing.
RETRY_FIRST_S = 0.02
RETRY_MOST_S = 0.5

# How long a record that was shed is told of as trouble: it takes a look at health every ten seconds to see it.
SHED_TOLD_S = 10.0

# Refusals that concern one key only; the record will never get in and must not hold up the others. All other refusals
# (no memory and nothing to cut, read-only replica, no permission...) pass or are mended, and the record waits.
LASTING = ("WRONGTYPE",)

Callback = Callable[[list[DetectionRecord]], None]


@dataclass(frozen=True)
class OutboxStats:
    """published + shed + refused + held = everything that was ever put."""

    published: int  # in Redis for certain, those already there included
    repeated: int  # of these: already there (sent twice, or by two workers)
    shed: int  # dropped as the oldest while full, or left at close
    refused: int  # dropped because the camera's key in Redis is not a stream
    held: int  # waiting or on their way
    reconnects: int  # connections made anew after a loss
    cut: int  # older detections that were removed early, because the memory of Redis was full
    trouble: str  # why records do not get into Redis, or were shed lately; empty when all is well


class _Waiting(NamedTuple):
    record: DetectionRecord
    command: tuple[Any, ...]


class Outbox:
    """Holds up to `capacity` records and publishes them in order, each once (streams.publish_once).

    `put` never blocks. While Redis is away the oldest record makes room for a new one. A connection that is lost in the
    middle leaves open what arrived; everything unanswered is sent again, which publish-once makes harmless.
    Each record is told once, in a list to `on_published` or `on_shed`, from the publishing thread or, for what a
    `put` pushes out, from its caller. A record that arrived while its answer was lost may thus be told as shed.
    """

    def __init__(
        self,
        connect: Callable[[], redis.Redis],
        capacity: int,
        *,
        maxlen: int,
        on_published: Callback | None = None,
        on_shed: Callback | None = None,
    ) -> None:
        self._connect = connect
        self._capacity = capacity
        self._maxlen = maxlen
        self._on_published = on_published
        self._on_shed = on_shed
        self._changed = threading.Condition()
        self._queue: deque[_Waiting] = deque()
        self._sending = 0  # records at the head of the queue that are on their way
        self._due = 0  # records at the head of the queue that wait for no others
        self._deadline: float | None = None  # set by close: when to give up
        self._ended = False
        self._link: Link | None = None
        self._room = Room()
        self._trouble = ""
        self._shed_at_s = -math.inf
        self._published = self._repeated = self._shed = self._refused = self._reconnects = 0
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def put(self, record: DetectionRecord, *, hurry: bool = True) -> None:
        """Take a record; never blocks. Raises WireError for a camera name or a number that cannot be written.

        Without `hurry` it waits for the next one that has it: waking the publisher costs several times what a record
        does, so a busy worker wakes it for a few records at once.
        """
        waiting = _Waiting(record, publish_once(record, self._maxlen))
        pushed_out: DetectionRecord | None = None
        with self._changed:
            if self._deadline is not None:
                pushed_out = record
            else:
                self._queue.append(waiting)
                if len(self._queue) > self._capacity:
                    # What is on its way may arrive: the oldest that is not goes, be it this one.
                    pushed_out = self._queue[self._sending].record
                    del self._queue[self._sending]
                    self._due = min(self._due, len(self._queue))
                if hurry:
                    self._hurry()
            if pushed_out is not None:
                self._shed += 1
                self._shed_at_s = time.monotonic()
        if pushed_out is not None:
            self._tell(self._on_shed, [pushed_out])

    def hurry(self) -> None:
        """Publish what waits for others."""
        with self._changed:
            self._hurry()

    def _hurry(self) -> None:
        self._due = len(self._queue)
        self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until nothing is held; False when that took longer."""
        with self._changed:
            self._hurry()
            return self._changed.wait_for(lambda: not self._queue, timeout_s)

    def close(self, timeout_s: float) -> OutboxStats:
        """Publish what can be published within `timeout_s`, shed the rest, and end the thread.

        May take up to the socket time limit longer when Redis hangs.
        """
        with self._changed:
            if self._deadline is None:
                self._deadline = time.monotonic() + timeout_s
            self._changed.notify_all()
        self._thread.join()
        return self.stats()

    def stats(self) -> OutboxStats:
        """The counts now."""
        with self._changed:
            return OutboxStats(
                published=self._published,
                repeated=self._repeated,
                shed=self._shed,
                refused=self._refused,
                held=len(self._queue),
                reconnects=self._reconnects,
                cut=self._room.cut,
                trouble=self._trouble or self._shedding(),
            )

    def _shedding(self) -> str:
        if time.monotonic() - self._shed_at_s > SHED_TOLD_S:
            return ""
        return f"more records come than Redis takes: of {self._capacity} waiting the oldest were shed (redis.outbox)"

    def _run(self) -> None:
        failures = 0
        while batch := self._take():
            try:
                replies = self._send(batch, failures)
            except (redis.RedisError, RedisAway, RedisUrlError, OSError) as error:
                failures += 1
                name, reason = trouble_name(error), redact(str(error))
                if failures == 1:
                    log.warning(name, reason=reason, held=len(self._queue))
                self._trouble = f"{name}: {reason}"
                self._drop_link()
                self._back_off(failures)
                continue
            if failures:
                log.info("redis back", attempts=failures, held=len(self._queue))
                failures = 0
                self._trouble = ""
            self._settle(batch, replies)
        self._drop_link()
        self._shed_rest()

    def _take(self) -> list[_Waiting]:
        """Wait for records and mark them as on their way; nothing when closed and empty, or out of time."""
        with self._changed:
            self._changed.wait_for(lambda: self._due or self._deadline is not None)
            if self._deadline is not None and time.monotonic() >= self._deadline:
                return []
            self._sending = min(len(self._queue), BATCH)
            return list(islice(self._queue, self._sending))

    def _send(self, batch: list[_Waiting], failures: int) -> list[Any]:
        """The replies to the batch; raises what makes all of it worth another attempt."""
        if self._link is None:
            self._link = Link(self._connect())
            (loaded,) = self._link.send(("SCRIPT", "LOAD", PUBLISH_ONCE.source))
            if isinstance(loaded, redis.ResponseError):
                raise loaded
            self._reconnects += failures > 0
        commands = [waiting.command for waiting in batch]
        replies = self._link.send(*commands)
        if any(isinstance(reply, redis.exceptions.NoScriptError) for reply in replies):
            # SCRIPT FLUSH, or a failover behind our back
            replies = self._link.send(("SCRIPT", "LOAD", PUBLISH_ONCE.source), *commands)[1:]
        # Once an attempt: what a reader has on its way fills the memory too, and passes by itself.
        if any(map(is_full, replies)) and self._room.make(self._link, (one.record.camera for one in batch)):
            replies = self._link.send(*commands)
        for reply in replies:
            if isinstance(reply, redis.ResponseError) and not str(reply).startswith(LASTING):
                raise reply
        return replies

    def _settle(self, batch: list[_Waiting], replies: list[Any]) -> None:
        # First the callbacks, while the records still count as held: who waits in flush finds them done.
        refused = []
        published = []
        for (record, _), reply in zip(batch, replies, strict=True):
            if isinstance(reply, redis.ResponseError):
                refused.append(record)
                log.error("detections refused", camera=record.camera, seq=record.seq, reason=str(reply))
            else:
                published.append(record)
        self._tell(self._on_published, published)
        self._tell(self._on_shed, refused)
        with self._changed:
            for _ in batch:
                self._queue.popleft()
            self._sending = 0
            self._due = max(0, self._due - len(batch))
            self._refused += len(refused)
            self._published += len(published)
            self._repeated += sum(reply is None for reply in replies)
            self._changed.notify_all()

    def _back_off(self, failures: int) -> None:
        """Wait before the next attempt, unless closing; meanwhile nothing is on its way and all may be shed."""
        longest = min(RETRY_FIRST_S * 2 ** min(failures, 10), RETRY_MOST_S) if failures > 1 else 0.0
        # Random, so that many workers do not come back in step; not a secret.
        wait_s = longest * random.uniform(0.5, 1.0)  # noqa: S311
        with self._changed:
            self._sending = 0
            until = time.monotonic() + wait_s
            while (now := time.monotonic()) < until:
                if self._deadline is not None and now >= self._deadline:
                    return
                self._changed.wait(min(until, self._deadline or until) - now)

    def _drop_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def _shed_rest(self) -> None:
        with self._changed:
            rest = list(self._queue)
            self._queue.clear()
            self._sending = self._due = 0
            self._shed += len(rest)
        self._tell(self._on_shed, [record for record, _ in rest])
        with self._changed:
            self._changed.notify_all()

    @staticmethod
    def _tell(callback: Callback | None, records: list[DetectionRecord]) -> None:
        if callback is None or not records:
            return
        try:
            callback(records)
        except Exception:  # a fault in the caller's callback must not end publishing
            log.exception("outbox callback failed", records=len(records))
