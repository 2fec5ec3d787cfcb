"""What an output says to Redis: give me alerts, this one is delivered, this one failed so often, put this one aside.

An output is a consumer group of the alerts stream. What was handed to it and is not acknowledged stays on the group's
list of pending entries, with the number of attempts, whatever dies; `resume` takes it up again. The one consumer of
the group has a fixed name: which process it is, the lease says.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import redis
import structlog

from sink.outputs.deadletters import deadletters_key, put_aside
from wire.alerts import ALERTS, Alert, from_json
from wire.messages import WireError
from wire.redis_link import Link
from wire.streams import VERSION, id_order, last_id

log = structlog.get_logger()

CONSUMER = "output"
# More than an output ever holds (runner.HELD_MOST) and has not acknowledged yet.
PENDING_MOST = 10_000


@dataclass
class Entry:
    """An alert on its way to the receiver."""

    id: bytes  # in the stream; its first part is when it was published (milliseconds since the epoch)
    alert: Alert
    text: bytes  # its JSON
    attempts: int = 0  # begun, as far as Redis knows
    due_s: float = 0.0  # no attempt before
    age_when_read_s: float = 0.0
    read_s: float = field(default_factory=time.monotonic)

    def age_s(self) -> float:
        """How old it was by Redis's clock when it was read, and the time since: no clock that is set makes it older."""
        return self.age_when_read_s + time.monotonic() - self.read_s


@dataclass
class ReaderCounts:
    """What the reader met."""

    malformed: int = 0  # not an alert, or of a version this build does not know
    trimmed: int = 0  # cut off by redis.alerts_maxlen before they were delivered
    buried: int = 0  # put aside as dead letters
    shed: int = 0  # dead letters that made room for newer ones


class AlertReader:
    """Each method raises redis.RedisError or OSError when Redis is away; then connect anew and `resume`."""

    def __init__(self, output: str, deadletters_maxlen: int) -> None:
        self._output = output
        self._group = f"output:{output}"
        self._deadletters_maxlen = deadletters_maxlen
        self._last: bytes | None = None
        self._done: list[bytes] = []
        self.waiting = 0  # alerts in the stream that were not read yet, as of the last `look`
        self.counts = ReaderCounts()

    def prepare(self, link: Link) -> None:
        """Make the group where it is not: from now on alerts are kept for the output, whoever delivers them."""
        self._make_group(link)

    def resume(self, link: Link, held: Collection[bytes]) -> list[Entry]:
        """Make the group where it is not; return what was handed out earlier and is neither done nor in `held`."""
        self._last = self._make_group(link)
        self.flush(link)
        pending = link.one("XPENDING", ALERTS, self._group, "-", "+", PENDING_MOST)
        attempts = {id_: count for id_, _, _, count in pending if id_ not in held}
        if not attempts:
            return []
        # Unlike reading it again, claiming counts: an alert that kills the process comes to its end too.
        claimed, clock = link.ask(("XCLAIM", ALERTS, self._group, CONSUMER, 0, *attempts), ("TIME",))
        found = {item[0]: item[1] for item in claimed if item and item[1] is not None}
        gone = [id_ for id_ in attempts if id_ not in found]
        self.counts.trimmed += len(gone)
        self._done += gone
        entries = self._entries(list(found.items()), clock)
        for entry in entries:
            entry.attempts = attempts[entry.id]
        return entries

    def read(self, link: Link, count: int, block_s: float) -> list[Entry]:
        """Up to `count` new alerts; waits up to `block_s` for the first, not at all for 0."""
        wait = ("BLOCK", link.block_ms(block_s)) if block_s > 0 else ()
        who = ("GROUP", self._group, CONSUMER)
        asked = ("XREADGROUP", *who, "COUNT", count, *wait, "STREAMS", ALERTS, ">")
        reply, clock = link.ask(asked, ("TIME",))
        items = reply[0][1] if reply else []
        if items:
            self._last = items[-1][0]
        return self._entries(items, clock)

    def look(self, link: Link) -> None:
        """Renew `waiting`, and count what the stream's length cut off before it was read."""
        info = _pairs(link.one("XINFO", "STREAM", ALERTS))
        groups = map(_pairs, link.one("XINFO", "GROUPS", ALERTS))
        group = next((one for one in groups if one[b"name"] == self._group.encode()), None)
        if group is None:
            return  # Redis has just lost it: the next `read` complains
        read, first, added = group.get(b"entries-read"), info.get(b"first-entry"), info.get(b"entries-added")
        if read is None or added is None:
            return  # Redis before 7 counts no entries; nor can any after an id in the middle
        self.waiting = max(0, added - read)
        if first is None or id_order(group[b"last-delivered-id"]) >= id_order(first[0]):
            return
        cut_off = added - info[b"length"] - read
        if cut_off > 0:
            position = (group[b"last-delivered-id"], "ENTRIESREAD", read + cut_off)
            link.one("XGROUP", "SETID", ALERTS, self._group, *position)
            self.counts.trimmed += cut_off
            self.waiting -= cut_off
            log.error("alerts lost: the stream is too short", output=self._output, alerts=cut_off)

    def done(self, id_: bytes) -> None:
        """This one needs nothing more; `flush` says so to Redis."""
        self._done.append(id_)

    def flush(self, link: Link) -> None:
        """Acknowledge what is done."""
        if self._done:
            link.one("XACK", ALERTS, self._group, *self._done)
            self._done = []

    def note_attempts(self, link: Link, entry: Entry) -> None:
        """Let the number of attempts outlive this process."""
        link.one("XCLAIM", ALERTS, self._group, CONSUMER, 0, entry.id, "RETRYCOUNT", entry.attempts, "JUSTID")

    def bury(self, link: Link, entry: Entry, reason: str) -> None:
        """Put it aside and acknowledge it, both or neither."""
        key = deadletters_key(self._output)
        letter = put_aside(self._output, entry.text, reason, entry.attempts, self._deadletters_maxlen)
        commands = (("XLEN", key), letter, ("XLEN", key), ("XACK", ALERTS, self._group, entry.id))
        *queued, done = link.send(("MULTI",), *commands, ("EXEC",))
        for reply in (*queued, done, *(done if isinstance(done, list) else ())):
            if isinstance(reply, redis.RedisError):
                raise reply
        before, _, after, _ = done
        self.counts.buried += 1
        self.counts.shed += before + 1 - after

    def _make_group(self, link: Link) -> bytes:
        """Returns the id that a group made now begins after.

        A new output begins with the next alert. Where Redis lost the group, it goes on after the last alert it read;
        where Redis lost the stream too, from the start of the new one.
        """
        newest = last_id(link, ALERTS)
        start = newest if self._last is None else self._last
        if id_order(start) > id_order(newest):
            self._last = start = b"0-0"
        (made,) = link.send(("XGROUP", "CREATE", ALERTS, self._group, start, "MKSTREAM"))
        if isinstance(made, redis.ResponseError) and not str(made).startswith("BUSYGROUP"):
            raise made
        return start

    def _entries(self, items: list[Any], clock: list[bytes]) -> list[Entry]:
        now_s = int(clock[0]) + int(clock[1]) / 1e6
        entries = []
        for id_, fields in items:
            values = dict(zip(fields[::2], fields[1::2], strict=False))
            try:
                if values.get(b"v") != VERSION:
                    raise WireError(f"entry of version {values.get(b'v')!r}; this build knows {VERSION!r}")
                text = values.get(b"d", b"")
                age_s = now_s - id_order(id_)[0] / 1000
                entries.append(Entry(id_, from_json(text), text, age_when_read_s=age_s))
            except WireError as error:
                log.warning("alert skipped", output=self._output, id=id_.decode(), reason=str(error))
                self.counts.malformed += 1
                self._done.append(id_)
        return entries


def _pairs(reply: list[Any]) -> dict[bytes, Any]:
    return dict(zip(reply[::2], reply[1::2], strict=False))
