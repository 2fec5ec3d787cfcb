"""One RTSP client: its requests, and the sending of its packets over TCP (interleaved) or UDP."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ingest.sim.faults import FaultState
from ingest.sim.h264 import ParameterSets
from ingest.sim.rtp import Packetiser
from ingest.sim.rtsp_message import (
    BadRequest,
    Credentials,
    Request,
    authorised,
    challenge,
    describe_sdp,
    read_request,
    response,
)

METHODS = "OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER"
# A client that has not started to play by then is closed, so that idle connections do not pile up.
IDLE_TIMEOUT_S = 60.0
CLOSE_TIMEOUT_S = 2.0
# UDP has no back-pressure, and a keyframe of 100 packets overruns a receiver's socket buffer (about 180 small packets
# by Linux' default) when sent at once: send this many, then wait a little.
UDP_BURST, UDP_PAUSE_S = 16, 0.001


class Stream(Protocol):
    """What a session needs of its server."""

    path: str
    fps: float
    parameter_sets: ParameterSets
    packetiser: Packetiser
    credentials: Credentials | None
    encrypted: bool
    client_buffer_bytes: int
    faults_state: FaultState
    udp: tuple[socket.socket, socket.socket]  # RTP, RTCP
    stats: ServerStats

    def joined(self, session: Session) -> None:
        """The session plays: give it packets, from a keyframe on."""
        ...


@dataclass
class ServerStats:
    """Counters of one server since its start."""

    connections: int = 0
    refused: int = 0  # connections over the limit
    requests_rejected: int = 0  # malformed, too large, or answered with an error
    clients_cut: int = 0  # too slow: their buffer was full
    units: int = 0  # pictures taken from the source
    packets: int = 0  # RTP packets made of them
    packets_corrupted: int = 0  # by the corrupt fault
    udp_dropped: int = 0  # packets the kernel would not take


@dataclass(frozen=True)
class Transport:
    """What SETUP agreed on: interleaved channels of the TCP connection, or the client's UDP ports."""

    rtp: int
    rtcp: int
    udp_host: str  # "" for interleaved


class Session:
    """One connection. All methods run on the server's event loop."""

    def __init__(
        self,
        stream: Stream,
        connection: socket.socket,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._stream = stream
        # asyncio's TLS transport forgets its socket when it closes, so it is kept here; the transport closes it.
        self._connection = connection
        self._peer_host = str(connection.getpeername()[0])
        self._reader = reader
        self._writer = writer
        self._nonce = secrets.token_hex(16)
        self._id = secrets.token_hex(8)
        self._transport: Transport | None = None
        self._queue: deque[list[bytes]] = deque()
        self._queued_bytes = 0
        self._queue_filled = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None
        self._media_sent = False
        self.playing = False
        self.needs_keyframe = True  # the server clears it at the first keyframe it queues

    async def run(self) -> None:
        """Serve the connection until it ends, whoever ends it."""
        try:
            while True:
                wait = asyncio.wait_for(read_request(self._reader), None if self.playing else IDLE_TIMEOUT_S)
                request = await wait
                if request is None or not await self._handle(request):
                    return
        except BadRequest as error:
            self._stream.stats.requests_rejected += 1
            self._writer.write(response(error.status, "0"))
        except (OSError, EOFError, asyncio.TimeoutError):  # the client went away, or idled
            pass
        finally:
            self.playing = False
            if self._sender:
                self._sender.cancel()
            await self._close()

    async def _close(self) -> None:
        """Let the last answer out; a client that does not read it is dropped."""
        self._writer.close()
        try:
            await asyncio.wait_for(self._writer.wait_closed(), CLOSE_TIMEOUT_S)
        except (OSError, asyncio.TimeoutError):
            self._writer.transport.abort()

    def abort(self) -> None:
        """Drop the connection with RST, as a crashed camera or a cut line would."""
        self.playing = False
        with contextlib.suppress(OSError):  # closed already
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def queue(self, packets: list[bytes]) -> None:
        """Queue RTP packets; a client whose buffer is full is cut and counted."""
        size = sum(map(len, packets))
        if self._queued_bytes + size > self._stream.client_buffer_bytes:
            self._stream.stats.clients_cut += 1
            self.abort()
            return
        self._queue.append(packets)
        self._queued_bytes += size
        self._queue_filled.set()

    def send_report(self) -> None:
        """Send an RTCP sender report beside the media.

        Never before the first picture: FFmpeg counts time from whichever comes first, and a picture from before the
        report would get a negative time.
        """
        if not self._media_sent:
            return
        report = self._stream.packetiser.sender_report()
        if self._transport and self._transport.udp_host:
            self._send_udp(self._stream.udp[1], report, self._transport.rtcp)
        elif self._transport:
            self._writer.write(struct.pack(">cBH", b"$", self._transport.rtcp, len(report)) + report)

    async def _handle(self, request: Request) -> bool:
        """Answer one request; False ends the connection."""
        faults = self._stream.faults_state
        if faults.silent == "all":
            return True
        answer = await self._answer(request)
        if not answer.startswith(b"RTSP/1.0 200"):
            self._stream.stats.requests_rejected += 1
        self._writer.write(answer)
        await self._writer.drain()
        if request.method == "PLAY" and answer.startswith(b"RTSP/1.0 200") and not self.playing:
            # Only now, so that the answer is the first thing the client reads.
            self.playing = True
            self._sender = asyncio.create_task(self._send_queued())
            self._stream.joined(self)
        return request.method != "TEARDOWN"

    async def _answer(self, request: Request) -> bytes:
        cseq = request.headers["cseq"]
        methods: dict[str, Callable[[Request], bytes]] = {
            "OPTIONS": lambda _: response(200, cseq, {"Public": METHODS}),
            "DESCRIBE": self._describe,
            "SETUP": self._setup,
            "PLAY": self._play,
            "TEARDOWN": lambda _: response(200, cseq, self._session_header()),
            "GET_PARAMETER": lambda _: response(200, cseq, self._session_header()),
        }
        method = methods.get(request.method)
        if method is None:
            return response(501, cseq, {"Public": METHODS})
        if request.method not in ("OPTIONS", "GET_PARAMETER", "TEARDOWN"):
            refusal = await self._refusal(request)
            if refusal:
                return refusal
        return method(request)

    async def _refusal(self, request: Request) -> bytes | None:
        """Why this request must not have what it asks for: a forced fault, no credentials, no such path."""
        cseq = request.headers["cseq"]
        faults = self._stream.faults_state
        if faults.slow_s and request.method == "DESCRIBE":
            await asyncio.sleep(faults.slow_s)
        credentials = self._stream.credentials
        wrong = credentials is not None and not authorised(request, credentials, self._nonce)
        if faults.status == 401 or (not faults.status and wrong):
            asked = credentials or Credentials("nobody", secrets.token_hex(8))
            return response(401, cseq, {"WWW-Authenticate": challenge(asked, self._nonce)})
        if faults.status:
            return response(faults.status, cseq)
        if request.path not in (self._stream.path, f"{self._stream.path}/track1"):
            return response(404, cseq)
        return None

    def _describe(self, request: Request) -> bytes:
        body = describe_sdp(self._stream.parameter_sets, self._local_host(), self._stream.fps)
        headers = {"Content-Base": request.uri.rstrip("/") + "/", "Content-Type": "application/sdp"}
        return response(200, request.headers["cseq"], headers, body)

    def _setup(self, request: Request) -> bytes:
        cseq = request.headers["cseq"]
        if self.playing:
            return response(455, cseq)
        for offer in request.headers.get("transport", "").split(","):
            agreed = self._agree(offer.strip())
            if agreed:
                return response(200, cseq, self._session_header() | {"Transport": agreed})
        return response(461, cseq)

    def _agree(self, offer: str) -> str | None:
        """The Transport header that accepts this offer, or None when it cannot be served."""
        profile, *options = [part.strip().lower() for part in offer.split(";")]
        ssrc = f"ssrc={self._stream.packetiser.ssrc:08X}"
        if "multicast" in options:
            return None
        if profile == "rtp/avp/tcp":
            low, high = _pair(options, "interleaved", 255) or (0, 1)
            self._transport = Transport(low, high, "")
            return f"RTP/AVP/TCP;unicast;interleaved={low}-{high};{ssrc}"
        ports = _pair(options, "client_port", 65535)
        # Media of an rtsps:// session must not leave unencrypted.
        if profile in ("rtp/avp", "rtp/avp/udp") and ports and not self._stream.encrypted:
            self._transport = Transport(*ports, self._peer_host)
            mine = "-".join(str(end.getsockname()[1]) for end in self._stream.udp)
            return f"RTP/AVP/UDP;unicast;client_port={ports[0]}-{ports[1]};server_port={mine};{ssrc}"
        return None

    def _play(self, request: Request) -> bytes:
        cseq = request.headers["cseq"]
        if self._transport is None:
            return response(455, cseq)
        if request.headers.get("session", "").partition(";")[0] != self._id:
            return response(454, cseq)
        return response(200, cseq, self._session_header() | {"Range": "npt=0.000-"})

    def _session_header(self) -> dict[str, str]:
        return {"Session": f"{self._id};timeout={int(IDLE_TIMEOUT_S)}"} if self._transport else {}

    def _local_host(self) -> str:
        return str(self._connection.getsockname()[0])

    async def _send_queued(self) -> None:
        transport = self._transport
        assert transport is not None
        with contextlib.suppress(OSError):  # the client went away; `run` sees that too and cleans up
            while True:
                while self._queue:
                    packets = self._queue.popleft()
                    if transport.udp_host:
                        await self._send_udp_unit(packets, transport.rtp)
                    else:
                        frame = struct.Struct(">cBH").pack
                        self._writer.write(
                            b"".join(frame(b"$", transport.rtp, len(packet)) + packet for packet in packets)
                        )
                        await self._writer.drain()
                    self._queued_bytes -= sum(map(len, packets))
                    if not self._media_sent:
                        self._media_sent = True
                        self.send_report()
                self._queue_filled.clear()
                await self._queue_filled.wait()

    async def _send_udp_unit(self, packets: list[bytes], port: int) -> None:
        for at, packet in enumerate(packets, 1):
            self._send_udp(self._stream.udp[0], packet, port)
            if at % UDP_BURST == 0:
                await asyncio.sleep(UDP_PAUSE_S)

    def _send_udp(self, via: socket.socket, packet: bytes, port: int) -> None:
        assert self._transport is not None
        try:
            via.sendto(packet, (self._transport.udp_host, port))
        except OSError:  # a full socket buffer, or the client's port is closed
            self._stream.stats.udp_dropped += 1


def _pair(options: list[str], name: str, highest: int) -> tuple[int, int] | None:
    """The two numbers of `name=a-b` (b defaults to a + 1), or None when absent or out of range."""
    for option in options:
        match = re.fullmatch(rf"{name}=(\d{{1,5}})(?:-(\d{{1,5}}))?", option)
        if match:
            low = int(match[1])
            high = int(match[2]) if match[2] else low + 1
            return (low, high) if low <= highest and high <= highest else None
    return None
