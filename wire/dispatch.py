"""Which frame goes to which worker: the broker's decisions, without sockets or a clock of its own.

Live cameras have one slot, where the newest frame wins; files have a queue, which their reader's window bounds. Cameras
take fair turns. Workers pull: a frame goes out only to a worker with room. What a dead worker held goes back to its
queue, except the one live frame it was working on. Every frame that enters ends exactly once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from wire.messages import FrameHeader, InputSpec, Outcome
from wire.turns import Turns

Pixels = TypeVar("Pixels")
Key = tuple[str, str, int]  # a frame: camera, session, seq

# A file frame in whose inference this many workers died is taken for the cause and given up. More than a
# handful of accidents at one and the same frame is no accident.
MAX_ATTEMPTS = 5

# A frame for a worker was lost (a broken tcp connection) where it was sent longer ago than this and the worker says
# that it holds nothing, or where it goes on for longer than this with frames sent later: it infers them in their
# order, and its two connections differ by milliseconds. The end of a frame was lost where the worker has not got it any
# more so long after. Idle workers report once a second, all of them say twice a second what they hold.
LOST_ON_THE_WAY_S = 2.0


def key_of(header: FrameHeader) -> Key:
    """Which frame it is."""
    return header.camera, header.session, header.seq


@dataclass
class Queued(Generic[Pixels]):
    """A frame in the broker's care; `ingest` is the link it came by and is settled to."""

    ingest: bytes
    header: FrameHeader
    pixels: Pixels
    order: int = -1  # given at the first dispatch and kept at the next, so that it tells the sink of a gap
    attempts: int = 0  # workers that died while inferring it
    inferred: bool = False
    dispatched_ns: int = 0
    overtaken_ns: int = 0  # when its worker was first heard of about a later one; 0: not yet


@dataclass
class Camera(Generic[Pixels]):
    """A camera's waiting frames: at most one for a live camera."""

    waiting: deque[Queued[Pixels]] = field(default_factory=deque)
    next_order: int = 0


@dataclass
class Worker(Generic[Pixels]):
    """A worker, and what it holds in the order it got it: it infers the first that is not inferred yet."""

    spec: InputSpec
    capacity: int
    quiet_until_s: float
    holds: dict[tuple[str, int], Queued[Pixels]] = field(default_factory=dict)
    pending: int = 0  # held and not inferred

    @property
    def has_room(self) -> bool:
        return self.pending < self.capacity


@dataclass(frozen=True)
class End:
    """A frame's end, to be told to the ingest it came from."""

    ingest: bytes
    header: FrameHeader
    outcome: Outcome


class Dispatcher(Generic[Pixels]):
    """All cameras and workers. Times are the caller's monotonic clock: `*_s` seconds, `*_ns` nanoseconds."""

    def __init__(self, max_age_ms: int) -> None:
        self._max_age_ns = max_age_ms * 1_000_000
        self.spec: InputSpec | None = None  # what the newest worker wants; kept while there is none
        self.cameras: dict[str, Camera[Pixels]] = {}
        self.workers: dict[bytes, Worker[Pixels]] = {}
        self._turns = Turns()  # of the cameras with a waiting frame
        self._idle: deque[bytes] = deque()  # each worker with room, once; the least recently served first
        self._in_care: set[Key] = set()  # waiting or with a worker

    # -- frames in ------------------------------------------------------------------------------------------------

    def frame(self, ingest: bytes, header: FrameHeader, pixels: Pixels) -> list[End]:
        """A frame came in; returns the end of the older live frame whose slot it took, if any."""
        camera = self.cameras.setdefault(header.camera, Camera())
        ends: list[End] = []
        if self.has(key := key_of(header)):
            return ends  # sent again
        self._in_care.add(key)
        if not header.lossless:
            ends = [self._end(camera.waiting.popleft(), "overwritten") for _ in range(len(camera.waiting))]
        camera.waiting.append(Queued(ingest, header, pixels))
        self._turns.join(header.camera)
        return ends

    def has(self, key: Key) -> bool:
        """Whether a frame is in our care: its end is still to come."""
        return key in self._in_care

    def ingest_lost(self, ingest: bytes) -> int:
        """Forget the waiting frames of an ingest that is gone; returns how many: nobody is left to be told."""
        forgotten = 0
        for camera in self.cameras.values():
            gone = [queued for queued in camera.waiting if queued.ingest == ingest]
            camera.waiting = deque(queued for queued in camera.waiting if queued.ingest != ingest)
            for queued in gone:
                self._end(queued, "stopped")
            forgotten += len(gone)
        return forgotten

    # -- frames out -----------------------------------------------------------------------------------------------

    def next_work(self, now_ns: int) -> tuple[bytes, Queued[Pixels]] | End | None:
        """The next (worker, frame) to send, or the end of a stale frame met on the way, or None: nothing can go out."""
        while self._idle and self._turns:
            name = self._turns.pop()
            camera = self.cameras[name]
            if not camera.waiting:
                continue
            queued = camera.waiting.popleft()
            stale = not queued.header.lossless and now_ns - queued.header.captured_ns > self._max_age_ns
            if not stale:
                self._turns.had(name)
            if camera.waiting:
                self._turns.join(name)
            if stale:
                return self._end(queued, "stale")
            if queued.order < 0:
                queued.order = camera.next_order
                camera.next_order += 1
            queued.dispatched_ns, queued.overtaken_ns = now_ns, 0
            return self._hand_to_idle(queued), queued
        return None

    def _hand_to_idle(self, queued: Queued[Pixels]) -> bytes:
        # The one that will begin with it soonest: least in hand, and of those the least recently served.
        identity = min(self._idle, key=lambda one: self.workers[one].pending)
        self._idle.remove(identity)
        worker = self.workers[identity]
        worker.holds[(queued.header.camera, queued.order)] = queued
        worker.pending += 1
        if worker.has_room:
            self._idle.append(identity)
        return identity

    # -- workers --------------------------------------------------------------------------------------------------

    def ready(self, identity: bytes, spec: InputSpec, capacity: int, quiet_until_s: float) -> None:
        """A worker says what it wants and how many frames it holds at once."""
        self.spec = spec
        if worker := self.workers.get(identity):
            worker.spec, worker.quiet_until_s = spec, quiet_until_s
            self._resize(identity, worker, capacity)
        else:
            self.workers[identity] = Worker(spec, capacity, quiet_until_s)
            self._idle.append(identity)

    def _resize(self, identity: bytes, worker: Worker[Pixels], capacity: int) -> None:
        """A worker that took up another model may hold more frames at once, or fewer."""
        had_room = worker.has_room
        worker.capacity = capacity
        if worker.has_room and not had_room:
            self._idle.append(identity)
        elif had_room and not worker.has_room:
            self._idle.remove(identity)

    def not_sent(self, identity: bytes, queued: Queued[Pixels]) -> list[End]:
        """What `next_work` chose could not be handed over: the frame waits again, and nothing counts against it."""
        worker = self.workers[identity]
        del worker.holds[(queued.header.camera, queued.order)]
        self._room(identity, worker)
        return self._wait_again(queued)

    def holds_nothing(self, identity: bytes, now_ns: int) -> list[End]:
        """A worker says that it has no frame: those sent to it some time ago were lost on the way and wait again."""
        worker = self.workers.get(identity)
        if worker is None:
            return []
        limit_ns = now_ns - int(LOST_ON_THE_WAY_S * 1e9)
        astray = [key for key, queued in worker.holds.items() if queued.dispatched_ns < limit_ns]
        return self._again(identity, worker, astray)

    def beat(
        self, identity: bytes, quiet_until_s: float, held: Collection[tuple[str, int]] | None, now_ns: int
    ) -> list[End]:
        """A worker lives, and may be silent until then.

        Of a frame that it inferred and does not hold (camera, order) any more, it said how it ended, and that was lost:
        the frame waits again, and what comes of it is published once all the same.
        """
        worker = self.workers.get(identity)
        if worker is None:
            return []
        worker.quiet_until_s = quiet_until_s
        if held is None:
            return []
        kept, limit_ns = set(held), now_ns - int(LOST_ON_THE_WAY_S * 1e9)
        inferred = [key for key, one in worker.holds.items() if one.inferred and one.dispatched_ns < limit_ns]
        untold = [key for key in inferred if key not in kept]
        return self._again(identity, worker, untold)

    def inferred(self, identity: bytes, camera: str, order: int, now_ns: int) -> list[End]:
        """A worker has inferred a frame, and keeps it until its detections are stored."""
        worker = self.workers.get(identity)
        queued = worker.holds.get((camera, order)) if worker else None
        if not worker or not queued or queued.inferred:
            return []
        queued.inferred = True
        self._room(identity, worker)
        return self._overtaken(identity, worker, queued, now_ns)

    def done(self, identity: bytes, camera: str, order: int, outcome: Outcome, now_ns: int) -> list[End]:
        """A worker is finished with a frame; no end when it was not in that worker's hands (any more)."""
        worker = self.workers.get(identity)
        queued = worker.holds.pop((camera, order), None) if worker else None
        if not worker or not queued:
            return []
        ends = [self._end(queued, outcome)]
        if not queued.inferred:
            self._room(identity, worker)
            ends += self._overtaken(identity, worker, queued, now_ns)
        return ends

    def _overtaken(self, identity: bytes, worker: Worker[Pixels], by: Queued[Pixels], now_ns: int) -> list[End]:
        """Frames sent to the worker before this one, and not inferred for so long that they never came, wait again."""
        lost = []
        for key, queued in worker.holds.items():
            if queued.dispatched_ns >= by.dispatched_ns:
                break
            if queued.inferred:
                continue
            queued.overtaken_ns = queued.overtaken_ns or now_ns
            if now_ns - queued.overtaken_ns > LOST_ON_THE_WAY_S * 1e9:
                lost.append(key)
        return self._again(identity, worker, lost)

    def _again(self, identity: bytes, worker: Worker[Pixels], keys: list[tuple[str, int]]) -> list[End]:
        ends = []
        for key in reversed(keys):
            queued = worker.holds.pop(key)
            if not queued.inferred:
                self._room(identity, worker)
            ends += self._wait_again(queued)
        return ends

    def _room(self, identity: bytes, worker: Worker[Pixels]) -> None:
        had_room = worker.has_room
        worker.pending -= 1
        if worker.has_room and not had_room:  # more than one is pending too many when a worker's capacity has shrunk
            self._idle.append(identity)

    def expired(self, now_s: float) -> list[bytes]:
        """Workers that have been silent for longer than they said they might be."""
        return [identity for identity, worker in self.workers.items() if now_s > worker.quiet_until_s]

    def lost(self, identity: bytes, died: bool) -> list[End]:
        """A worker is gone. Returns ends; all other frames it held wait again, the oldest first.

        When it died, the live frame it was inferring is lost with it (it may have been the cause); a file frame is
        tried again. When it left in good order nothing counts against a frame.
        """
        worker = self.workers.pop(identity, None)
        if worker is None:
            return []
        if worker.has_room:
            self._idle.remove(identity)
        held = list(worker.holds.values())
        in_inference = next((queued for queued in held if not queued.inferred), None) if died else None
        ends: list[End] = []
        for queued in reversed(held):
            if queued is in_inference:
                queued.attempts += 1
            if queued is in_inference and (not queued.header.lossless or queued.attempts >= MAX_ATTEMPTS):
                ends.append(self._end(queued, "worker_lost"))
            else:
                ends += self._wait_again(queued)
        return ends

    def _wait_again(self, queued: Queued[Pixels]) -> list[End]:
        name = queued.header.camera
        camera = self.cameras[name]
        if camera.waiting and not queued.header.lossless:
            return [self._end(queued, "overwritten")]
        queued.inferred = False
        camera.waiting.appendleft(queued)
        self._turns.give_back(name)
        return []

    def _end(self, queued: Queued[Pixels], outcome: Outcome) -> End:
        self._in_care.discard(key_of(queued.header))
        return End(queued.ingest, queued.header, outcome)
