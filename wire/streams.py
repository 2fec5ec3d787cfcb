"""Redis streams: the connection, the names of the keys, publish-once, and the reader of detections.

Keys (`{camera}` stands in braces literally: the hash tag that keeps a camera's keys on one node of a Redis Cluster):

- `sparsecam:detections:{camera}`  stream, one entry a detected frame: `v` = "1", `d` = MessagePack DetectionRecord
- `sparsecam:seen:{camera}:<session>:<block>`  bitmap, which frames of a session are in the stream already
- `sparsecam:sink:{camera}`  how far the sink has come with the camera (sink/delivery.py)
- `sparsecam:lease:{camera}`  which sink works on the camera (sink/leases.py)
- `sparsecam:camera:{camera}`  hash, how the camera is doing (wire/cameras.py)
- `sparsecam:alerts`  stream and pub/sub channel of alerts (wire/alerts.py)
- `sparsecam:deadletters:<output>`  stream of the alerts that an output gave up (sink/outputs/deadletters.py)
- `sparsecam:outputs:owner`  which process runs the outputs (sink/outputs/lease.py)
- `sparsecam:jobs`, `sparsecam:job:*`  training jobs (wire/jobs.py)
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol, cast
from urllib.parse import parse_qsl, urlsplit

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from wire.logs import redact
from wire.messages import DetectionRecord, WireError, decode, decoder, encode
from wire.settings import RedisSettings

log = structlog.get_logger()

VERSION = b"1"  # of the entries' form; a reader skips what it does not know

# A connection idle for longer is tried with a PING first, so that one that a firewall forgot is noticed before its use.
HEALTH_CHECK_S = 30
# What redis.url may say after the `?`. Other options of redis-py (decode_responses, timeouts) would break this code.
URL_OPTIONS = ("db", "username", "password", "ssl_")

# 2^20 frames a bitmap: 128 KiB, and nearly ten hours of a camera at 30 frames a second.
SEEN_BLOCK_BITS = 20
# A frame is sent again within seconds (a lost connection) or minutes (Redis away, the outbox full); an hour is ample,
# and a session that has ended leaves nothing behind after it.
SEEN_TTL_S = 3600
# More frames than a camera delivers in a million years at 60 a second: a larger number is not a frame's.
MAX_SEQ = 2**48


class RedisUrlError(ValueError):
    """redis.url cannot be used as it is written."""


class RedisAway(ConnectionError):
    """Redis does not answer, or does not let us in. The message never holds a password."""


def connect(settings: RedisSettings, default_url: str = "") -> redis.Redis:
    """A client that has just been answered by its server.

    `default_url` (the embedded Valkey) is used when `settings.url` is empty. Commands are not retried by redis-py:
    whoever sends them knows whether they may be sent twice. Raises RedisUrlError or RedisAway.
    """
    url = settings.url or default_url
    _check_url(url)
    try:
        client = redis.Redis.from_url(
            url,
            protocol=2,  # one form of reply for all versions of redis-py and of the server
            socket_timeout=settings.timeout_s,
            socket_connect_timeout=settings.timeout_s,
            health_check_interval=HEALTH_CHECK_S,
            retry=Retry(NoBackoff(), 0),
        )
    except (ValueError, TypeError):
        # The library's message may quote the very part of the URL that holds the password.
        raise RedisUrlError(_bad_url(url, "its host, port or options cannot be understood")) from None
    try:
        client.ping()
    except redis.AuthenticationError as error:
        client.close()
        raise RedisAway(
            f"{redact(url)} refused the user name or password of redis.url ({redact(str(error))})"
        ) from None
    except (redis.RedisError, OSError) as error:
        client.close()
        raise RedisAway(f"{redact(url)} does not answer: {redact(str(error))}") from None
    return client


def _check_url(url: str) -> None:
    if not url:
        raise RedisUrlError("redis.url is empty and there is no embedded Valkey: set redis.url")
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise RedisUrlError(_bad_url(url, "it begins otherwise"))
    try:
        names = [name for name, _ in parse_qsl(urlsplit(url).query)]
    except ValueError:
        raise RedisUrlError(_bad_url(url, "it is not a URL")) from None
    for name in names:
        if not name.startswith(URL_OPTIONS):
            raise RedisUrlError(_bad_url(url, f"the option {name!r} is none of {', '.join(URL_OPTIONS)}*"))


def _bad_url(url: str, what: str) -> str:
    return f"redis.url {redact(url)!r}: {what}; expected redis://, rediss:// or unix:// [user:password@]host:port/db"


@lru_cache(maxsize=4096)
def detections_key(camera: str) -> str:
    """The stream of a camera's detections."""
    return f"sparsecam:detections:{{{_tag(camera)}}}"


@lru_cache(maxsize=4096)
def sink_key(camera: str) -> str:
    """Where the sink writes how far it has come with a camera."""
    return f"sparsecam:sink:{{{_tag(camera)}}}"


@lru_cache(maxsize=4096)
def lease_key(camera: str) -> str:
    """Who of the sinks works on a camera."""
    return f"sparsecam:lease:{{{_tag(camera)}}}"


@lru_cache(maxsize=4096)
def camera_key(camera: str) -> str:
    """How a camera is doing."""
    return f"sparsecam:camera:{{{_tag(camera)}}}"


def seen_bit(camera: str, session: str, seq: int) -> tuple[str, int]:
    """The bitmap, and the bit in it, that says whether a frame is in its stream."""
    if not 0 <= seq < MAX_SEQ:
        raise WireError(f"frame number {seq} of camera {camera}: expected 0 to {MAX_SEQ - 1}")
    block, bit = seq >> SEEN_BLOCK_BITS, seq & (1 << SEEN_BLOCK_BITS) - 1
    return f"sparsecam:seen:{{{_tag(camera)}}}:{session}:{block}", bit


def _tag(camera: str) -> str:
    if not camera or "{" in camera or "}" in camera:
        raise WireError(f"camera name {camera!r}: expected at least one character, and no braces")
    return camera


@dataclass(frozen=True)
class Script:
    """A Lua script, and the SHA-1 under which the server keeps it."""

    source: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", sha)


# The bit is set after the entry is in: a refused XADD (no memory, wrong type of key) ends the script, and the frame is
# not marked as published. The time to live is renewed at half of it only, to keep the append-only file small.
PUBLISH_ONCE = Script("""
if redis.call('GETBIT', KEYS[2], ARGV[1]) == 1 then return false end
local id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'v', ARGV[4], 'd', ARGV[5])
redis.call('SETBIT', KEYS[2], ARGV[1], 1)
if redis.call('TTL', KEYS[2]) < ARGV[3] / 2 then redis.call('EXPIRE', KEYS[2], ARGV[3]) end
return id
""")


def publish_once(record: DetectionRecord, maxlen: int) -> tuple[Any, ...]:
    """The command that puts a record into its camera's stream, unless it is there already.

    The reply is the entry's id, or nil for a frame that was there. Needs PUBLISH_ONCE loaded (else: NOSCRIPT).
    Raises WireError for a camera name or a number that cannot be written.
    """
    seen, bit = seen_bit(record.camera, record.session, record.seq)
    try:
        payload = encode(record)
    except (OverflowError, UnicodeEncodeError) as error:
        raise WireError(f"frame {record.seq} of camera {record.camera}: {error}") from error
    stream = detections_key(record.camera)
    return ("EVALSHA", PUBLISH_ONCE.sha, 2, stream, seen, bit, maxlen, SEEN_TTL_S, VERSION, payload)


class _Connection(Protocol):
    """What Link uses of redis-py's connection, which has no types for it."""

    def pack_commands(self, commands: Iterable[tuple[Any, ...]]) -> Any: ...
    def send_packed_command(self, command: Any) -> None: ...
    def read_response(self) -> Any: ...
    def disconnect(self) -> None: ...


class Link:
    """One connection, for raw commands: a single one costs 40 µs of CPU here, and 90 through a redis-py pipeline."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = redis.Redis(connection_pool=client.connection_pool, single_connection_client=True)
        self._connection = cast(_Connection, self._client.connection)
        # A blocking read must be over before the socket's time limit is.
        self._longest_wait_s = client.connection_pool.connection_kwargs.get("socket_timeout", 1.0) / 2

    def block_ms(self, wait_s: float) -> int:
        """The BLOCK of a reading command that shall wait about `wait_s`: never 0, which would wait for ever."""
        return max(1, int(min(wait_s, self._longest_wait_s) * 1000))

    def send(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Send all commands in one write and return the raw replies; a refused command's reply is its ResponseError.

        Raises redis.RedisError or OSError when the connection is lost; then nobody knows which commands were done.
        """
        connection = self._connection
        try:
            connection.send_packed_command(connection.pack_commands(commands))
            return [self._reply() for _ in commands]
        except BaseException:
            # Replies that are still on their way would answer the next commands.
            connection.disconnect()
            raise

    def _reply(self) -> Any:
        try:
            return self._connection.read_response()
        except redis.ResponseError as error:
            return error

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()
        self._client.close()


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a detections stream; `record` is None where it cannot be read (counted, and to be acknowledged)."""

    camera: str
    id: bytes
    record: DetectionRecord | None


@dataclass
class ReaderCounts:
    """What a Reader met."""

    read: int = 0
    malformed: int = 0  # not a record, or of a version this build does not know
    trimmed: int = 0  # delivered earlier, and cut off by MAXLEN before it was acknowledged


class Reader:
    """Reads the detections of many cameras as one consumer of a group.

    What this consumer was given and has not acknowledged comes first: after a restart from the beginning, after a lost
    connection from the last entry seen, because a reply may have been lost on the way. Redis that lost its data, or the
    group, gets the group again. The consumer's name must stay the same from run to run, and be used by one process at a
    time for a camera.
    """

    def __init__(self, cameras: Iterable[str], *, group: str, consumer: str) -> None:
        self._camera = {detections_key(camera).encode(): camera for camera in cameras}
        self._group = group
        self._consumer = consumer
        self._last = dict.fromkeys(self._camera, b"0-0")
        self._again: set[bytes] = set()  # streams whose unacknowledged entries are read before new ones
        self._readable: list[bytes] = []
        self.behind: set[str] = set()  # cameras of which the last `read` did not reach the end of the stream
        self._decoder = decoder(DetectionRecord)
        self._told: set[str] = set()
        self.counts = ReaderCounts()

    def resume(self, link: Link) -> None:
        """Call for each new connection, before `read`."""
        self._again = set(self._camera)
        self._make_groups(link)

    def add(self, link: Link, camera: str) -> None:
        """Read a camera too, from what the consumer was given and has not acknowledged on; also to begin it anew."""
        stream = detections_key(camera).encode()
        self._camera[stream] = camera
        self._last[stream] = b"0-0"
        self._again.add(stream)
        self._make_groups(link, stream)

    def drop(self, camera: str) -> None:
        """Read a camera no more."""
        stream = detections_key(camera).encode()
        self._camera.pop(stream, None)
        self._last.pop(stream, None)
        self._again.discard(stream)
        self._readable = [one for one in self._readable if one != stream]
        self.behind.discard(camera)

    def resuming(self, camera: str) -> bool:
        """Whether entries given to the consumer earlier are still being read."""
        return detections_key(camera).encode() in self._again

    def read(self, link: Link, *, count: int, block_s: float) -> list[Entry]:
        """Up to `count` entries a camera, each camera's in stream order; waits up to `block_s` for the first.

        Raises redis.RedisError or OSError when the connection is lost.
        """
        if not self._readable:
            time.sleep(block_s)
            self._make_groups(link)
            return []
        starts = [self._last[stream] if stream in self._again else b">" for stream in self._readable]
        who = ("GROUP", self._group, self._consumer)
        wait = ("COUNT", count, "BLOCK", link.block_ms(block_s))
        (reply,) = link.send(("XREADGROUP", *who, *wait, "STREAMS", *self._readable, *starts))
        if isinstance(reply, redis.ResponseError):
            # NOGROUP: Redis lost the stream or the group. UNBLOCKED: just now. WRONGTYPE: the key is something else.
            if not str(reply).startswith(("NOGROUP", "UNBLOCKED", "WRONGTYPE")):
                raise reply
            self._make_groups(link)
            return []
        entries: list[Entry] = []
        answered = set()
        self.behind = {self._camera[stream] for stream in self._again}
        for stream, items in reply or ():
            if items:
                answered.add(stream)
                if len(items) >= count:
                    self.behind.add(self._camera[stream])
                self._last[stream] = items[-1][0]
                entries += [self._entry(self._camera[stream], id_, fields) for id_, fields in items]
        self._again &= answered
        self.counts.read += len(entries)
        return entries

    def _entry(self, camera: str, id_: bytes, fields: list[bytes] | None) -> Entry:
        if fields is None:
            self.counts.trimmed += 1
            return Entry(camera, id_, None)
        values = dict(zip(fields[::2], fields[1::2], strict=False))
        try:
            if values.get(b"v") != VERSION:
                raise WireError(f"entry of version {values.get(b'v')!r}; this build knows {VERSION!r}")
            record = decode(self._decoder, values.get(b"d", b""))
            if record.camera != camera:
                raise WireError(f"a record of camera {record.camera!r} in the stream of {camera!r}")
        except WireError as error:
            self.counts.malformed += 1
            self._tell_once("entry skipped", camera, id=id_.decode(), reason=str(error))
            return Entry(camera, id_, None)
        return Entry(camera, id_, record)

    def _make_groups(self, link: Link, *streams: bytes) -> None:
        """Make the group where it is not, from the last entry read on; leave out keys that are not streams."""
        for stream in streams or tuple(self._camera):
            self._readable = [one for one in self._readable if one != stream]
            camera = self._camera[stream]
            newest, start = last_id(link, stream), self._last[stream]
            if id_order(start) > id_order(newest):  # not the stream that we read: Redis lost some or all of it
                self._last[stream], start = newest, b"0-0"
            made = link.send(("XGROUP", "CREATE", stream, self._group, start, "MKSTREAM"))[0]
            if not isinstance(made, redis.ResponseError) or str(made).startswith("BUSYGROUP"):
                self._readable.append(stream)
            elif str(made).startswith("WRONGTYPE"):
                self._tell_once("key is not a stream: camera left out", camera, key=stream.decode())
            else:
                raise made

    def _tell_once(self, event: str, camera: str, **fields: str) -> None:
        if (about := f"{event} {camera}") not in self._told:
            self._told.add(about)
            log.warning(event, camera=camera, **fields)


def last_id(link: Link, stream: str | bytes) -> bytes:
    """The newest id a stream has ever given out; 0-0 where there is no stream."""
    info = link.send(("XINFO", "STREAM", stream))[0]
    if isinstance(info, redis.ResponseError):
        return b"0-0"
    newest: bytes = dict(zip(info[::2], info[1::2], strict=False))[b"last-generated-id"]
    return newest


def oldest_id(link: Link, stream: str | bytes) -> bytes | None:
    """The id of the oldest entry that a stream still holds; None where it holds none."""
    entries = link.send(("XRANGE", stream, "-", "+", "COUNT", 1))[0]
    if isinstance(entries, redis.ResponseError) or not entries:
        return None
    oldest: bytes = entries[0][0]
    return oldest


def id_order(id_: bytes) -> tuple[int, int]:
    """A stream id as numbers that compare as the ids do."""
    milliseconds, _, number = id_.partition(b"-")
    return int(milliseconds), int(number or 0)
