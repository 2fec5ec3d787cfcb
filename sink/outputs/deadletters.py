"""Alerts that an output gave up: put aside with the reason, to be looked at, delivered after all, or dropped.

Each output has a stream `sparsecam:deadletters:NAME`, one entry an alert: `v` = "1", `d` = the alert's JSON, `reason`,
`attempts`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import structlog
from msgspec import Struct

from wire.alerts import Alert, from_json
from wire.messages import WireError
from wire.redis_link import Link
from wire.streams import VERSION, id_order

log = structlog.get_logger()

# Of a reason, which may quote a receiver's answer: enough for a person to see what is wrong.
REASON_CHARACTERS = 300
# Entries in one read: bounds memory, since an alert with many objects has some kilobytes.
PAGE = 200


class DeadLetter(Struct, frozen=True):
    """One alert put aside."""

    id: str  # of the entry; its first part is the time it was put aside (milliseconds since the epoch)
    reason: str
    attempts: int
    alert: Alert
    text: bytes  # the alert's JSON as it was published


def deadletters_key(output: str) -> str:
    """The stream of an output's dead letters."""
    return f"sparsecam:deadletters:{output}"


def put_aside(output: str, text: bytes, reason: str, attempts: int, maxlen: int) -> tuple[Any, ...]:
    """The command that adds a dead letter; the oldest goes when there are more than `maxlen`."""
    fields = ("v", VERSION, "d", text, "reason", reason[:REASON_CHARACTERS], "attempts", attempts)
    return ("XADD", deadletters_key(output), "MAXLEN", "=", maxlen, "*", *fields)


def count_deadletters(link: Link, output: str) -> int:
    """How many there are; raises redis.RedisError."""
    return int(link.one("XLEN", deadletters_key(output)))


def deadletters(link: Link, output: str) -> Iterator[DeadLetter]:
    """Those there are now, the oldest first; one that this build cannot read is skipped, logged. Raises RedisError."""
    newest = link.one("XREVRANGE", deadletters_key(output), "+", "-", "COUNT", 1)
    start = b"-"
    while newest:
        page = link.one("XRANGE", deadletters_key(output), start, newest[0][0], "COUNT", PAGE)
        for id_, fields in page:
            letter = _letter(id_, dict(zip(fields[::2], fields[1::2], strict=False)))
            if letter is not None:
                yield letter
        if len(page) < PAGE:
            return
        milliseconds, number = id_order(page[-1][0])
        start = f"{milliseconds}-{number + 1}".encode()


def drop_deadletters(link: Link, output: str, ids: list[str]) -> int:
    """Delete these; returns how many there were. Raises redis.RedisError (a malformed id among others)."""
    return int(link.one("XDEL", deadletters_key(output), *ids)) if ids else 0


def _letter(id_: bytes, fields: dict[bytes, bytes]) -> DeadLetter | None:
    try:
        if fields.get(b"v") != VERSION:
            raise WireError(f"entry of version {fields.get(b'v')!r}; this build knows {VERSION!r}")
        text = fields.get(b"d", b"")
        reason = fields.get(b"reason", b"").decode(errors="replace")
        return DeadLetter(id_.decode(), reason, int(fields.get(b"attempts", b"0")), from_json(text), text)
    except (WireError, ValueError) as error:
        log.warning("dead letter skipped", id=id_.decode(), reason=str(error))
        return None
