"""Which sink watches a camera, and by which rules: the hash `sparsecam:watched`.

A field is a camera; its value a JSON list: the sink's name, the server's time when it said so, the rules. The sink that
holds the camera's lease writes it. It outlives the sink, so that others know of cameras that are not theirs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from wire.messages import MALFORMED

WATCHED = "sparsecam:watched"
# A watcher says again that it is there when the last time is this long ago.
SAY_AGAIN_US = 60_000_000


class Watcher(Struct, array_like=True, frozen=True):
    """Who watches a camera."""

    sink: str = ""  # its name; empty: nobody knows
    at_us: int = 0  # when it said so, by the server's clock
    rules: tuple[str, ...] = ()

    def is_news(self, known: Watcher | None) -> bool:
        """Whether this is more than what is known."""
        if known is None or (known.sink, known.rules) != (self.sink, self.rules):
            return True
        return self.at_us - known.at_us >= SAY_AGAIN_US


_decoder = msgspec.json.Decoder(Watcher)


def read_watchers() -> tuple[Any, ...]:
    """The command that reads all; its reply is for `watchers_of`."""
    return ("HGETALL", WATCHED)


def watchers_of(reply: list[bytes]) -> dict[str, Watcher]:
    """Camera: its watcher. What cannot be read is as if nobody had written it."""
    found = {}
    for field, value in zip(reply[::2], reply[1::2], strict=False):
        try:
            found[field.decode()] = _decoder.decode(value)
        except MALFORMED:
            continue  # its camera's watcher writes it anew
    return found


def write_watchers(watchers: Iterable[tuple[str, Watcher]]) -> tuple[Any, ...]:
    """The command that writes these (at least one), each with its camera."""
    return ("HSET", WATCHED, *(part for camera, one in watchers for part in (camera, msgspec.json.encode(one))))


def forget_watcher(camera: str) -> tuple[Any, ...]:
    """The command that forgets a camera."""
    return ("HDEL", WATCHED, camera)
