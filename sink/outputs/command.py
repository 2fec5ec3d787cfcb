"""Command: a program is started for each alert, with the alert's JSON on its standard input.

No shell is involved, so nothing in an alert can become a command. Exit code 0 means taken.
"""

from __future__ import annotations

import math
import os
import select
import signal
import subprocess
import threading
import time
from contextlib import suppress

from sink.outputs.delivery import Failed, Output, Unreachable
from sink.outputs.settings import CommandSettings
from wire.alerts import Alert

# Of what the program prints its end is kept as the reason of a failure; the rest is read and forgotten.
OUTPUT_BYTES = 500
# How often the reader of the output looks whether the program has ended, in case a child of it keeps the pipe open.
LOOK_S = 0.1
# The program gets the process's environment, but for what may hold our own secrets.
_OURS = ("SPARSECAM", "REDIS_URL")


class Command(Output):
    """Starts the program once for each alert."""

    def __init__(self, settings: CommandSettings) -> None:
        self._settings = settings

    def deliver(self, alert: Alert, text: bytes) -> None:
        """Run the program to its end; what runs too long is killed, with all it started in its process group."""
        argv, timeout_s = self._settings.argv, self._settings.timeout_s
        printed = _Tail()
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=printed.sink,
                stderr=subprocess.STDOUT,
                env=_environment(alert),
                start_new_session=True,  # a process group of its own, to be killed as one
            )
        except (OSError, ValueError) as error:
            printed.end()
            raise Unreachable(f"{argv[0]!r} cannot be started: {error}") from None
        try:
            # A program that does not read its input is no error: communicate leaves out broken pipes.
            process.communicate(text, timeout_s)
        except subprocess.TimeoutExpired:
            raise Failed(f"{argv[0]!r} did not end in {timeout_s:g} s") from None
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if process.stdin is not None:
                with suppress(OSError):
                    process.stdin.close()
            said = printed.end()
        if process.returncode:
            raise Failed(f"{argv[0]!r} ended with {process.returncode}" + (f": {said}" if said else ""))

    def close(self) -> None:
        """Nothing stays open."""


def _environment(alert: Alert) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return {
        **kept,
        "SPARSECAM_ALERT_ID": alert.id,
        "SPARSECAM_INCIDENT": alert.incident,
        "SPARSECAM_EVENT": alert.event,
        "SPARSECAM_CAMERA": alert.camera,
        "SPARSECAM_RULE": alert.rule,
    }


class _Tail:
    """The end of what is written to `sink`, however much that is."""

    def __init__(self) -> None:
        self._source, self.sink = os.pipe()
        self._tail = b""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read, name="command-output", daemon=True)
        self._thread.start()

    def end(self) -> str:
        """Stop reading; the printable end of it."""
        os.close(self.sink)
        self._ended.set()
        self._thread.join()
        text = self._tail.decode(errors="replace")
        return "".join(character if character.isprintable() else " " for character in text).strip()

    def _read(self) -> None:
        until_s = math.inf
        while time.monotonic() < until_s:
            ready, _, _ = select.select([self._source], [], [], LOOK_S)
            if ready:
                block = os.read(self._source, 65536)
                self._tail = (self._tail + block)[-OUTPUT_BYTES:]
            if (ready and not block) or (not ready and self._ended.is_set()):
                break
            if self._ended.is_set():  # a child that was left behind may go on talking for ever
                until_s = min(until_s, time.monotonic() + LOOK_S)
        os.close(self._source)
