"""A Redis that may evict what was promised is told of."""

from __future__ import annotations

import pytest
import redis

from wire.eviction import eviction
from wire.redis_link import Link, connect
from wire.settings import RedisSettings
from wire.valkey import EmbeddedValkey


@pytest.mark.parametrize(
    ("policy", "maxmemory", "told"),
    [
        ("allkeys-lru", "100mb", "allkeys-lru"),
        ("volatile-ttl", "100mb", "volatile-ttl"),
        ("noeviction", "100mb", ""),
        ("allkeys-lru", "0", ""),
    ],
)
def test_a_policy_that_evicts_is_named_where_memory_is_limited(
    own_valkey: EmbeddedValkey, policy: str, maxmemory: str, told: str
) -> None:
    link = Link(connect(RedisSettings(), own_valkey.url))
    link.ask(("CONFIG", "SET", "maxmemory-policy", policy), ("CONFIG", "SET", "maxmemory", maxmemory))
    assert eviction(link) == told
    link.close()


def test_who_may_not_ask_is_told_of_nothing(own_valkey: EmbeddedValkey) -> None:
    with redis.Redis.from_url(own_valkey.url) as client:
        client.execute_command("ACL", "SETUSER", "few", "on", "nopass", "~*", "+@all", "-info")
    link = Link(connect(RedisSettings(), f"{own_valkey.url}?username=few&password=x"))
    assert eviction(link) == ""
    link.close()
