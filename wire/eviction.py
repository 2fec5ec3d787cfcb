"""A Redis that evicts keys when its memory is full: alerts, what is open, what is switched off go without a word."""

from __future__ import annotations

import structlog

from wire.redis_link import Link

log = structlog.get_logger()

MEND = "set maxmemory-policy noeviction there, or give Sparsecam a Redis of its own (redis.url)"


def eviction(link: Link) -> str:
    """The policy by which this Redis may evict our keys; empty where it evicts none, or does not tell.

    Every policy but noeviction can: leases and what frames were seen expire, so `volatile-...` takes them too. Raises
    redis.RedisError or OSError when the connection is lost.
    """
    (reply,) = link.send(("INFO", "memory"))
    if not isinstance(reply, bytes):
        return ""
    facts = dict(line.split(":", 1) for line in reply.decode(errors="replace").splitlines() if ":" in line)
    # Without a limit nothing is ever evicted.
    limited = facts.get("maxmemory", "0") != "0"
    policy = facts.get("maxmemory_policy", "")
    return policy if limited and policy not in ("", "noeviction") else ""


def warn_of_eviction(link: Link, before: str) -> str:
    """As `eviction`, and a warning where the answer is another than `before`."""
    policy = eviction(link)
    if policy and policy != before:
        log.warning("redis evicts keys when its memory is full: alerts can be lost", policy=policy, mend=MEND)
    return policy
