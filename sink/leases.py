"""Which of several sinks works on which camera: leases in Redis.

A sink holds `sparsecam:lease:{camera}` for `lease_s` and renews it three times in that; dead, it loses its cameras to
the others. Its value is new with each run of a sink, so it serves as the fence too: a commit is made only while the
lease is the committer's own (sink/delivery.py), so a sink that slept through its lease changes nothing. Sinks of the
same configuration take equal shares. A sink that restarts under its old name takes its cameras back at once.
"""

from __future__ import annotations

import hashlib
import math
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from wire.redis_link import Link
from wire.streams import lease_key

RENEWALS = 3  # in a lease's time: two may be lost

# Replies with the holder after it. ARGV: us, time to live (ms), want it if free, prefix of whom to take it from.
_HOLD = """
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) return holder end
local taken = ARGV[4] ~= '' and holder and string.sub(holder, 1, #ARGV[4]) == ARGV[4]
if taken or (not holder and ARGV[3] == '1') then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return ARGV[1]
end
return holder
"""

_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"

# Says that we are there; replies with how many are.
_REGISTER = """
local at = redis.call('TIME')
local now = at[1] * 1000 + math.floor(at[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2]), ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2] * 2)
return redis.call('ZCARD', KEYS[1])
"""


@dataclass
class Changes:
    """What a renewal brought."""

    gained: list[str] = field(default_factory=list)  # ours now, and not before
    doubtful: list[str] = field(default_factory=list)  # ours again, but perhaps another's in between
    lost: list[str] = field(default_factory=list)  # another's now
    surplus: list[str] = field(default_factory=list)  # ours, and more than our share: to be released


class Leases:
    """The leases of one run of one sink."""

    def __init__(self, cameras: Iterable[str], name: str, lease_s: float) -> None:
        self._cameras = list(cameras)
        self._lease_ms = int(lease_s * 1000)
        self.name = name  # what is counted for shares, so that a sink and its dead predecessor are one
        self.owner = f"{name}:{uuid.uuid4().hex}"
        # Only sinks of the same cameras share them: others would be counted for shares that they do not take.
        digest = hashlib.sha256("\n".join(sorted(self._cameras)).encode()).hexdigest()[:16]
        self._members = f"sparsecam:sinks:{digest}"
        self.cameras = frozenset(self._cameras)  # those that we may have, whoever has them now
        self._first = True
        self._held_until_s = math.inf
        self._free_before: set[str] = set()  # cameras that nobody held at the renewal before
        self.owned: set[str] = set()
        self.sinks = 0  # of this configuration, ourselves included

    @property
    def renew_s(self) -> float:
        """How often to renew."""
        return self._lease_ms / 1000 / RENEWALS

    def doubt(self) -> None:
        """Redis was away, and may have lost what it knew: at the next renewal all that is ours is doubtful."""
        self._held_until_s = -math.inf

    def renew(self, link: Link, now_s: float) -> Changes:
        """Renew what is ours, take what is free; `now_s` is any clock that rises.

        Raises redis.RedisError or OSError; then nothing has changed here.
        """
        prefix = f"{self.name}:" if self._first else ""
        sinks, *holders = link.ask(
            ("EVAL", _REGISTER, 1, self._members, self.name, self._lease_ms),
            *(self._hold(camera, want=camera in self.owned, prefix=prefix) for camera in self._cameras),
        )
        self.sinks = int(sinks)
        held = dict(zip(self._cameras, holders, strict=True))
        ours = {camera for camera, holder in held.items() if self._is_ours(holder)}
        free = [camera for camera in self._cameras if held[camera] is None]
        share = math.ceil(len(self._cameras) / max(1, self.sinks))
        # What nobody took since the last renewal is taken by whoever sees it, share or no share.
        room = max(0, share - len(ours))
        left = [camera for camera in free if camera in self._free_before]
        wanted = list(dict.fromkeys([*free[:room], *left]))
        taken = link.ask(*(self._hold(camera, want=True) for camera in wanted)) if wanted else []
        ours |= {camera for camera, holder in zip(wanted, taken, strict=True) if self._is_ours(holder)}
        changes = Changes(
            gained=sorted(ours - self.owned),
            doubtful=sorted(ours & self.owned) if now_s >= self._held_until_s else [],
            lost=sorted(self.owned - ours),
            # With nobody to take them they would only come back.
            surplus=sorted(ours & self.owned)[share:] if self.sinks > 1 and not free else [],
        )
        self._free_before = set(free) - ours
        self.owned = ours
        self._first = False
        self._held_until_s = now_s + self._lease_ms / 1000
        return changes

    def borrow(self, link: Link, camera: str) -> bool:
        """Hold the lease of a camera that is none of ours, if it is free; `release` it soon. Raises as `renew` does."""
        return self._is_ours(link.ask(self._hold(camera, want=True))[0])

    def release(self, link: Link, cameras: Iterable[str]) -> None:
        """Give cameras to whoever wants them; their work must have been committed."""
        given = list(cameras)
        if given:
            self.owned -= set(given)
            link.ask(*(("EVAL", _RELEASE, 1, lease_key(camera), self.owner) for camera in given))

    def leave(self, link: Link) -> None:
        """Release all, and be counted no more."""
        self.release(link, list(self.owned))
        link.ask(("ZREM", self._members, self.name))

    def _hold(self, camera: str, *, want: bool, prefix: str = "") -> tuple[Any, ...]:
        return ("EVAL", _HOLD, 1, lease_key(camera), self.owner, self._lease_ms, int(want), prefix)

    def _is_ours(self, holder: bytes | None) -> bool:
        return holder == self.owner.encode()
