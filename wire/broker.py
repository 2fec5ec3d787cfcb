"""The broker's sockets: frames come in on one ROUTER, go out on another; the decisions are `wire.dispatch`'s.

One thread, both sockets. An ingest and a worker use two connections each, so that their threads share no socket:
identities `NAME` and `NAME` + one of the suffixes below are one peer.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event

import structlog
import zmq

from wire.clocks import arrived, on_this_host
from wire.curve import CurveKeys, protect_server, start_authenticator
from wire.dispatch import Dispatcher, End, Key, key_of
from wire.heartbeat import beat_between_hosts
from wire.messages import (
    Beat,
    Done,
    FrameHeader,
    FrameKey,
    Hello,
    Inferred,
    Leave,
    Outcome,
    Ready,
    Settled,
    Settlement,
    WireError,
    Work,
    decode,
    decoder,
    encode,
)

log = structlog.get_logger()

FRAMES_SUFFIX = b".frames"  # an ingest's second connection: frames only
CONTROL_SUFFIX = b".control"  # a worker's second connection: beats and endings

# A frame is at most a few MB (4096x4096 RGB is 48 MiB); anything larger goes by shared memory alone.
MAX_MESSAGE_BYTES = 64 << 20
# What of that encryption may take. A longer message ends the connection without a word, so ingest refuses to send it.
MAX_PIXEL_BYTES = MAX_MESSAGE_BYTES - 1024
SIGN_OF_LIFE_S = 0.2  # peers take two seconds of silence for death; ten signs fit into them
INGEST_SILENCE_S = 5.0  # an ingest says hello twice a second
FIRST_PATIENCE_S = 3.0  # until a worker's first beat says otherwise
# Endings wait this long for company, since waking ingest for each costs more than the ending itself. A file that has
# half its window (16 frames) settled in this time plays at 1000 frames a second.
SETTLE_BATCH_S = 0.015
DRAIN_MESSAGES = 64  # taken from one socket before the other has a turn
# Ends remembered of an ingest, should it not have heard them: it asks after some seconds (wire.producer), and this is
# eight seconds of 500 frames each.
ENDS_KEPT = 4096

_from_ingest = decoder(FrameHeader | Hello)  # type: ignore[arg-type]  # msgspec takes a union for a type
_from_worker = decoder(Ready | Beat | Inferred | Done | Leave)  # type: ignore[arg-type]  # as above


@dataclass
class BrokerStats:
    """What the broker has seen since it began."""

    malformed: int = 0
    workers_lost: int = 0
    redispatched: int = 0
    dispatched: Counter[str] = field(default_factory=Counter)  # by camera
    ends: Counter[tuple[str, str]] = field(default_factory=Counter)  # by (camera, outcome)
    workers: int = 0
    waiting: int = 0


class _Ingest:
    """One connected ingest: what it must be told, and when it was last heard of."""

    def __init__(self, seen_s: float) -> None:
        self.welcome = uuid.uuid4().hex[:12]
        self.seen_s = seen_s
        self.told_s = 0.0
        self.settlements: list[Settlement] = []
        self.missing: list[FrameKey] = []
        self.ended: dict[Key, Outcome] = {}  # the newest ENDS_KEPT, the oldest first

    def tell(self, key: Key, outcome: Outcome) -> None:
        """A frame's end goes out with the next message, and is remembered."""
        self.settlements.append(Settlement(*key, outcome))
        if outcome == "no_pixels":
            return  # a file's frame is sent again, and is none that has ended
        self.ended[key] = outcome
        if len(self.ended) > ENDS_KEPT:
            del self.ended[next(iter(self.ended))]


class Broker:
    """Binds both endpoints on construction; `run` blocks until told to stop."""

    def __init__(self, frames: str, workers: str, max_age_ms: int, curve: CurveKeys | None = None) -> None:
        self.stats = BrokerStats()
        self._id = uuid.uuid4().hex[:12]
        self._dispatcher: Dispatcher[list[zmq.Frame]] = Dispatcher(max_age_ms)
        self._ingests: dict[bytes, _Ingest] = {}
        self._on_this_host = on_this_host(frames)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._authenticator = start_authenticator(self._context, curve)
        self._frames = self._bind(frames, curve)
        self._workers = self._bind(workers, curve)
        self._last_flush_s = 0.0
        self._last_check_s = 0.0

    def _bind(self, endpoint: str, curve: CurveKeys | None) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.ROUTER)
        socket.linger = 0
        socket.router_mandatory = True  # a peer that is gone is an error at once, not a frame lost in silence
        socket.router_handover = True  # a peer that reconnects under its name takes its old connection's place
        socket.maxmsgsize = MAX_MESSAGE_BYTES
        beat_between_hosts(socket, endpoint)
        protect_server(socket, curve)
        socket.bind(endpoint)
        return socket

    @property
    def endpoints(self) -> tuple[str, str]:
        """Where the sockets listen, with the port the system chose for `:0`."""
        return _bound_to(self._frames), _bound_to(self._workers)

    def run(self, stop: Event) -> None:
        """Serve until `stop`; looks at it at least five times a second."""
        poller = zmq.Poller()
        poller.register(self._frames, zmq.POLLIN)
        poller.register(self._workers, zmq.POLLIN)
        try:
            while not stop.is_set():
                owing = any(ingest.settlements for ingest in self._ingests.values())
                ready = dict(poller.poll(int(1000 * (SETTLE_BATCH_S if owing else SIGN_OF_LIFE_S))))
                if self._workers in ready:
                    self._drain(self._workers, self._on_worker)
                if self._frames in ready:
                    self._drain(self._frames, self._on_ingest)
                self._dispatch()
                self._flush()
                self._check_peers()
        finally:
            self.close()

    def close(self) -> None:
        """Release sockets and their endpoints."""
        self._frames.close()
        self._workers.close()
        if self._authenticator:
            self._authenticator.stop()
        self._context.term()

    # -- in -------------------------------------------------------------------------------------------------------

    def _drain(self, socket: zmq.Socket[bytes], handle: Callable[[list[zmq.Frame]], None]) -> None:
        for _ in range(DRAIN_MESSAGES):
            try:
                parts = socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            try:
                handle(parts)
            except WireError as error:
                self.stats.malformed += 1
                log.warning("malformed message dropped", peer=parts[0].bytes.hex(), error=str(error))

    def _on_ingest(self, parts: list[zmq.Frame]) -> None:
        if len(parts) not in (2, 3):
            raise WireError(f"a message of {len(parts)} parts; expected identity, header and at most pixels")
        name = parts[0].bytes.removesuffix(FRAMES_SUFFIX)
        message: FrameHeader | Hello = decode(_from_ingest, parts[1].buffer)
        now_s = time.monotonic()
        if isinstance(message, Hello):
            ingest = self._ingests.get(name)
            if ingest is None:
                self._ingests[name] = ingest = _Ingest(now_s)
                log.info("ingest joined", ingest=name.decode(errors="replace"))
            ingest.seen_s = now_s
            self._look_for(ingest, message.unsure)
            return
        if (ingest := self._ingests.get(name)) is None:
            return  # it will say hello, learn of its new welcome, and send its file frames again
        if (known := ingest.ended.get(key_of(message))) is not None:
            ingest.tell(key_of(message), known)  # sent again because its end had not been heard
            return
        got = message.slot.size if message.slot else len(parts[2]) if len(parts) == 3 else 0
        if got != message.pixel_bytes:
            self._settle(End(name, message, "bad_frame"))
            raise WireError(
                f"{got} bytes of pixels for {message.width}x{message.height} {message.pixel_format} "
                f"of camera {message.camera}; expected {message.pixel_bytes}"
            )
        if not self._on_this_host:
            message = arrived(message, time.monotonic_ns())
        pixels = parts[2:] if message.slot is None else []
        for end in self._dispatcher.frame(name, message, pixels):
            self._settle(end)

    def _look_for(self, ingest: _Ingest, unsure: list[FrameKey]) -> None:
        """Answer for frames of which an ingest has heard nothing: a broken connection takes what was on its way."""
        for frame in unsure:
            key = (frame.camera, frame.session, frame.seq)
            if (known := ingest.ended.get(key)) is not None:
                ingest.tell(key, known)
            elif not self._dispatcher.has(key):
                ingest.missing.append(frame)

    def _on_worker(self, parts: list[zmq.Frame]) -> None:
        if len(parts) != 2:
            raise WireError(f"a message of {len(parts)} parts; expected identity and message")
        identity = parts[0].bytes.removesuffix(CONTROL_SUFFIX)
        message: Ready | Beat | Inferred | Done | Leave = decode(_from_worker, parts[1].buffer)
        dispatcher, now_s, now_ns = self._dispatcher, time.monotonic(), time.monotonic_ns()
        ends: list[End] = []
        # What a broker before this one gave: its orders mean other frames here.
        is_ours = not isinstance(message, Done | Inferred | Beat) or message.broker in ("", self._id)
        if isinstance(message, Beat):
            held = message.held if is_ours else None
            ends = dispatcher.beat(identity, now_s + message.patience_s, held, now_ns)
        elif not is_ours:
            return
        elif isinstance(message, Done):
            for frame in message.frames:
                ends += dispatcher.done(identity, frame.camera, frame.order, frame.outcome, now_ns)
        elif isinstance(message, Inferred):
            for camera, order in message.frames:
                ends += dispatcher.inferred(identity, camera, order, now_ns)
        elif isinstance(message, Ready):
            self._worker_ready(identity, message, now_s)
        else:
            log.info("worker left", worker=identity.decode(errors="replace"))
            self._lose_worker(identity, died=False)
        for end in ends:
            self._settle(end)

    def _worker_ready(self, identity: bytes, message: Ready, now_s: float) -> None:
        if message.capacity < 1:
            raise WireError(f"a worker that holds {message.capacity} frames; expected 1 or more")
        if identity not in self._dispatcher.workers:
            log.info("worker joined", worker=identity.decode(errors="replace"), capacity=message.capacity)
        self._dispatcher.ready(identity, message.spec, message.capacity, now_s + FIRST_PATIENCE_S)
        if message.holding == 0:
            for end in self._dispatcher.holds_nothing(identity, time.monotonic_ns()):
                self._settle(end)

    # -- out ------------------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        while (step := self._dispatcher.next_work(now_ns := time.monotonic_ns())) is not None:
            if isinstance(step, End):
                self._settle(step)
                continue
            identity, queued = step
            work = encode(Work(self._id, queued.order, now_ns, queued.attempts, queued.header))
            try:
                self._workers.send_multipart([identity, work, *queued.pixels], zmq.NOBLOCK, copy=False)
                self.stats.dispatched[queued.header.camera] += 1
            except zmq.ZMQError as error:
                for end in self._dispatcher.not_sent(identity, queued):  # it did not die with the worker
                    self._settle(end)
                self._worker_unreachable(identity, error)

    def _worker_unreachable(self, identity: bytes, error: zmq.ZMQError) -> None:
        self.stats.workers_lost += 1
        log.warning("worker unreachable", worker=identity.decode(errors="replace"), error=str(error))
        self._lose_worker(identity, died=True)

    def _lose_worker(self, identity: bytes, died: bool) -> None:
        worker = self._dispatcher.workers.get(identity)
        held = len(worker.holds) if worker else 0
        ends = self._dispatcher.lost(identity, died)
        self.stats.redispatched += held - len(ends)
        for end in ends:
            self._settle(end)

    def _settle(self, end: End) -> None:
        self.stats.ends[(end.header.camera, end.outcome)] += 1
        if ingest := self._ingests.get(end.ingest):
            ingest.tell(key_of(end.header), end.outcome)

    def _flush(self) -> None:
        """Tell each ingest its endings, batched, or that we live."""
        now_s = time.monotonic()
        if now_s - self._last_flush_s < SETTLE_BATCH_S:
            return
        self._last_flush_s = now_s
        for name, ingest in list(self._ingests.items()):
            if not ingest.settlements and not ingest.missing and now_s - ingest.told_s < SIGN_OF_LIFE_S:
                continue
            message = Settled(ingest.welcome, self._dispatcher.spec, ingest.settlements, ingest.missing)
            try:
                self._frames.send_multipart([name, encode(message)], zmq.NOBLOCK)
            except zmq.Again:
                continue  # its queue is full: it hears the rest when it listens again
            except zmq.ZMQError as error:
                self._forget_ingest(name, str(error))
                continue
            ingest.settlements, ingest.missing, ingest.told_s = [], [], now_s

    def _check_peers(self) -> None:
        now_s = time.monotonic()
        if now_s - self._last_check_s < SIGN_OF_LIFE_S:
            return
        self._last_check_s = now_s
        for identity in self._dispatcher.expired(now_s):
            self.stats.workers_lost += 1
            log.warning("worker silent: given up", worker=identity.decode(errors="replace"))
            self._lose_worker(identity, died=True)
        for name, ingest in list(self._ingests.items()):
            if now_s - ingest.seen_s > INGEST_SILENCE_S:
                self._forget_ingest(name, "silent")
        self.stats.workers = len(self._dispatcher.workers)
        self.stats.waiting = sum(len(camera.waiting) for camera in self._dispatcher.cameras.values())

    def _forget_ingest(self, name: bytes, why: str) -> None:
        del self._ingests[name]
        forgotten = self._dispatcher.ingest_lost(name)
        log.info("ingest gone", ingest=name.decode(errors="replace"), why=why, frames_forgotten=forgotten)


def _bound_to(socket: zmq.Socket[bytes]) -> str:
    endpoint = socket.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return endpoint.rstrip(b"\0").decode()
