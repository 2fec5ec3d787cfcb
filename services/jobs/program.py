"""One program of a job: at low priority, in a session of its own, gone when we are, its output read line by line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from services.process import UNFORESEEN
from wire.logs import redact

# Runs before the program in the new process. Nice 19 and a readiness to be killed first when memory ends: the cameras
# are watched on this machine too. PR_SET_PDEATHSIG: the kernel kills it when our thread dies, however it dies; it
# survives exec. A separate small program and not `preexec_fn`, which may deadlock in a process that has threads.
_LAUNCHER = """
import ctypes, os, signal, sys
parent = int(sys.argv[1])
os.nice(19)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")
    except OSError:
        pass
if os.getppid() != parent:
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""

LONGEST_LINE = 2000  # characters: enough for any sentence, and a table's row
LINES_HELD = 2000  # between two looks of ours, a fraction of a second apart; more are counted and lost
LAST_LINES = 20  # of which the reason for a failure is told
READ_BYTES = 8192


class Program:
    """A running one. For the thread that lives as long as this process; look at `lines` and `poll` now and then."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            (sys.executable, "-c", _LAUNCHER, str(os.getpid()), *command),
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._held: deque[str] = deque()
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._lock = threading.Lock()
        self.shed = 0
        self._reader = threading.Thread(target=self._read, name="output of a job", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Its process id, which is its session's and group's too."""
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        process = self._process
        if process.returncode is None and os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            # What it had started (loaders of pictures, a trial of an engine) ends with it. Not waited for yet, it keeps
            # its number, which is theirs too, from being given to anybody else.
            self._signal_group(signal.SIGKILL)
            process.wait()
            self._reader.join(timeout=1.0)
        return process.returncode

    def lines(self) -> list[str]:
        """What it printed since the last call."""
        with self._lock:
            found = list(self._held)
            self._held.clear()
        return found

    def reason(self) -> str:
        """Its last line: where our own commands say what was wrong, and Python which error it was."""
        with self._lock:
            last = [line.removeprefix("sparsecam: ") for line in reversed(self._last) if line.strip()]
        # The sentence that ends a report of an error tells nothing of it; the error's own line stands before.
        return next((line for line in last if line != UNFORESEEN), "".join(last[:1]))

    def stop(self, within_s: float) -> None:
        """Ask it to stop; kill it, and all it started, when it has not."""
        if self.poll() is None:
            os.kill(self._process.pid, signal.SIGTERM)
        until_s = time.monotonic() + within_s
        while self.poll() is None:
            if time.monotonic() > until_s:
                self._signal_group(signal.SIGKILL)
            time.sleep(0.02)

    def _signal_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _read(self) -> None:
        output = self._process.stdout
        assert output is not None
        rest = b""
        with output:
            while chunk := os.read(output.fileno(), READ_BYTES):
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    self._hold(line)
                if len(rest) > LONGEST_LINE * 4:  # bytes of a character; a progress bar draws over its line for ever
                    rest = rest.rpartition(b"\r")[2]
                if len(rest) > LONGEST_LINE * 4:
                    self._hold(rest)
                    rest = b""
        if rest:
            self._hold(rest)

    def _hold(self, line: bytes) -> None:
        # Of a progress bar, what was seen last.
        text = redact(line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace"))
        if len(text) > LONGEST_LINE:
            text = text[: LONGEST_LINE - 1] + "…"
        with self._lock:
            self._last.append(text)
            if len(self._held) >= LINES_HELD:
                self.shed += 1
            else:
                self._held.append(text)
