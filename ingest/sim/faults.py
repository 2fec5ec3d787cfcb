"""Faults that a simulated camera can show on demand: the ways in which real cameras and networks fail."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

# kind -> (what its value means, bounds of the value, value when none is given, what it does)
KINDS: dict[str, tuple[str, float, float, float | None, str]] = {
    "stall": ("", 0, 0, 0, "media stops, connections stay, RTSP still answers"),
    "hang": ("", 0, 0, 0, "connections stay, nothing at all is sent, not even answers"),
    "reset": ("", 0, 0, 0, "drop every TCP connection once (RST)"),
    "down": ("", 0, 0, 0, "refuse connections and drop those there are; back on the same port afterwards"),
    "flap": ("period, s", 0.2, 3600, None, "down for half of each period"),
    "401": ("", 0, 0, 0, "answer DESCRIBE, SETUP and PLAY with 401 Unauthorized"),
    "404": ("", 0, 0, 0, "answer them with 404 Not Found"),
    "503": ("", 0, 0, 0, "answer them with 503 Service Unavailable"),
    "corrupt": ("share of packets", 0, 1, 0.05, "overwrite bytes in this share of the video packets"),
    "slow": ("delay, s", 0, 600, 5, "answer each DESCRIBE this late"),
}
_SPEC = re.compile(r"(?P<kind>[a-z0-9]+)(=(?P<value>[0-9.]+))?(@(?P<start>[0-9.]+)(\+(?P<length>[0-9.]+))?)?")


@dataclass
class FaultState:
    """What is wrong just now. Written by the faults' caller, read by the server's thread; each field is one word."""

    silent: str = ""  # "", "media" (stall) or "all" (hang)
    status: int = 0  # answer of DESCRIBE, SETUP and PLAY; 0: none forced
    corrupt: float = 0.0  # share of packets
    slow_s: float = 0.0


@dataclass(frozen=True)
class FaultSpec:
    """One fault of a plan: what, from when, for how long (None: for good)."""

    kind: str
    value: float
    start_s: float = 0.0
    length_s: float | None = None


def parse_fault(text: str) -> FaultSpec:
    """Parse `KIND[=VALUE][@START[+LENGTH]]`, times in seconds after the server's start.

    `stall@10+5`: no media from second 10 to second 15. Raises ValueError saying what was expected.
    """
    match = _SPEC.fullmatch(text)
    if not match or match["kind"] not in KINDS:
        raise ValueError(
            f"fault {text!r} is not KIND[=VALUE][@START[+LENGTH]] (for example stall@10+5); kinds: {', '.join(KINDS)}"
        )
    meaning, low, high, default, _ = KINDS[match["kind"]]
    if match["value"] is not None and not meaning:
        raise ValueError(f"fault {text!r}: {match['kind']} takes no value")
    value = _number(text, match["value"]) if match["value"] is not None else default
    if value is None or not low <= value <= high:
        raise ValueError(f"fault {text!r}: {match['kind']} needs a value ({meaning}) from {low:g} to {high:g}")
    start = _number(text, match["start"] or "0")
    length = _number(text, match["length"]) if match["length"] else None
    return FaultSpec(match["kind"], value, start, length)


def _number(text: str, digits: str) -> float:
    try:
        return float(digits)
    except ValueError:
        raise ValueError(f"fault {text!r}: {digits!r} is not a number") from None


class Faults:
    """A server's fault switches. Each takes effect at once and lasts until `clear`, `up` or its opposite."""

    def __init__(self, state: FaultState, down: Callable[[], None], up: Callable[[], None], reset: Callable[[], None]):
        self._state = state
        self.down = down  # refuse connections, drop those there are
        self.up = up  # listen again, on the same port
        self.reset = reset  # drop every TCP connection with RST, go on listening
        self._flap_stop: threading.Event | None = None
        self._flap_thread: threading.Thread | None = None

    def stall(self) -> None:
        """Stop the media; connections stay and RTSP still answers (a dead encoder behind a live camera)."""
        self._state.silent = "media"

    def hang(self) -> None:
        """Send nothing at all; connections stay and new ones are accepted (a frozen camera)."""
        self._state.silent = "all"

    def resume(self) -> None:
        """End a stall or hang; media resumes at a keyframe. Requests that came meanwhile stay unanswered."""
        self._state.silent = ""

    def answer(self, status: int) -> None:
        """Answer DESCRIBE, SETUP and PLAY with this error status (401, 404, 503); 0: normally again."""
        self._state.status = status

    def corrupt(self, share: float) -> None:
        """Overwrite bytes in this share (0..1) of the video packets."""
        self._state.corrupt = share

    def slow(self, delay_s: float) -> None:
        """Answer each DESCRIBE this many seconds late."""
        self._state.slow_s = delay_s

    def flap(self, period_s: float) -> None:
        """Go down and up, half a period each, until `clear`."""
        self._end_flap()
        self._flap_stop = threading.Event()
        self._flap_thread = threading.Thread(
            target=self._flap, args=(period_s / 2, self._flap_stop), name="sim-flap", daemon=True
        )
        self._flap_thread.start()

    def clear(self) -> None:
        """End every fault: listen and answer normally."""
        self._end_flap()
        self._state.silent, self._state.status, self._state.corrupt, self._state.slow_s = "", 0, 0.0, 0.0
        self.up()

    def begin(self, spec: FaultSpec) -> None:
        """Begin the fault that a plan names."""
        actions: dict[str, Callable[[], None]] = {
            "stall": self.stall,
            "hang": self.hang,
            "reset": self.reset,
            "down": self.down,
            "flap": lambda: self.flap(spec.value),
            "corrupt": lambda: self.corrupt(spec.value),
            "slow": lambda: self.slow(spec.value),
        }
        actions.get(spec.kind, lambda: self.answer(int(spec.kind)))()

    def close(self) -> None:
        """End the flapping thread; leaves the rest as it is. The server calls it when it stops."""
        self._end_flap()

    def _end_flap(self) -> None:
        if self._flap_stop and self._flap_thread:
            self._flap_stop.set()
            self._flap_thread.join()
        self._flap_stop = self._flap_thread = None

    def _flap(self, half_s: float, stop: threading.Event) -> None:
        while True:
            self.down()
            if stop.wait(half_s):
                return
            self.up()
            if stop.wait(half_s):
                return


@contextmanager
def plan(faults: Faults, specs: list[FaultSpec]) -> Iterator[None]:
    """Run a plan of faults on a thread for as long as the context lasts. A fault's end clears all faults."""
    moments: list[tuple[float, Callable[[], None]]] = []
    for spec in specs:
        moments.append((spec.start_s, partial(faults.begin, spec)))
        if spec.length_s is not None:
            moments.append((spec.start_s + spec.length_s, faults.clear))
    moments.sort(key=lambda moment: moment[0])
    stop = threading.Event()

    def follow() -> None:
        began_s = time.monotonic()
        for moment_s, act in moments:
            if stop.wait(max(0.0, began_s + moment_s - time.monotonic())):
                return
            act()

    thread = threading.Thread(target=follow, name="sim-faults", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
