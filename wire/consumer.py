"""A worker's end of the frame link: takes frames as it has room, says how each ended, and that it lives.

Two connections: the inference thread's own, which frames come in by, and one for beats and endings, which the beat
thread and the publisher share under a lock.
"""

from __future__ import annotations

import contextlib
import os
import socket as hostnames
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
import zmq
from msgspec import Struct

from wire.broker import CONTROL_SUFFIX, MAX_MESSAGE_BYTES
from wire.clocks import on_this_host, received
from wire.curve import CurveKeys, protect_client
from wire.heartbeat import beat_between_hosts
from wire.messages import (
    Beat,
    Done,
    Ended,
    Inferred,
    InputSpec,
    Leave,
    Outcome,
    Ready,
    RingSlot,
    WireError,
    Work,
    decode,
    decoder,
    encode,
)
from wire.ring import RingReader, RingUnseenError

log = structlog.get_logger()

BEAT_S = 0.5
PATIENCE_S = 2.0  # silence after which the broker gives this worker's frames to others: four beats
MOST_HELD_SAID = 256  # frames; a worker holds more only while Redis is away, and then loses nothing by being silent
IDLE_READY_S = 1.0  # after this long without work the broker may be a new one, that does not know us

SHARE_MEMORY = "let ingest and workers see one /dev/shm as one user, or runtime_dir be memory (tmpfs) that both see"

Item = tuple[Work, memoryview]  # a frame and its pixels

_work = decoder(Work)


class WorkSource:
    """Frames for one worker. `next` and `inferred` belong to one thread; `done` may be called from any."""

    def __init__(
        self,
        endpoint: str,
        spec: InputSpec,
        *,
        capacity: int,
        stuck_s: float,
        on_stuck: Callable[[float], None],
        rings: Path | None = None,
        curve: CurveKeys | None = None,
    ) -> None:
        """Connect. The beat thread calls `on_stuck` with the seconds of a frame that takes over `stuck_s`.

        `rings` is the folder of ingest's shared memory (wire.ring); None on another host.
        """
        self.name = f"detector-{hostnames.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.malformed = 0
        self.unseen = 0  # frames whose shared memory could not be opened
        self.trouble = ""  # why, until pixels come again
        self._told_unseen = False
        self._spec, self._capacity = spec, capacity
        # Camera and order of what `_broker` gave; guarded, with what is said of it, by the lock.
        self._held: set[tuple[str, int]] = set()
        self._broker = ""  # whose work came last
        self._set_aside: deque[Item] = deque()  # received, and for the next batches
        self._stuck_s, self._on_stuck = stuck_s, on_stuck
        self._rings = RingReader(rings) if rings else None
        self._on_this_host = on_this_host(endpoint)
        self._busy_since_s: float | None = None
        self._last_work_s = time.monotonic()
        self._patience_s = PATIENCE_S
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._frames = self._connect(endpoint, self.name.encode(), curve)
        self._control_lock = threading.Lock()
        self._control = self._connect(endpoint, self.name.encode() + CONTROL_SUFFIX, curve)
        self._stop = threading.Event()
        self._say_ready()
        self._beats = threading.Thread(target=self._beat, name="beats", daemon=True)
        self._beats.start()

    def _connect(self, endpoint: str, identity: bytes, curve: CurveKeys | None) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.identity = identity
        socket.linger = 200  # milliseconds: what was said last gets out, and a missing broker does not hold us up
        socket.maxmsgsize = MAX_MESSAGE_BYTES
        socket.reconnect_ivl, socket.reconnect_ivl_max = 50, 500  # milliseconds: a restarted broker is found at once
        beat_between_hosts(socket, endpoint)
        protect_client(socket, curve)
        socket.connect(endpoint)
        return socket

    def next(self, timeout_s: float) -> Item | None:
        """The next frame and its pixels (uint8, see FrameHeader), or None when none came in that time."""
        self._busy_since_s, self._patience_s = None, PATIENCE_S
        item = self._set_aside.popleft() if self._set_aside else None
        if item is None:
            wait_s = min(timeout_s, IDLE_READY_S)
            if not self._frames.poll(int(wait_s * 1000)):
                if time.monotonic() - self._last_work_s > IDLE_READY_S:
                    self._say_ready()
                return None
            item = self._receive()
        self._busy_since_s = self._last_work_s = time.monotonic()
        return item

    def next_batch(self, timeout_s: float, most: int) -> list[Item]:
        """The next frame, and with it others of its shape that are at hand, up to `most`; empty when none came.

        Live frames come in full batches or one by one: a part of a batch would save little, and the first of it would
        be as late as the last. A frame that workers died of comes alone, so that it takes no other with it again.
        """
        first = self.next(timeout_s)
        if first is None:
            return []
        batch = [first]
        while len(batch) < most and (item := self._at_hand(first[0])) is not None:
            batch.append(item)
        if len(batch) < most and not first[0].frame.lossless:
            self._set_aside.extendleft(reversed(batch[1:]))
            del batch[1:]
        return batch

    def _at_hand(self, like: Work) -> Item | None:
        """A frame that has come in and may be inferred together with `like`."""
        while not like.attempts and (self._set_aside or self._frames.poll(0)):
            item = self._set_aside.popleft() if self._set_aside else self._receive()
            if item is None:
                continue
            work = item[0]
            if work.attempts or (work.frame.height, work.frame.width) != (like.frame.height, like.frame.width):
                self._set_aside.appendleft(item)
                break
            return item
        return None

    def _receive(self) -> Item | None:
        """The frame at hand; None for one that cannot be used, which has been counted and ended."""
        parts = self._frames.recv_multipart(copy=False)
        try:
            work = decode(_work, parts[0].buffer)
            if len(parts) != (1 if work.frame.slot else 2):
                raise WireError(f"work of {len(parts)} parts; expected a header, and pixels that are not in a ring")
        except WireError as error:
            self.malformed += 1
            log.warning("malformed work dropped", error=str(error))
            return None
        if not self._on_this_host:
            work = received(work, time.monotonic_ns())
        with self._control_lock:
            if work.broker != self._broker:
                # It knows nothing of what the one before gave, and its orders begin anew.
                self._held.clear()
                self._broker = work.broker
            self._held.add((work.frame.camera, work.order))
        try:
            pixels = self._pixels(work.frame.slot, parts)
        except RingUnseenError as error:
            self._unseen(error)
            self.done(work, outcome="no_pixels")
            return None
        self.trouble = ""
        if pixels is None:  # its slot holds another frame: this one was ended without us
            self.done(work, outcome="stale")
            return None
        if len(pixels) != work.frame.pixel_bytes:
            self.malformed += 1
            self.done(work, outcome="bad_frame")
            return None
        return work, pixels

    def _pixels(self, slot: RingSlot | None, parts: list[zmq.Frame]) -> memoryview | None:
        if slot is None:
            return parts[1].buffer
        if self._rings is None:
            why = "an ingest takes this worker for its neighbour: link.frames and link.workers differ from its config's"
            raise RingUnseenError(why, folder_seen=False)
        return self._rings.copy(slot)

    def _unseen(self, error: RingUnseenError) -> None:
        self.unseen += 1
        if error.folder_seen:
            return  # an ingest that stopped took its rings with it; one that lives tells of it, and nobody is misled
        self.trouble = f"no shared memory with ingest: {error}"
        if not self._told_unseen:
            self._told_unseen = True
            log.warning("cannot see the shared memory of ingest", error=str(error), mend=SHARE_MEMORY)

    def inferred(self, *works: Work) -> None:
        """These frames leave room for others; they stay ours until `done`."""
        for broker, some in _by_broker(works).items():
            self._send(self._frames, Inferred([(work.frame.camera, work.order) for work in some], broker))

    @property
    def has_more(self) -> bool:
        """Whether another frame is at hand. Belongs to the thread of `next`."""
        return bool(self._set_aside) or bool(self._frames.poll(0))

    def done(self, *works: Work, outcome: Outcome) -> None:
        """These frames' ways have ended."""
        with self._control_lock:
            for broker, some in _by_broker(works).items():
                if broker == self._broker:
                    self._held.difference_update((work.frame.camera, work.order) for work in some)
                self._say(Done([Ended(work.frame.camera, work.order, outcome) for work in some], broker))

    @property
    def spec(self) -> InputSpec:
        """The picture that ingest is asked for."""
        return self._spec

    @property
    def capacity(self) -> int:
        """Frames that this worker asks for at once."""
        return self._capacity

    def announce(self, spec: InputSpec, capacity: int) -> None:
        """Ask for other pictures from now on. Belongs to the thread of `next`; frames on their way are as they were."""
        self._spec, self._capacity = spec, capacity
        self._say_ready()

    def be_patient(self, seconds: float) -> None:
        """This frame takes long, for a good reason (its shape is compiled first): do not give us up until then."""
        self._patience_s = max(PATIENCE_S, seconds)
        self._say_beat()

    def _say_beat(self) -> None:
        # One lock and one connection for beats and endings: a frame that a beat does not name has been told of before.
        with self._control_lock:
            held = list(self._held) if len(self._held) <= MOST_HELD_SAID else None
            self._say(Beat(self._patience_s, held, self._broker))

    def _say(self, message: Struct) -> None:
        """The caller has the lock."""
        if not self._control.closed:
            self._send(self._control, message)

    def _say_ready(self) -> None:
        self._last_work_s = time.monotonic()
        with self._control_lock:
            holding = len(self._held)
        self._send(self._frames, Ready(self._spec, self._capacity, holding))

    def _send(self, socket: zmq.Socket[bytes], message: Struct) -> None:
        # A full queue means a broker long gone: what it is not told, the next one learns from `Ready`.
        with contextlib.suppress(zmq.Again):
            socket.send(encode(message), zmq.NOBLOCK)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            busy_since_s = self._busy_since_s
            busy_s = time.monotonic() - busy_since_s if busy_since_s is not None else 0.0
            if busy_s > max(self._stuck_s, self._patience_s):
                self._on_stuck(busy_s)
                continue
            self._say_beat()

    def leave(self) -> None:
        """The broker gives what we still hold to others. May be called by any thread."""
        self._stop.set()
        self._beats.join(BEAT_S * 2)
        with self._control_lock:
            self._say(Leave())

    def close(self) -> None:
        """Leave, and release the sockets. Belongs to the thread of `next`."""
        self.leave()
        with self._control_lock:
            self._control.close()
        self._frames.close()
        self._context.term()
        if self._rings:
            self._rings.close()


def _by_broker(works: Sequence[Work]) -> dict[str, list[Work]]:
    found: dict[str, list[Work]] = {}
    for work in works:
        found.setdefault(work.broker, []).append(work)
    return found
