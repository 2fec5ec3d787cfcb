"""What an MQTT output's sensors are to show, and which it has told Home Assistant of: all of it in Redis.

So a process that starts, or takes the outputs over, knows what is open and what its predecessors announced. The set
`sparsecam:sensors:<output>` has a JSON list [camera, rule] for each sensor that the broker may have heard of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import redis

from sink.watchers import read_watchers, watchers_of
from wire.alerts import Alert
from wire.messages import MALFORMED
from wire.open_incidents import opened_of, read_all_opened
from wire.redis_link import Link

Sensor = tuple[str, str]  # camera, rule

_decoder = msgspec.json.Decoder(Sensor)


@dataclass(frozen=True)
class Standing:
    """What Redis says now."""

    rules: dict[str, tuple[str, ...]]  # camera: the rules that sinks run on it
    opened: list[Alert] | None  # that opened what is open; None where that was not asked
    announced: set[Sensor]


class Sensors:
    """Of one output. Each method raises redis.RedisError, RedisAway or OSError when Redis is away."""

    def __init__(self, output: str, connect: Callable[[], redis.Redis]) -> None:
        self._key = f"sparsecam:sensors:{output}"
        self._connect = connect
        self._link: Link | None = None

    def read(self, *, opened: bool) -> Standing:
        """All of it, at one instant; what is `opened`, which may be megabytes, if wanted."""
        asked = [read_watchers(), ("SMEMBERS", self._key), *([read_all_opened()] if opened else [])]
        *_, (watchers, announced, *rest) = self._send(("MULTI",), *asked, ("EXEC",))
        rules = {camera: one.rules for camera, one in watchers_of(watchers).items()}
        return Standing(rules, opened_of(rest[0]) if rest else None, set(_sensors_of(announced)))

    def add(self, sensors: Iterable[Sensor]) -> None:
        """Before the broker hears of them, so that none is ever forgotten there."""
        members = [msgspec.json.encode(one) for one in sensors]
        if members:
            self._send(("SADD", self._key, *members))

    def remove(self, sensors: Iterable[Sensor]) -> None:
        """Once the broker has forgotten them."""
        members = [msgspec.json.encode(one) for one in sensors]
        if members:
            self._send(("SREM", self._key, *members))

    def close(self) -> None:
        """Let go of the connection; the next call makes another."""
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _send(self, *commands: tuple[Any, ...]) -> list[Any]:
        try:
            self._link = self._link or Link(self._connect())
            replies = self._link.send(*commands)
            for reply in replies:
                if isinstance(reply, redis.RedisError):
                    raise reply
        except BaseException:
            self.close()
            raise
        return replies


def _sensors_of(members: Iterable[bytes]) -> Iterator[Sensor]:
    for member in members:
        with suppress(*MALFORMED):  # somebody else's; nothing of ours is called so
            yield _decoder.decode(member)
