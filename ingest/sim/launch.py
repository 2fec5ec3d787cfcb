"""Start a simulated camera in a process of its own, so that its drawing and encoding do not disturb the ingest."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Sequence

from ingest.sim.faults import parse_fault
from ingest.sim.scene_url import parse
from wire.program import module

# A cold start (imports, background, encoder) takes 1-2 s on one core; this allows for a busy machine.
START_TIMEOUT_S = 30.0
# Drawing and encoding give way to decoding and inference: a late camera only skips frames.
NICE = 10
_STOP_TIMEOUT_S = 1.0  # for a polite end, before SIGKILL


class SimulatedCameraError(RuntimeError):
    """The camera's process did not come up; says why."""


class SimulatedCamera:
    """A running simulated camera. Ends with `close`, with its context, or with the process that launched it."""

    def __init__(self, url: str, process: subprocess.Popen[str], rtsp_url: str) -> None:
        self.url = url
        self.rtsp_url = rtsp_url
        self.pid = process.pid
        self._process = process

    @property
    def alive(self) -> bool:
        """Does its process run?"""
        return self._process.poll() is None

    def close(self) -> None:
        """End the process, within two seconds. Idempotent."""
        _end(self._process)

    def __enter__(self) -> SimulatedCamera:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def launch(url: str, *, faults: Sequence[str] = ()) -> SimulatedCamera:
    """Start the camera of a sim:// URL and wait until it serves. May be called from several threads at once.

    `faults` are plans such as `stall@10+5` (see ingest.sim.faults.parse_fault). Raises SceneUrlError or ValueError for
    a bad URL or fault, SimulatedCameraError when the process does not come up.
    """
    parse(url)
    for fault in faults:
        parse_fault(fault)
    wanted = [word for fault in faults for word in ("--fault", fault)]
    command = module("ingest.sim", "serve", url, "--port", "0", "--parent", str(os.getpid()), *wanted)
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,  # its end tells the child that we are gone
        stdout=subprocess.PIPE,
        text=True,
    )
    timer = threading.Timer(START_TIMEOUT_S, process.kill)
    timer.daemon = True
    timer.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
    finally:
        timer.cancel()
    try:
        said: dict[str, str] = json.loads(line)
        return SimulatedCamera(url, process, said["rtsp_url"])
    except (ValueError, KeyError) as error:
        _end(process)
        raise SimulatedCameraError(
            f"the simulated camera {url} did not come up within {START_TIMEOUT_S:g} s "
            f"(exit status {process.returncode}); its own message is on standard error"
        ) from error


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
