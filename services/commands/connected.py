"""A command's link to the Redis of the processes, with what goes wrong on it in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis

from services.config import Config
from wire.logs import redact
from wire.redis_link import Link, RedisAway, connect


@contextmanager
def connected(config: Config) -> Iterator[Link]:
    """A link that is closed at the end; raises RedisAway, also for what fails inside the block."""
    try:
        link = Link(connect(config.redis, config.redis_url))
    except RedisAway as error:
        if config.embeds_valkey:
            raise RedisAway(f"{error}\nThe embedded Valkey runs while `sparsecam up` does; start that first.") from None
        raise
    try:
        yield link
    except redis.RedisError as error:
        raise RedisAway(f"Redis failed in the middle: {redact(str(error))}") from None
    finally:
        link.close()
