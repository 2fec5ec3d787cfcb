"""Heartbeats on connections between hosts: a path that went dead without a word is noticed, and connected anew."""

from __future__ import annotations

import zmq

# Beats of ZeroMQ's own (ZMTP 3.1, PING and PONG), sent and answered by its I/O thread, however busy the process is.
EVERY_MS = 1000
# Longer than the two seconds in which peers take each other for dead: those only wait, this drops what is on its way.
SILENCE_MS = 5000


def beat_between_hosts(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Before connect or bind. A connection on one host needs none: its end is known at once."""
    if endpoint.startswith("tcp://"):
        socket.heartbeat_ivl, socket.heartbeat_timeout = EVERY_MS, SILENCE_MS
        socket.heartbeat_ttl = SILENCE_MS
