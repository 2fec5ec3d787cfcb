"""A trainer's side of the jobs: takes one, says how it goes, ends it.

Delivery is at least once. A job stays pending in the consumer group until it has ended, so a trainer that was killed is
given it again when it restarts under its name, and another trainer when it was not heard of for `takeover_s`. The
job's hash names its owner by a token that is new with each taking: who has lost the job learns so by its next word.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import redis
import structlog
from msgspec import Struct

from wire.jobs import ENDED, GROUP, JOBS_KEY, KEEP_S, Job, LogLine, State, job_key, log_key, read_job
from wire.logs import redact
from wire.messages import WireError, encode
from wire.redis_link import Link, RedisAway
from wire.streams import VERSION

log = structlog.get_logger()

# A connection that failed is tried again after this long (seconds): soon for a person, seldom for a log.
RETRY_S = 1.0
# Nothing is taken from another trainer before Redis has answered for so long without a break: after an outage all have
# been silent for long, and each is heard of again within a second or two.
STEADY_S = 5.0

Answer = Literal["ours", "cancel", "lost"]

# Replies with the state, how often it was taken, and whether somebody wants it stopped. Where Redis lost the hash, the
# entry in the stream brings it back.
_TAKE = """
local state = redis.call('HGET', KEYS[1], 'state')
if state == 'done' or state == 'failed' or state == 'cancelled' then return {state, 0, '0'} end
local at = redis.call('TIME')
local now = string.format('%.0f', at[1] * 1000000 + at[2])
redis.call('HSETNX', KEYS[1], 'submitted_us', now)
redis.call('HSETNX', KEYS[1], 'started_us', now)
redis.call('HSET', KEYS[1], 'v', '1', 'job', ARGV[3], 'owner', ARGV[1], 'trainer', ARGV[2], 'state', 'running',
  'updated_us', now)
local attempts = redis.call('HINCRBY', KEYS[1], 'attempts', 1)
return {'running', attempts, redis.call('HGET', KEYS[1], 'cancel') or '0'}
"""

# ARGV: owner, the job, whether this is its end, how long it is kept then; then fields and values.
_SAY = """
local owner = redis.call('HGET', KEYS[1], 'owner')
if owner and owner ~= ARGV[1] then return 'lost' end
local at = redis.call('TIME')
local now = string.format('%.0f', at[1] * 1000000 + at[2])
redis.call('HSET', KEYS[1], 'v', '1', 'job', ARGV[2], 'owner', ARGV[1], 'updated_us', now)
for i = 5, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
if ARGV[3] == '1' then
  redis.call('HSET', KEYS[1], 'ended_us', now)
  redis.call('EXPIRE', KEYS[1], ARGV[4])
else
  redis.call('HSETNX', KEYS[1], 'state', 'running')
end
if redis.call('HGET', KEYS[1], 'cancel') == '1' then return 'cancel' end
return 'ours'
"""


class Taken(Struct, frozen=True):
    """A job of ours, until it is ended or lost."""

    job: Job
    entry: bytes  # in the stream
    owner: str
    attempts: int  # this one included
    cancel: bool


class JobQueue:
    """For one thread. Every method raises RedisAway when Redis is; the next call connects anew."""

    def __init__(
        self, connect: Callable[[], redis.Redis], trainer: str, *, takeover_s: float, log_lines: int = 10_000
    ) -> None:
        self._connect = connect
        self._trainer = trainer
        self._takeover_ms = int(takeover_s * 1000)
        self._log_lines = log_lines
        self._link: Link | None = None
        self._resumed = False  # whether what a run before us left is done with
        self._try_at_s = 0.0
        self._answered_s = self._steady_since_s = float("-inf")
        self._claim_from = b"0-0"
        self.malformed = 0
        self.losses = 0  # connections that failed

    @property
    def connected(self) -> bool:
        """Whether Redis answered last time."""
        return self._link is not None

    def take(self, wait_s: float) -> Taken | None:
        """The next job, waiting up to `wait_s` for one: first those that were begun by us, then by dead trainers."""
        for find in (self._left, self._abandoned, lambda: self._new(wait_s)):
            entries = find()
            if entries:
                id_, fields = entries[0]
                return self._taken(id_, dict(zip(fields[::2], fields[1::2], strict=False)) if fields else {})
        return None

    def say(self, taken: Taken, fields: Mapping[str, str | int], lines: Sequence[LogLine] = ()) -> Answer:
        """Write fields of the job's status and lines of its log, and stay its owner."""
        answer: Answer = self._say(taken, fields, ended=False)
        if answer == "lost":
            return answer
        key = log_key(taken.job.id)
        commands: list[tuple[Any, ...]] = [
            ("XADD", key, "MAXLEN", "~", self._log_lines, "*", "stage", line.stage, "line", line.line) for line in lines
        ]
        if lines:
            commands.append(("EXPIRE", key, KEEP_S))
        # Its idle time starts anew, so nobody takes it from us.
        self._send(*commands, ("XCLAIM", JOBS_KEY, GROUP, self._trainer, 0, taken.entry, "JUSTID"))
        return answer

    def end(self, taken: Taken, state: State, fields: Mapping[str, str | int]) -> Answer:
        """Write how the job ended; after this nobody takes it again. May be called again when Redis went away."""
        assert state in ENDED, state
        answer: Answer = self._say(taken, {**fields, "state": state}, ended=True)
        if answer != "lost":
            self._acknowledge(taken.entry)
        return answer

    def close(self) -> None:
        """Close the connection."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def _say(self, taken: Taken, fields: Mapping[str, str | int], *, ended: bool) -> Answer:
        flat = [part for pair in fields.items() for part in pair]
        words = (taken.owner, encode(taken.job), int(ended), KEEP_S, *flat)
        (reply,) = self._send(("EVAL", _SAY, 1, job_key(taken.job.id), *words))
        answer: Answer = reply.decode()
        return answer

    def _left(self) -> list[Any]:
        """What was ours before a restart."""
        if self._resumed:
            return []
        (reply,) = self._send(("XREADGROUP", "GROUP", GROUP, self._trainer, "COUNT", 1, "STREAMS", JOBS_KEY, "0"))
        entries: list[Any] = reply[0][1] if reply else []
        self._resumed = not entries
        return entries

    def _abandoned(self) -> list[Any]:
        """What belongs to a trainer that was not heard of for long."""
        self._connected()
        if time.monotonic() - self._steady_since_s < min(STEADY_S, self._takeover_ms / 1000):
            return []
        who = (JOBS_KEY, GROUP, self._trainer)
        (reply,) = self._send(("XAUTOCLAIM", *who, self._takeover_ms, self._claim_from, "COUNT", 1))
        self._claim_from = reply[0]  # it looks at some entries at a time; after the last begins anew
        entries: list[Any] = reply[1]
        return entries

    def _new(self, wait_s: float) -> list[Any]:
        block_ms = self._connected().block_ms(wait_s)
        who = ("GROUP", GROUP, self._trainer)
        (reply,) = self._send(("XREADGROUP", *who, "COUNT", 1, "BLOCK", block_ms, "STREAMS", JOBS_KEY, ">"))
        return reply[0][1] if reply else []

    def _taken(self, entry: bytes, fields: Mapping[bytes, bytes]) -> Taken | None:
        try:
            if fields.get(b"v") != VERSION:
                raise WireError(f"entry of version {fields.get(b'v')!r}; this build knows {VERSION!r}")
            job = read_job(fields.get(b"d", b""))
        except WireError as error:
            self.malformed += 1
            log.warning("malformed job dropped", entry=entry.decode(), reason=str(error))
            self._acknowledge(entry)
            return None
        owner = f"{self._trainer}:{uuid.uuid4().hex}"
        words = (owner, self._trainer, encode(job))
        ((state, attempts, cancel),) = self._send(("EVAL", _TAKE, 1, job_key(job.id), *words))
        if state.decode() in ENDED:  # cancelled while it waited; or its end was written and not acknowledged
            self._acknowledge(entry)
            self._send(("EXPIRE", job_key(job.id), KEEP_S))  # not before: a job without its hash would run
            return None
        return Taken(job, entry, owner, int(attempts), cancel == b"1")

    def _acknowledge(self, entry: bytes) -> None:
        self._send(("XACK", JOBS_KEY, GROUP, entry))

    def _connected(self) -> Link:
        if self._link is None:
            if time.monotonic() < self._try_at_s:
                raise RedisAway("Redis was away a moment ago")
            self._try_at_s = time.monotonic() + RETRY_S
            self._link = Link(self._connect())
            self._make_group(self._link)
            self._answered_s = self._steady_since_s = time.monotonic()
        return self._link

    def _make_group(self, link: Link) -> None:
        (made,) = link.send(("XGROUP", "CREATE", JOBS_KEY, GROUP, "0", "MKSTREAM"))
        if isinstance(made, redis.ResponseError) and not str(made).startswith("BUSYGROUP"):
            raise made

    def _send(self, *commands: tuple[Any, ...]) -> list[Any]:
        """The replies; raises RedisAway when the connection fails or Redis refuses any of it."""
        try:
            link = self._connected()
            asked_s = time.monotonic()
            if asked_s - self._answered_s > STEADY_S:
                self._steady_since_s = asked_s
            replies = link.send(*commands)
            self._answered_s = time.monotonic()
            if self._answered_s - asked_s > STEADY_S:
                self._steady_since_s = self._answered_s
            for reply in replies:
                if isinstance(reply, redis.ResponseError):
                    if str(reply).startswith("NOGROUP"):  # Redis lost its data
                        self._make_group(link)
                    raise reply
        except (redis.RedisError, OSError) as error:
            if isinstance(error, RedisAway):
                raise
            self._lost()
            raise RedisAway(f"Redis failed: {redact(str(error))}") from None
        return replies

    def _lost(self) -> None:
        self.losses += 1
        self._resumed = False  # a job may have been given to us in a reply that was lost
        if self._link is not None:
            self._link.close()
            self._link = None
