"""Makes a transaction fail when a camera's lease is no longer ours, without a question beforehand.

The leases are watched (WATCH) from one transaction to the next: the same write that ends one sets the watch for the
next and asks who holds them. A lease that changes hands, or runs out, in between makes the next EXEC do nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import redis

from wire.redis_link import Link
from wire.streams import lease_key


class Fence:
    """The watch of one sink over its leases, on one connection. Our own renewals break it: arm it after each."""

    def __init__(self, owner: str) -> None:
        self._owner = owner.encode()
        self._cameras: list[str] = []
        self._held: set[str] = set()

    def arm(self, link: Link, cameras: Iterable[str]) -> None:
        """Watch the leases of these cameras. Raises redis.RedisError or OSError."""
        self._cameras = sorted(cameras)
        self.armed(link.send(*self.commands()))

    def commands(self) -> list[tuple[Any, ...]]:
        """To send right after a transaction; `armed` takes their replies."""
        keys = [lease_key(camera) for camera in self._cameras]
        return [("UNWATCH",), ("WATCH", *keys), ("MGET", *keys)] if keys else []

    def armed(self, replies: list[Any]) -> None:
        """What `commands` brought. Raises redis.ResponseError where one was refused."""
        self._held = set()
        for reply in replies:
            if isinstance(reply, redis.ResponseError):
                raise reply
        if replies:
            holders = zip(self._cameras, replies[-1], strict=True)
            self._held = {camera for camera, holder in holders if holder == self._owner}

    def holds(self, cameras: Iterable[str]) -> bool:
        """Whether all these leases were ours when the watch was set."""
        return self._held.issuperset(cameras)
