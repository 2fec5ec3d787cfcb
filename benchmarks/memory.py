"""`python -m benchmarks.memory`: does any process of the live path grow? A file in a loop, resident memory over time.

The slope is that of a least-squares line through the samples after the warm-up. Its standard error takes the samples
for independent, which memory is not quite: a single step within the run looks like a slope of several errors. A leak
goes on and a step does not: where a slope is several errors from zero, look at the samples (`--json`) or run longer.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.site import Site, running_site
from services.commands.demo import RULE
from services.process import report_path
from wire.health import HealthError, read_health
from wire.logs import setup_logs
from wire.redis_link import connect

STARTING_S = 180.0  # trying and compiling a model on a slow machine
MIB = 2**20


@dataclass(frozen=True)
class Growth:
    """One process; memory in MiB."""

    process: str
    first: float
    last: float
    most: float
    slope_per_min: float
    slope_error_per_min: float
    restarted: bool  # then the figures are of several processes, and mean nothing
    samples: list[tuple[float, float]]  # seconds since the first sample, MiB


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Slope of the least-squares line and its standard error; of at least three points."""
    count = len(points)
    if count < 3:
        raise ValueError(f"{count} samples: a slope and its error need three; sample more often, or for longer")
    mean_x = sum(x for x, _ in points) / count
    mean_y = sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    residual = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    return slope, math.sqrt(residual / (count - 2) / spread)


def growth(process: str, samples: Sequence[tuple[float, float]], *, restarted: bool = False) -> Growth:
    """What samples of (seconds, MiB) say."""
    slope, error = line(samples)
    sizes = [size for _, size in samples]
    return Growth(process, sizes[0], sizes[-1], max(sizes), 60 * slope, 60 * error, restarted, list(samples))


def measure(
    source: Path, model: Path, engine: str, *, seconds: float, warmup_s: float, every_s: float
) -> tuple[list[Growth], int, float]:
    """Run it; returns the processes, and how many frames were detected in how many seconds meanwhile."""
    content = {
        "cameras": {"demo": {"source": str(source.resolve()), "loop": True}},
        "detector": {"model": str(model.resolve()), "engine": engine},
        "rules": {"anything": RULE},
    }
    samples: dict[str, list[tuple[float, float]]] = {}
    with running_site(content) as site:
        site.wait(lambda: _detected(site) > 0, STARTING_S, "no frame was detected")
        _pass(site, warmup_s)
        with connect(site.config.redis, site.config.redis_url) as client:
            valkey_pid = int(client.info("server")["process_id"])
        restarts = dict(site.supervisor.restarts)
        begun_s, before = time.monotonic(), _detected(site)
        while (at_s := time.monotonic() - begun_s) < seconds:
            for name, pid in _pids(site, valkey_pid).items():
                samples.setdefault(name, []).append((round(at_s, 2), psutil.Process(pid).memory_info().rss / MIB))
            _pass(site, min(every_s, max(0.0, seconds - at_s)))
        frames, span_s = _detected(site) - before, time.monotonic() - begun_s
        died = {name for name, count in site.supervisor.restarts.items() if count != restarts.get(name, 0)}
    return [growth(name, found, restarted=name in died) for name, found in samples.items()], frames, span_s


def _pass(site: Site, seconds: float) -> None:
    until_s = time.monotonic() + seconds
    site.wait(lambda: time.monotonic() >= until_s, seconds + 10, "")


def _pids(site: Site, valkey_pid: int) -> dict[str, int]:
    pids = {child.spec.name: child.pid for child in site.supervisor.children if child.pid is not None}
    return {**pids, "valkey": valkey_pid}


def _detected(site: Site) -> int:
    try:
        return int(read_health(report_path(site.config.health_dir, "ingest", 0)).detail.get("detected", 0))
    except HealthError:
        return 0


def print_table(rows: Sequence[Growth], title: str) -> None:
    """For a person."""
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(("process", "first MiB", "last", "most", "MiB a minute", "+-", "")):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        sizes = (f"{size:.1f}" for size in (row.first, row.last, row.most))
        slope = f"{row.slope_per_min:+.3f}", f"{row.slope_error_per_min:.3f}"
        table.add_row(row.process, *sizes, *slope, "restarted" if row.restarted else "")
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="a video file, played in a loop at full speed")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--seconds", type=float, default=600.0)
    # At 400 frames a second Valkey's stream has come to its length by then; its allocator settles in the minute after.
    parser.add_argument("--warmup-s", type=float, default=30.0)
    parser.add_argument("--every-s", type=float, default=5.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not 0 < options.every_s <= options.seconds / 3:
        parser.error("--every-s: a slope and its error need three samples within --seconds")
    setup_logs("warning")  # to standard error; standard output belongs to the result
    rows, frames, span_s = measure(
        options.source,
        options.model,
        options.engine,
        seconds=options.seconds,
        warmup_s=options.warmup_s,
        every_s=options.every_s,
    )
    fps = frames / span_s
    if options.json:
        document: dict[str, Any] = {"seconds": span_s, "frames": frames, "fps": fps}
        print(json.dumps({**document, "processes": [asdict(row) for row in rows]}))
    else:
        print_table(rows, f"resident memory over {span_s:.0f} s, {frames} frames, {fps:.0f} a second")


if __name__ == "__main__":
    main()
