"""Sparsecam itself: its whole live path, from decoding to the alert channel, by its own benchmark command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.protocol import Job, Result
from benchmarks.peers.venvs import PeerUnavailable

SECONDS = 2  # the command counts whole seconds of its own beside the frames; below this its ends weigh


def run(peer: str, job: Job, timeout_s: float, engine: str, arguments: Sequence[str]) -> Result:
    """One run of `sparsecam bench pipeline` on the job's cores, with an engine or `auto`; raises PeerUnavailable."""
    command = [sys.executable, "-m", "services.cli", "bench", "pipeline", "--json"]
    command += ["--source", str(job.video.resolve()), "--model", str(job.model.resolve())]
    command += ["--cores", ",".join(map(str, job.cores)), "--engine", engine, "--rounds", "1"]
    command += ["--frames", str(job.frames), "--seconds", str(SECONDS), *arguments]
    done = subprocess.run(
        command,
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode:
        if "No such command" in done.stderr:
            raise PeerUnavailable("not available: this version has no `sparsecam bench pipeline`")
        raise PeerUnavailable(f"`sparsecam bench pipeline` exited {done.returncode}: {done.stderr.strip()[-300:]}")
    return read_report(peer, done.stdout, job.frames)


def read_report(peer: str, text: str, frames: int) -> Result:
    """The command's JSON, of which `fps` must be there; raises PeerUnavailable."""
    try:
        found: dict[str, Any] = json.loads(text)
        fps = float(found["fps"])
    except (ValueError, KeyError, TypeError) as error:
        raise PeerUnavailable(f"`sparsecam bench pipeline --json` printed no fps: {error!r}") from error
    frames = int(found.get("frames", frames))
    return Result(
        peer,
        frames,
        float(found.get("seconds", frames / fps)),
        fps,
        found.get("cpu_seconds"),
        found.get("detections"),
        {str(name): str(number) for name, number in found.get("versions", {}).items()},
        found.get("engine", {}).get("engine"),
    )
