"""Ingest's end of the frame link: sends frames, hears how each ended, keeps every camera's ledger.

Two connections, so that no socket is shared by threads that wait: camera threads send frames on one, under a lock; the
link's own thread hears endings on the other.
"""

from __future__ import annotations

import contextlib
import os
import socket as hostnames
import threading
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import structlog
import zmq
from numpy.typing import NDArray

from wire.broker import FRAMES_SUFFIX, MAX_PIXEL_BYTES
from wire.curve import CurveKeys, protect_client
from wire.heartbeat import beat_between_hosts
from wire.ledger import CameraLedger
from wire.messages import (
    DropCause,
    FrameHeader,
    FrameKey,
    Hello,
    InputSpec,
    Outcome,
    RingSlot,
    Settled,
    WireError,
    decode,
    decoder,
    encode,
)
from wire.ring import SharedPixels, sweep

log = structlog.get_logger()

HELLO_S = 0.5
LISTEN_S = 0.1  # the longest time after which a missing broker is looked for again
BROKER_SILENCE_S = 2.0  # the broker gives five signs of life a second
# A live camera has one frame in the broker's slot and a few with workers; more unsettled ones than this mean that the
# broker does not keep up, and one more would only grow old in a socket's queue.
LIVE_UNSETTLED = 16
# The broker is asked for frames whose end has not come after this time: most end within a few hundred milliseconds.
UNSURE_S = 2.0
# Asked for at once; the rest at the next turn.
UNSURE_MOST = 1024

_settled = decoder(Settled)
_header = decoder(FrameHeader)


@dataclass(frozen=True)
class _Sent:
    """A frame on its way: what to send again, and where its pixels lie (shared memory, or here for a file's)."""

    message: bytes
    pixels: NDArray[np.uint8] | None
    slot: RingSlot | None
    asked_s: float  # when the broker was last sent it, or asked for it (monotonic)


class CameraPort:
    """What a camera's thread holds: its ledger, and the way to the broker."""

    def __init__(self, link: FrameLink, name: str, lossless: bool, window: int, rings: Path | None) -> None:
        self.name = name
        self.lossless = lossless
        self.session = uuid.uuid4().hex[:12]
        self.ledger = CameraLedger(name)
        self._link = link
        self._window = window
        self._shared = SharedPixels(rings, max(window, LIVE_UNSETTLED) + 1)
        self._settled = threading.Condition()
        self._unsettled: dict[tuple[str, int], _Sent] = {}
        self._unsent: set[tuple[str, int]] = set()  # of a file, not handed to a broker yet
        self._closing = False
        self._given_up = False
        self._told_too_large = False

    @property
    def spec(self) -> InputSpec | None:
        """The picture that detectors want; None until one has said so."""
        return self._link.spec

    def send(self, header: FrameHeader, pixels: NDArray[np.uint8]) -> bool:
        """Send one captured frame; its ledger entry is made here. `pixels` must not change afterwards.

        A live frame never waits: what cannot go at once is dropped and counted. A file's frame waits for room in the
        window, and for the broker. False when the frame was dropped.
        """
        with self._settled:
            if (cause := self._refusal()) is not None:
                self.ledger.dropped(cause)
                return False
            slot = self._shared.put(pixels) if self._link.shares_memory else None
            if slot is None and self._is_too_large(header, pixels.nbytes):
                self.ledger.dropped("bad_frame")
                return False
            inline = pixels if slot is None else None
            message = encode(header if slot is None else msgspec.structs.replace(header, slot=slot))
            key = (header.session, header.seq)
            self._unsettled[key] = _Sent(message, inline if self.lossless else None, slot, time.monotonic())
            self.ledger.sent(*key)
            if self._link.transmit(message, inline):
                return True
            if self.lossless:
                self._unsent.add(key)
                return True
        self.settle(*key, "broker_lost")
        return False

    def _refusal(self) -> DropCause | None:
        """Why a frame cannot go. For a file there is only the end; it waits for everything else."""
        if not self.lossless:
            if not self._link.broker_alive:
                return "broker_lost"
            return "overwritten" if len(self._unsettled) >= LIVE_UNSETTLED else None
        if len(self._unsettled) >= self._window:
            # Woken when half the window is free, and not for every frame: waking costs more than the waiting saves.
            self._settled.wait_for(lambda: self._half_free or self._closing)
        return "stopped" if self._given_up else None

    def _is_too_large(self, header: FrameHeader, pixel_bytes: int) -> bool:
        """Whether the pixels cannot go by socket, which is said once."""
        too_large = pixel_bytes > MAX_PIXEL_BYTES
        if too_large and not self._told_too_large:
            self._told_too_large = True
            log.error(
                f"frames of {header.width}x{header.height} are too large to be sent: dropped as bad_frame",
                camera=self.name,
                bytes=pixel_bytes,
                most=MAX_PIXEL_BYTES,
                mend="lower detector.image_shape, or give ingest and workers on one host shared memory (/dev/shm)",
            )
        return too_large

    def settle(self, session: str, seq: int, outcome: Outcome) -> None:
        """One sent frame has ended."""
        with self._settled:
            ending = self._without_memory((session, seq)) if outcome == "no_pixels" else outcome
            if ending is None:
                return
            sent = self._unsettled.pop((session, seq), None)
            if sent and sent.slot:
                self._shared.free(sent.slot)
            self._unsent.discard((session, seq))
            self.ledger.settled(session, seq, ending)
            if self._half_free:
                self._settled.notify_all()

    def _without_memory(self, key: tuple[str, int]) -> Outcome | None:
        """How a frame ends whose shared memory its worker does not see; None: not yet, it is sent with its pixels."""
        self._link.stop_sharing()
        sent = self._unsettled.get(key)
        if sent is None or not self.lossless:
            return "no_pixels"
        if sent.slot is None:
            return None  # told again: its pixels are on their way
        header = msgspec.structs.replace(decode(_header, sent.message), slot=None)
        if self._is_too_large(header, sent.slot.size):
            return "bad_frame"
        self._unsettled[key] = _Sent(encode(header), self._shared.take_back(sent.slot), None, time.monotonic())
        self._unsent.add(key)
        return None

    @property
    def _half_free(self) -> bool:
        return len(self._unsettled) <= self._window // 2

    def drain(self, timeout_s: float) -> bool:
        """Wait until every sent frame has ended; False when some have not in that time."""
        with self._settled:
            return self._settled.wait_for(lambda: not self._unsettled, timeout_s)

    def broker_lost(self) -> None:
        """The broker is silent, or a new one: live frames with the old one are lost, a file's are to be sent again."""
        with self._settled:
            unsettled = list(self._unsettled)
            if self.lossless:
                self._unsent.update(unsettled)
                return
        for key in unsettled:
            self.settle(*key, "broker_lost")

    def unsure(self, now_s: float) -> list[FrameKey]:
        """Frames that were handed over, or asked for, some time ago and have not ended."""
        with self._settled:
            return [
                FrameKey(self.name, *key)
                for key, sent in self._unsettled.items()
                if now_s - sent.asked_s > UNSURE_S and key not in self._unsent
            ]

    def asked(self, key: FrameKey, now_s: float) -> None:
        """The broker is asked for a frame: not again at once."""
        with self._settled:
            if (sent := self._unsettled.get((key.session, key.seq))) is not None:
                self._unsettled[key.session, key.seq] = replace(sent, asked_s=now_s)

    def missing(self, session: str, seq: int) -> None:
        """The broker has not got a frame that it was sent: as if it had been lost with the broker."""
        with self._settled:
            if (session, seq) not in self._unsettled:
                return
            if self.lossless:
                self._unsent.add((session, seq))
                return
        self.settle(session, seq, "broker_lost")

    def send_unsent(self) -> None:
        """Try again what no broker has taken, in the order of capture."""
        with self._settled:
            for key in sorted(self._unsent):
                sent = self._unsettled[key]
                if not self._link.transmit(sent.message, sent.pixels):
                    return
                self._unsent.remove(key)
                self._unsettled[key] = replace(sent, asked_s=time.monotonic())

    def close(self) -> None:
        """No `send` waits any more: what the camera's thread has in hand goes out over the window, to be drained."""
        with self._settled:
            self._closing = True
            self._settled.notify_all()

    def give_up(self) -> None:
        """What has not ended by now is counted as stopped, and nothing more is sent."""
        with self._settled:
            self._given_up = True
            unsettled = list(self._unsettled)
        for key in unsettled:
            self.settle(*key, "stopped")
        with self._settled:
            self._shared.close()


class FrameLink:
    """One ingest process's link to the broker."""

    def __init__(
        self, endpoint: str, *, lossless_window: int, rings: Path | None = None, curve: CurveKeys | None = None
    ) -> None:
        """`rings`: folder of shared memory that workers see as well (wire.ring); None: pixels go with the message."""
        self.malformed = 0
        self.shares_memory = rings is not None
        self._rings = rings
        self._endpoint = endpoint
        self._window = lossless_window
        self._curve = curve
        self._name = f"ingest-{hostnames.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}".encode()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._ports: dict[str, CameraPort] = {}
        self._spec: InputSpec | None = None
        self._spec_known = threading.Event()
        self._broker: str | None = None
        self._heard_s = float("-inf")
        self._stop = threading.Event()
        self._frames_lock = threading.Lock()
        self._frames = self._connect(self._name + FRAMES_SUFFIX)
        self._thread = threading.Thread(target=self._listen, name="frame-link", daemon=True)

    def _connect(self, identity: bytes) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.identity = identity
        socket.linger = 0
        socket.immediate = True  # queue only for a broker that is there
        socket.reconnect_ivl, socket.reconnect_ivl_max = 50, 500  # milliseconds: a restarted broker is found at once
        beat_between_hosts(socket, self._endpoint)
        protect_client(socket, self._curve)
        socket.connect(self._endpoint)
        return socket

    def start(self) -> None:
        """Begin to listen for endings."""
        if self._rings and (swept := sweep(self._rings)):
            log.info("shared memory of dead processes removed", rings=swept)
        self._thread.start()

    def camera(self, name: str, lossless: bool) -> CameraPort:
        """The port of one camera; the same one for the same name, so that its ledger goes on."""
        if name not in self._ports:
            self._ports[name] = CameraPort(self, name, lossless, self._window, self._rings)
        return self._ports[name]

    @property
    def ports(self) -> list[CameraPort]:
        """All cameras' ports."""
        return list(self._ports.values())

    @property
    def spec(self) -> InputSpec | None:
        """The picture that detectors want; None until one has said so."""
        return self._spec

    def wait_spec(self, stop: threading.Event, timeout_s: float) -> InputSpec | None:
        """Wait until a detector has said what it wants, `stop`, or the time is up."""
        deadline_s = time.monotonic() + timeout_s
        while not stop.is_set() and (left_s := deadline_s - time.monotonic()) > 0:
            if self._spec_known.wait(min(left_s, 0.1)):
                break
        return self._spec

    @property
    def broker_alive(self) -> bool:
        """Whether the broker has been heard of lately."""
        return time.monotonic() - self._heard_s < BROKER_SILENCE_S

    def transmit(self, header: bytes, pixels: NDArray[np.uint8] | None) -> bool:
        """Hand one message to the socket without waiting; False when there is no broker or its queue is full."""
        with self._frames_lock:
            if self._frames.closed:
                return False
            try:
                if pixels is None:
                    self._frames.send(header, zmq.NOBLOCK)
                else:
                    self._frames.send_multipart([header, pixels.data], zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return False
            return True

    @property
    def trouble(self) -> str:
        """What makes the link cost more than it must; empty when nothing does."""
        if self._rings is None or self.shares_memory:
            return ""
        return "a worker did not see the shared memory of ingest, so pixels go by socket until ingest is started again"

    def stop_sharing(self) -> None:
        """Workers do not see our shared memory: from now on pixels go by socket."""
        if self.shares_memory:
            self.shares_memory = False
            log.warning(f"{self.trouble}, which costs more CPU", folder=str(self._rings))

    def close(self, drain_s: float) -> None:
        """Wait up to drain_s for frames on their way, count the rest as stopped, release the sockets."""
        deadline_s = time.monotonic() + drain_s
        for port in self.ports:
            port.close()
        for port in self.ports:
            port.drain(max(0.0, deadline_s - time.monotonic()))
            port.give_up()
        self._stop.set()
        self._thread.join(HELLO_S * 4)
        with self._frames_lock:
            self._frames.close()
        self._context.term()

    def _listen(self) -> None:
        socket = self._connect(self._name)
        hello_s, hello = float("-inf"), encode(Hello())
        was_alive = False
        while not self._stop.is_set():
            if time.monotonic() - hello_s > HELLO_S:
                with contextlib.suppress(zmq.Again):  # no broker yet: tried again at the next turn
                    socket.send(hello, zmq.NOBLOCK)
                    hello_s = time.monotonic()
            if socket.poll(int(LISTEN_S * 1000)):
                self._hear(socket.recv())
            alive = self.broker_alive
            if was_alive and not alive:
                log.warning("broker silent", endpoint=self._endpoint)
            for port in self.ports:
                if was_alive and not alive:
                    port.broker_lost()
                if alive:
                    port.send_unsent()
            was_alive = alive
            if alive:
                self._ask()
        socket.close()

    def _ask(self) -> None:
        """Ask the broker for frames whose end is overdue.

        On the frames' own connection, where the question cannot overtake a frame: what has not come before it, and was
        not sent after it, is lost.
        """
        now_s = time.monotonic()
        unsure = [(port, key) for port in self.ports for key in port.unsure(now_s)][:UNSURE_MOST]
        if unsure and self.transmit(encode(Hello([key for _, key in unsure])), None):
            for port, key in unsure:
                port.asked(key, now_s)

    def _hear(self, payload: bytes) -> None:
        try:
            message = decode(_settled, payload)
        except WireError as error:
            self.malformed += 1
            log.warning("malformed message from the broker dropped", error=str(error))
            return
        for frame in message.frames:
            if port := self._ports.get(frame.camera):
                port.settle(frame.session, frame.seq, frame.outcome)
        for lost in message.missing:
            if port := self._ports.get(lost.camera):
                port.missing(lost.session, lost.seq)
        if message.broker != self._broker:
            log.info("broker found", endpoint=self._endpoint)
            self._broker = message.broker
            for port in self.ports:
                port.broker_lost()
        # Last: frames that are sent from here on are this broker's, and not lost with one before.
        self._heard_s = time.monotonic()
        if message.spec is not None:
            self._spec = message.spec
            self._spec_known.set()
