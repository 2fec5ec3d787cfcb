"""Which rules are disarmed on which cameras at run time: the hash `sparsecam:disarmed`.

A field is the JSON list [camera, rule], its value the server's time (microseconds) at which it was disarmed. What is
not there is armed, as far as its settings and schedule say. Redis keeps it, so it outlives every process.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from wire.messages import MALFORMED

DISARMED = "sparsecam:disarmed"

Pair = tuple[str, str]  # camera, rule

# What is disarmed already keeps its time. Replies with how many were not.
_DISARM = """
local at, new = redis.call('TIME'), 0
for _, pair in ipairs(ARGV) do
  new = new + redis.call('HSETNX', KEYS[1], pair, string.format('%.0f', at[1] * 1000000 + at[2]))
end
return new
"""

_decoder = msgspec.json.Decoder(Pair)


def disarm(pairs: Iterable[Pair]) -> tuple[Any, ...]:
    """The command that disarms them (at least one); its reply is how many were armed."""
    return ("EVAL", _DISARM, 1, DISARMED, *map(msgspec.json.encode, pairs))


def arm(pairs: Iterable[Pair]) -> tuple[Any, ...]:
    """The command that arms them again (at least one); its reply is how many were disarmed."""
    return ("HDEL", DISARMED, *map(msgspec.json.encode, pairs))


def read_disarmed() -> tuple[Any, ...]:
    """The command that reads all; its reply is for `disarmed_of`."""
    return ("HGETALL", DISARMED)


def disarmed_of(reply: list[bytes]) -> dict[Pair, int]:
    """(camera, rule): since when (microseconds since the epoch). What is no pair is left out."""
    found: dict[Pair, int] = {}
    for field, value in zip(reply[::2], reply[1::2], strict=False):
        try:
            found[_decoder.decode(field)] = int(value)
        except (*MALFORMED, ValueError):
            continue  # somebody else's; nothing of ours is called so
    return found
