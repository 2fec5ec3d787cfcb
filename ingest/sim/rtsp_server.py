"""A small RTSP 1.0 server (RFC 2326) that plays one H.264 source to many clients and can fail on demand.

    with RtspServer(source) as server:
        av.open(server.url)          # rtsp://127.0.0.1:<port>/camera
        server.faults.stall()        # see ingest.sim.faults

The server has one thread for its sockets (asyncio) and one that iterates the source; `stop` ends both and closes every
socket. All clients see the same packets. A session lives as long as its TCP connection, also when its media go by UDP.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import socket
import ssl
import threading
from collections.abc import Coroutine
from typing import Any

import numpy as np
import structlog

from ingest.sim.faults import Faults, FaultState
from ingest.sim.h264 import AccessUnit
from ingest.sim.rtp import Packetiser
from ingest.sim.rtsp_message import MAX_HEAD_BYTES, Credentials, response
from ingest.sim.rtsp_session import ServerStats, Session
from ingest.sim.source import Demand, MediaSource

__all__ = ["Credentials", "RtspServer", "ServerStats"]

# About ten seconds of 720p: a client that far behind will not catch up.
CLIENT_BUFFER_BYTES = 4 * 1024 * 1024
MAX_CLIENTS = 64  # a simulated camera already offers more than real ones (4-10)
REPORT_INTERVAL_S = 5.0  # RTCP sender reports: RFC 3550's minimum for one sender
CALL_TIMEOUT_S = 10.0  # for a call into the server's thread, which never blocks for long; a busy machine may

_log = structlog.get_logger()


class RtspServer:
    """Serve `source` at rtsp(s)://host:port/path from `start` to `stop`; also a context manager.

    Port 0 takes any free port, which stays the same over `faults.down` and `faults.up`.
    """

    def __init__(
        self,
        source: MediaSource,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        path: str = "/camera",
        credentials: Credentials | None = None,
        tls: ssl.SSLContext | None = None,
        client_buffer_bytes: int = CLIENT_BUFFER_BYTES,
        max_clients: int = MAX_CLIENTS,
    ) -> None:
        self._source = source
        self.host = host
        self.port = port
        self.path = "/" + path.strip("/")
        self.fps = source.fps
        self.parameter_sets = source.parameter_sets
        self.packetiser = Packetiser()
        self.credentials = credentials
        self.encrypted = tls is not None
        self.client_buffer_bytes = client_buffer_bytes
        self.stats = ServerStats()
        self.faults_state = FaultState()
        self.faults = Faults(
            self.faults_state,
            down=lambda: self._call(self._close_listener()),
            up=lambda: self._call(self._open_listener()),
            reset=lambda: self._call(self._drop_clients()),
        )
        self._tls = tls
        self._max_clients = max_clients
        self._demand = Demand()
        self._loop = asyncio.new_event_loop()
        self._threads: list[threading.Thread] = []
        self._sessions: dict[asyncio.Task[None], Session | None] = {}  # None while TLS shakes hands
        self._listener: asyncio.Task[None] | None = None
        self._family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._since_keyframe: list[list[bytes]] = []
        self._noise = np.random.default_rng(0)
        self._open_sockets = contextlib.ExitStack()

    @property
    def url(self) -> str:
        """Where to watch, without credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rtsps' if self.encrypted else 'rtsp'}://{host}:{self.port}{self.path}"

    @property
    def clients(self) -> int:
        """Clients that play just now."""
        return sum(session.playing for session in self._playable())

    def start(self) -> None:
        """Listen and serve, once in this object's life. Raises OSError when the address cannot be had."""
        with contextlib.ExitStack() as opened:
            # Never listens: it keeps the port ours while the fault `down` has closed the listener.
            holder = opened.enter_context(_bound(self._family, socket.SOCK_STREAM, self.host, self.port))
            self.port = holder.getsockname()[1]
            self.udp = _bound_pair(self._family, self.host)
            for end in self.udp:
                opened.enter_context(end)
            listen = opened.enter_context(_bound(self._family, socket.SOCK_STREAM, self.host, self.port))
            listen.listen()
            self._open_sockets = opened.pop_all()
        for name, run in (("sim-rtsp", self._loop.run_forever), ("sim-source", self._feed)):
            self._threads.append(threading.Thread(target=run, name=name, daemon=True))
        self._threads[0].start()
        self._call(self._open_listener(listen))
        self._loop.call_soon_threadsafe(self._report)
        self._threads[1].start()
        _log.debug("simulated camera serves", url=self.url)

    def stop(self) -> None:
        """Drop all clients and release threads and sockets. Idempotent."""
        if not self._threads:
            return
        self.faults.close()
        self._demand.stop()
        loop_thread, source_thread = self._threads
        source_thread.join(CALL_TIMEOUT_S)  # first: it may be waiting for the loop to take a picture
        self._call(self._close_listener())
        self._loop.call_soon_threadsafe(self._loop.stop)
        loop_thread.join(CALL_TIMEOUT_S)
        self._threads.clear()
        self._loop.close()
        self._open_sockets.close()

    def __enter__(self) -> RtspServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def joined(self, session: Session) -> None:
        """Called by a session that begins to play."""
        if self._source.keyframe_on_demand:
            self._demand.want_keyframe()
        elif sum(len(p) for unit in self._since_keyframe for p in unit) <= self.client_buffer_bytes:
            for packets in self._since_keyframe:
                session.needs_keyframe = False
                session.queue(packets)
        self._demand.set_watched(True)

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine on the server's thread and wait for it."""
        if not self._threads:
            work.close()
            raise RuntimeError("the RTSP server is not running: call start() first, or use it in a `with`")
        asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_TIMEOUT_S)

    def _feed(self) -> None:
        """The source's thread: hand each picture to the server's thread when it is due."""
        try:
            for unit in self._source.units(self._demand):
                asyncio.run_coroutine_threadsafe(self._broadcast(unit), self._loop).result(CALL_TIMEOUT_S)
        except Exception as error:
            # A source may fail in any way (its file was deleted, the encoder refused): then the camera is dead, and
            # its clients must see that rather than a silent connection.
            if self._demand.stopped:
                return
            _log.error("the source of a simulated camera failed", url=self.url, error=str(error))
            with contextlib.suppress(RuntimeError, concurrent.futures.TimeoutError):
                self._call(self._close_listener())

    async def _broadcast(self, unit: AccessUnit) -> None:
        packets = self.packetiser.packets(unit)
        self.stats.units += 1
        self.stats.packets += len(packets)
        if self.faults_state.corrupt:
            packets = [self._corrupted(packet) for packet in packets]
        if not self._source.keyframe_on_demand:
            self._keep(unit, packets)
        silent = bool(self.faults_state.silent)
        for session in self._playable():
            if silent:
                session.needs_keyframe = True  # what it misses now leaves a hole: start afresh afterwards
            elif session.playing and (unit.keyframe or not session.needs_keyframe):
                session.needs_keyframe = False
                session.queue(packets)
        if not silent and any(session.playing and session.needs_keyframe for session in self._playable()):
            self._demand.want_keyframe()

    def _keep(self, unit: AccessUnit, packets: list[bytes]) -> None:
        """Remember the packets since the last keyframe, up to a client's buffer."""
        if unit.keyframe:
            self._since_keyframe = []
        elif not self._since_keyframe:
            return
        self._since_keyframe.append(packets)
        if sum(len(p) for kept in self._since_keyframe for p in kept) > self.client_buffer_bytes:
            self._since_keyframe = []  # nobody could take it: new clients wait for the next keyframe

    def _corrupted(self, packet: bytes) -> bytes:
        """Overwrite a few bytes behind the RTP and FU-A headers, with the share that the fault asks for."""
        if len(packet) < 40 or self._noise.random() >= self.faults_state.corrupt:
            return packet
        self.stats.packets_corrupted += 1
        damaged = bytearray(packet)
        for at in self._noise.integers(16, len(packet), size=8):
            damaged[at] = int(self._noise.integers(256))
        return bytes(damaged)

    def _report(self) -> None:
        for session in self._playable():
            if session.playing and not self.faults_state.silent:
                session.send_report()
        self._loop.call_later(REPORT_INTERVAL_S, self._report)

    async def _open_listener(self, listen: socket.socket | None = None) -> None:
        if self._listener is None:
            if listen is None:
                listen = _bound(self._family, socket.SOCK_STREAM, self.host, self.port)
                listen.listen()
            self._listener = asyncio.create_task(self._accept(listen))

    async def _close_listener(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
            self._listener = None
        await self._drop_clients()

    async def _drop_clients(self) -> None:
        for session in self._sessions.values():
            if session:
                session.abort()
        for task in self._sessions:
            task.cancel()
        await asyncio.gather(*self._sessions, return_exceptions=True)

    async def _accept(self, listen: socket.socket) -> None:
        """Accept until cancelled. asyncio's own Server would lose a connection that it accepts while it is closed."""
        with listen:
            while True:
                try:
                    connection, _ = await self._loop.sock_accept(listen)
                except OSError as error:  # out of file descriptors: some will become free
                    _log.warning("simulated camera cannot accept a client", url=self.url, error=str(error))
                    await asyncio.sleep(0.1)
                    continue
                task = asyncio.create_task(self._serve(connection))
                self._sessions[task] = None
                task.add_done_callback(self._left)

    async def _serve(self, connection: socket.socket) -> None:
        self.stats.connections += 1
        reader = asyncio.StreamReader(limit=MAX_HEAD_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport, _ = await self._loop.connect_accepted_socket(lambda: protocol, connection, ssl=self._tls)
        except (OSError, asyncio.CancelledError):  # a failed TLS handshake, or _drop_clients
            connection.close()
            return
        writer = asyncio.StreamWriter(transport, protocol, reader, self._loop)
        if len(self._sessions) > self._max_clients:
            self.stats.refused += 1
            writer.write(response(503, "0"))
            writer.close()
            return
        task = asyncio.current_task()
        assert task is not None
        try:
            session = Session(self, connection, reader, writer)
        except OSError:  # the client has gone already
            writer.close()
            return
        self._sessions[task] = session
        with contextlib.suppress(asyncio.CancelledError):  # by _drop_clients: the session is over
            await session.run()

    def _left(self, task: asyncio.Task[None]) -> None:
        del self._sessions[task]
        if not task.cancelled() and task.exception():
            _log.error("a session of a simulated camera failed", url=self.url, error=repr(task.exception()))
        if not any(session.playing for session in self._playable()):
            self._demand.set_watched(False)

    def _playable(self) -> list[Session]:
        return [session for session in list(self._sessions.values()) if session]


def _bound(family: socket.AddressFamily, kind: socket.SocketKind, host: str, port: int) -> socket.socket:
    """A socket bound to the address; raises OSError that names it."""
    end = socket.socket(family, kind)
    try:
        if kind == socket.SOCK_STREAM:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        end.setblocking(False)
        end.bind((host, port))
    except OSError as error:
        end.close()
        raise OSError(error.errno, f"cannot listen on {host} port {port}: {error.strerror}") from error
    return end


def _bound_pair(family: socket.AddressFamily, host: str) -> tuple[socket.socket, socket.socket]:
    """UDP sockets on an even port and the next one, as RFC 3550 section 11 wants for RTP and RTCP."""
    for _ in range(100):  # a free even port with a free neighbour is found in two or three tries
        rtp = _bound(family, socket.SOCK_DGRAM, host, 0)
        if rtp.getsockname()[1] % 2 == 0:
            with contextlib.suppress(OSError):
                return rtp, _bound(family, socket.SOCK_DGRAM, host, rtp.getsockname()[1] + 1)
        rtp.close()
    raise OSError(errno.EADDRINUSE, f"no free pair of UDP ports on {host}")
