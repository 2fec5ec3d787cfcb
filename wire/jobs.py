"""Training jobs in Redis: handed in by anybody, taken by trainers (wire/job_queue.py), watched by anybody.

Keys:

- `sparsecam:jobs`  stream, one entry a job: `v` = "1", `d` = MessagePack Job; consumer group `trainers`
- `sparsecam:job:ID`  hash, how the job is doing: the fields of JobStatus, beside `v`, `job` (MessagePack), `owner`
- `sparsecam:job:ID:log`  stream of what its programs printed: `stage`, `line`

Times in the hash are the Redis server's.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from typing import Any, Literal

import msgspec
import redis
from msgspec import Struct

from wire.messages import WireError, decode, decoder, encode
from wire.redis_link import Link
from wire.streams import VERSION

JOBS_KEY = "sparsecam:jobs"
GROUP = "trainers"

# Ended jobs stay in the stream as its history, and a person looks through hundreds at most. Jobs that wait are far
# fewer (services/commands/jobs.py refuses more), so that none of them is ever cut off.
JOBS_MAXLEN = 10_000
# A job is a few lines of settings; whatever is larger was not written by `sparsecam jobs submit`.
MAX_JOB_BYTES = 64 << 10
# How long an ended job, and its log, can still be looked at (seconds).
KEEP_S = 30 * 86_400
PAGE = 500  # lines of a log in one read

State = Literal["queued", "running", "interrupted", "done", "failed", "cancelled"]
ENDED: frozenset[State] = frozenset({"done", "failed", "cancelled"})

# Ids stand in keys and in names of folders.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")


class Job(Struct, frozen=True, tag="job.1"):
    """What is to be done. Whoever may write to Redis made it: its words are checked by who acts on them."""

    id: str
    arguments: dict[str, Any]  # of `sparsecam train`
    publish: dict[str, Any] = {}  # what becomes of the finished model
    kind: Literal["train"] = "train"


class JobStatus(Struct, frozen=True):
    """How a job is doing, as its hash says. Microseconds since the epoch; 0: not yet."""

    id: str
    state: State = "queued"
    stage: str = ""  # train, export or publish
    epoch: int = 0  # epochs finished
    epochs: int = 0  # of how many; 0: not known
    row: str = ""  # the newest row of results.csv, as JSON
    attempts: int = 0  # times it was begun or taken up since an epoch was last finished
    trainer: str = ""  # who works on it, or did
    folder: str = ""  # of its run, on the trainer's machine
    model: str = ""  # under which name its model is in the registry
    error: str = ""
    cancel: bool = False  # somebody wants it stopped
    lines_shed: int = 0  # lines of output that came too fast for the log
    submitted_us: int = 0
    started_us: int = 0
    updated_us: int = 0
    ended_us: int = 0
    arguments: dict[str, Any] = {}
    publish: dict[str, Any] = {}


class LogLine(Struct, frozen=True):
    """One line that a program of a job printed."""

    id: str
    stage: str
    line: str


_decoder = decoder(Job)


def new_id(now: datetime | None = None) -> str:
    """A new job's id: when it was made (UTC), and enough chance that two made at once differ."""
    return f"{now or datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def job_key(job_id: str) -> str:
    """The hash of a job; raises WireError for what is no id."""
    if not _ID.fullmatch(job_id):
        raise WireError(f"job id {job_id!r}: expected letters, digits and dashes, as `sparsecam jobs list` shows them")
    return f"sparsecam:job:{job_id}"


def log_key(job_id: str) -> str:
    """The log stream of a job."""
    return f"{job_key(job_id)}:log"


def read_job(payload: bytes) -> Job:
    """The job of a stream entry; raises WireError for what is none."""
    if len(payload) > MAX_JOB_BYTES:
        raise WireError(f"a job of {len(payload)} bytes; expected at most {MAX_JOB_BYTES}")
    job = decode(_decoder, payload)
    job_key(job.id)
    return job


_SUBMIT = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local at = redis.call('TIME')
redis.call('HSET', KEYS[1], 'v', '1', 'job', ARGV[1], 'state', 'queued',
  'submitted_us', string.format('%.0f', at[1] * 1000000 + at[2]))
return 1
"""

# Only who works on a job may end it; what nobody works on ends here.
_CANCEL = """
local state = redis.call('HGET', KEYS[1], 'state')
if state == 'running' then
  redis.call('HSET', KEYS[1], 'cancel', '1')
elseif state == 'queued' or state == 'interrupted' then
  local at = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'state', 'cancelled', 'ended_us', string.format('%.0f', at[1] * 1000000 + at[2]))
end
return redis.call('HGET', KEYS[1], 'state')
"""


def submit(link: Link, job: Job) -> None:
    """Hand a job in. Raises WireError for one that cannot be written, redis.RedisError when Redis refuses."""
    try:
        payload = encode(job)
    except (OverflowError, UnicodeEncodeError, TypeError) as error:
        raise WireError(f"job {job.id}: {error}") from error
    read_job(payload)
    if not link.one("EVAL", _SUBMIT, 1, job_key(job.id), payload):
        raise WireError(f"job {job.id}: there is one of this id already")
    # The hash comes first: a trainer that sees the entry finds it.
    link.one("XADD", JOBS_KEY, "MAXLEN", "~", JOBS_MAXLEN, "*", "v", VERSION, "d", payload)


def status(link: Link, job_id: str) -> JobStatus | None:
    """How a job is doing; None where there is none. Raises WireError for rubbish, redis.RedisError."""
    return status_of(job_id, link.one("HGETALL", job_key(job_id)))


def statuses(link: Link, newest: int) -> list[JobStatus]:
    """The newest jobs, the oldest of them first; those that were forgotten or cannot be read are left out."""
    return _statuses(link, reversed(link.one("XREVRANGE", JOBS_KEY, "+", "-", "COUNT", newest)))


def waiting(link: Link, most: int) -> int:
    """How many of the next `most` jobs that no trainer was given yet are still wanted."""
    (reply,) = link.send(("XINFO", "GROUPS", JOBS_KEY))
    groups = [] if isinstance(reply, redis.ResponseError) else reply  # no stream yet
    given = {one[1]: one[one.index(b"last-delivered-id") + 1] for one in groups}.get(GROUP.encode(), b"0-0")
    entries = link.one("XRANGE", JOBS_KEY, f"({given.decode()}", "+", "COUNT", most)
    return sum(one.state == "queued" for one in _statuses(link, entries))


def _statuses(link: Link, entries: Iterable[tuple[bytes, list[bytes]]]) -> list[JobStatus]:
    found = []
    for _, fields in entries:
        try:
            one = status(link, read_job(dict(zip(fields[::2], fields[1::2], strict=False)).get(b"d", b"")).id)
        except WireError:
            continue
        if one is not None:
            found.append(one)
    return found


def cancel(link: Link, job_id: str) -> State | None:
    """Stop a job, or ask its trainer to; returns its state after that, `running` until its trainer has heard of it."""
    state = link.one("EVAL", _CANCEL, 1, job_key(job_id), KEEP_S)
    return state.decode() if state else None


def log_lines(link: Link, job_id: str, after: str = "0-0") -> Iterator[LogLine]:
    """The lines that the log holds now, behind the entry `after`; raises redis.RedisError."""
    while True:
        page = link.one("XRANGE", log_key(job_id), f"({after}", "+", "COUNT", PAGE)
        for id_, fields in page:
            values = dict(zip(fields[::2], fields[1::2], strict=False))
            after = id_.decode()
            yield LogLine(after, *(values.get(name, b"").decode(errors="replace") for name in (b"stage", b"line")))
        if len(page) < PAGE:
            return


def trainers(link: Link, heard_ms: int) -> list[str]:
    """Names of the trainers that Redis heard of in the last `heard_ms` milliseconds."""
    (reply,) = link.send(("XINFO", "CONSUMERS", JOBS_KEY, GROUP))
    if isinstance(reply, redis.ResponseError):  # no stream or no group: no trainer ever ran
        return []
    found = [dict(zip(one[::2], one[1::2], strict=False)) for one in reply]
    return sorted(one[b"name"].decode() for one in found if one[b"idle"] <= heard_ms)


def status_of(job_id: str, reply: list[bytes]) -> JobStatus | None:
    """What the reply to HGETALL says; None where there is no job of this version. Raises WireError for rubbish."""
    fields = dict(zip(reply[::2], reply[1::2], strict=False))
    if fields.get(b"v") != VERSION:
        return None
    job = read_job(fields.pop(b"job", b""))
    said: dict[str, Any] = {name.decode(): value.decode(errors="replace") for name, value in fields.items()}
    said |= {"id": job_id, "arguments": job.arguments, "publish": job.publish}
    try:
        return msgspec.convert(said, JobStatus, strict=False)
    except msgspec.ValidationError as error:
        raise WireError(f"status of job {job_id}: {error}") from error
