"""Redis streams: the names of the keys, publish-once, and the reader of detections.

Keys (`{camera}` stands in braces literally: the hash tag that keeps a camera's keys on one node of a Redis Cluster):

- `sparsecam:detections:{camera}`  stream, one entry a detected frame: `v` = "1", `d` = MessagePack DetectionRecord
- `sparsecam:seen:{camera}:<session>:<block>`  bitmap, which frames of a session are in the stream already
- `sparsecam:sink:{camera}`  how far the sink has come with the camera (sink/delivery.py)
- `sparsecam:lease:{camera}`  which sink works on the camera (sink/leases.py)
- `sparsecam:camera:{camera}`  hash, how the camera is doing (wire/cameras.py)
- `sparsecam:alerts`  stream and pub/sub channel of alerts (wire/alerts.py)
- `sparsecam:open:{sparsecam:alerts}`  hash, which incidents are open (wire/open_incidents.py)
- `sparsecam:watched`  hash, which rules the sinks run on which cameras (sink/watchers.py)
- `sparsecam:sensors:<output>`  set, what an MQTT output has told Home Assistant of (sink/outputs/sensors.py)
- `sparsecam:deadletters:<output>`  stream of the alerts that an output gave up (sink/outputs/deadletters.py)
- `sparsecam:outputs:owner:<output>`  which process runs an output (sink/outputs/lease.py)
- `sparsecam:jobs`, `sparsecam:job:*`  training jobs (wire/jobs.py)
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import redis
import structlog

from wire.messages import DetectionRecord, WireError, decode, decoder, encode
from wire.redis_link import Link

log = structlog.get_logger()

VERSION = b"1"  # of the entries' form; a reader skips what it does not know

# 2^20 frames a bitmap: 128 KiB, and nearly ten hours of a camera at 30 frames a second.
SEEN_BLOCK_BITS = 20
# A frame is sent again within seconds (a lost connection) or minutes (Redis away, the outbox full); an hour is ample,
# and a session that has ended leaves nothing behind after it.
SEEN_TTL_S = 3600
# A camera that left the configuration leaves no detections behind for longer; one that is off for a holiday goes on.
DETECTIONS_TTL_S = 30 * 86_400
# More frames than a camera delivers in a million years at 60 a second: a larger number is not a frame's.
MAX_SEQ = 2**48


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


def is_camera_name(text: str) -> bool:
    """Whether a camera can be called so."""
    return bool(text) and "{" not in text and "}" not in text


def _tag(camera: str) -> str:
    if not is_camera_name(camera):
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
if redis.call('TTL', KEYS[1]) < ARGV[6] / 2 then redis.call('EXPIRE', KEYS[1], ARGV[6]) end
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
    stored = (bit, maxlen, SEEN_TTL_S, VERSION, payload, DETECTIONS_TTL_S)
    return ("EVALSHA", PUBLISH_ONCE.sha, 2, stream, seen, *stored)


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
        if "no such key" in str(info) or str(info).startswith("WRONGTYPE"):
            return b"0-0"
        raise info  # not allowed to ask, say: that is no empty stream, whose alerts would all be new
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
