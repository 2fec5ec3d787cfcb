"""Knows a frame again that came before, in a small and fixed amount of memory.

Twice the same comes from a repeated send, within seconds, and numbers rise within a session. So one bit a number will
do, for the newest WINDOW numbers of each of the newest SESSIONS sessions: 1 KiB a session. A set of (session, number)
that remembered as many frames took 1.4 MiB a camera, and filled up for half an hour at five frames a second.
"""

from __future__ import annotations

from collections import OrderedDict

# More than a minute of the fastest cameras (120 frames a second), and 20 s of a file at 400.
WINDOW = 8192
# Runs of a camera's reader that are remembered. There is one at a time; a restart of ingest makes a new one.
SESSIONS = 4


class Seen:
    """The numbers of one camera's frames that came before."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, _Window] = OrderedDict()

    def add(self, session: str, seq: int) -> bool:
        """Remember a frame (`seq` >= 0); returns whether it was remembered already."""
        window = self._sessions.get(session)
        if window is None:
            window = self._sessions[session] = _Window()
            if len(self._sessions) > SESSIONS:
                self._sessions.popitem(last=False)
        self._sessions.move_to_end(session)
        return window.add(seq)


class _Window:
    """A ring of bits for the numbers from `newest` - WINDOW + 1 to `newest`."""

    def __init__(self) -> None:
        self._newest = -1
        self._bits = bytearray(WINDOW // 8)

    def add(self, seq: int) -> bool:
        if seq <= self._newest - WINDOW:
            return False  # forgotten long ago
        if seq >= self._newest + WINDOW:
            self._bits = bytearray(WINDOW // 8)
        else:
            for skipped in range(self._newest + 1, seq + 1):
                byte, mask = _place(skipped)
                self._bits[byte] &= ~mask
        self._newest = max(self._newest, seq)
        byte, mask = _place(seq)
        known = bool(self._bits[byte] & mask)
        self._bits[byte] |= mask
        return known


def _place(seq: int) -> tuple[int, int]:
    """Byte and mask of a number's bit."""
    return seq % WINDOW >> 3, 1 << (seq & 7)
