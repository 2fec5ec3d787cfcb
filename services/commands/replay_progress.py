"""How far a replay has come: one line on standard error that is written over, where a person looks."""

from __future__ import annotations

import math
import sys
import time

from services.commands.timeline import elapsed

# Often enough to be seen moving, seldom enough to cost nothing.
SHOW_S = 0.5
# Back to the line's beginning, and erase to its end (ECMA-48).
_ERASE = "\r\x1b[K"


class Progress:
    """Silent where standard error is no terminal."""

    def __init__(self) -> None:
        self._seen = sys.stderr.isatty()
        self._shown = False
        self._shown_s = -math.inf
        self._begun_s = 0.0

    def say(self, text: str) -> None:
        """Show this until something else is shown, or it is cleared."""
        if self._seen:
            sys.stderr.write(f"{_ERASE}{text}")
            sys.stderr.flush()
            self._shown = True

    def played(self, frames: int, played_us: int) -> None:
        """So many frames were played, the newest so long after the first."""
        now_s = time.monotonic()
        self._begun_s = self._begun_s or now_s
        if now_s - self._shown_s < SHOW_S:
            return
        self._shown_s = now_s
        took_s = now_s - self._begun_s
        speed = f", {frames / took_s:.1f} a second" if took_s else ""
        self.say(f"{elapsed(max(0, played_us))} played, {frames} frame{'s' * (frames != 1)}{speed}")

    def clear(self) -> None:
        """Before other lines are printed."""
        if self._shown:
            sys.stderr.write(_ERASE)
            sys.stderr.flush()
            self._shown = False
