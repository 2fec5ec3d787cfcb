"""A worker for link tests: takes frames, waits, notes each in a file, ends it. ARGS: endpoint, notes, ms, rings."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from wire.consumer import WorkSource
from wire.messages import InputSpec


def main(endpoint: str, notes: Path, work_ms: float, rings: Path | None) -> None:
    source = WorkSource(endpoint, InputSpec(32, 32, 32, False), capacity=2, stuck_s=30, on_stuck=print, rings=rings)
    with notes.open("a", buffering=1) as out:
        while True:
            if got := source.next(1.0):
                work, pixels = got
                time.sleep(work_ms / 1000)
                out.write(f"{work.frame.camera} {work.frame.seq} {bytes(pixels[:4]).hex()}\n")
                source.done(work, outcome="detected")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]) if sys.argv[4] else None)
