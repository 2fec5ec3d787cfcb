"""`python -m benchmarks.peers`: run the peers in turns and print the table or the JSON."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog
from rich.console import Console
from rich.table import Table

from benchmarks.peers.protocol import WARM_UP_FRAMES, Job, Result
from benchmarks.peers.rivals import PEERS, REPOSITORY, Settings
from benchmarks.peers.turns import Patience, Row, Spread, cpu_ms, fps, others, ratio, take_turns
from benchmarks.peers.venvs import PeerUnavailable, default_cache
from detector.cores import parse_cpu_list
from services.machine import processor

SHARED = REPOSITORY.parent / "shared"
BASE = "article"  # ratios are to this peer


def main() -> None:
    """Exit 0 if at least one peer ran."""
    options = _options()
    # stdout is for the table or the JSON alone.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    job = Job(options.video, options.model, options.frames, options.cores, options.conf_thres, options.iou_thres)
    settings = Settings(
        options.venvs, options.timeout_s, options.ultralytics_shape, options.ultralytics_classes, options.engine
    )
    machine = _machine(options.cores)
    rows = _measure(job, settings, options)
    machine["load_average_after"] = os.getloadavg()[0]
    if options.json:
        print(json.dumps(_document(job, machine, rows), indent=2))
    else:
        _print_table(job, machine, rows)
    if not any(row.results for row in rows.values()):
        raise SystemExit(1)


def _measure(job: Job, settings: Settings, options: argparse.Namespace) -> dict[str, Row]:
    """A row for each peer asked for, in the order of PEERS; everything is installed before anything is timed."""
    runs, missing = {}, {}
    chosen = [peer.name for peer in PEERS if peer.name in options.peers]
    for peer in PEERS:
        if peer.name in chosen:
            try:
                runs[peer.name] = peer.prepare(peer.name, job, settings)
            except PeerUnavailable as error:
                missing[peer.name] = Row(peer.name, unavailable=str(error))
    ran = take_turns(runs, options.rounds, job.cores, Patience(options.quiet_s, options.repeats))
    return {name: ran.get(name) or missing[name] for name in chosen}


def _machine(cores: tuple[int, ...]) -> dict[str, Any]:
    found = processor()
    return {
        "processor": found.name,
        "instruction_sets": found.instruction_sets,
        "logical_cpus": found.logical,
        "cores_used": list(cores),
        "load_average_before": os.getloadavg()[0],
    }


def _document(job: Job, machine: dict[str, Any], rows: dict[str, Row]) -> dict[str, Any]:
    return {
        "command": _command(),
        "machine": machine,
        "video": job.video.name,
        "model": job.model.name,
        "frames": job.frames,
        "warm_up_frames": WARM_UP_FRAMES,
        "base": BASE,
        "peers": [_as_json(row, rows.get(BASE)) for row in rows.values()],
    }


def _as_json(row: Row, base: Row | None) -> dict[str, Any]:
    def plain(spread: Spread | None) -> dict[str, float] | None:
        return asdict(spread) if spread else None

    last = _last(row)
    return {
        "peer": row.name,
        "fps": plain(fps(row)),
        "ratio": plain(ratio(row, base)) if base else None,
        "cpu_ms_per_frame": plain(cpu_ms(row)),
        "taken_by_others": plain(others(row)),
        "detections": last and last.detections,
        "versions": last.versions if last else {},
        "rounds": [asdict(result) for result in row.results.values()],
        "unavailable": row.unavailable or None,
    }


def _print_table(job: Job, machine: dict[str, Any], rows: dict[str, Row]) -> None:
    table = Table(caption="median (lowest to highest) over the rounds; ratios are formed within each round")
    for name in ("peer", "FPS", f"x {BASE}", "CPU ms/frame", "others' CPU", "boxes", "what it is"):
        table.add_column(name, justify="left" if name in ("peer", "what it is") else "right")
    base = rows.get(BASE)
    for peer in PEERS:
        if row := rows.get(peer.name):
            times = ratio(row, base) if base else None
            spreads = (fps(row), 1), (times, 2), (cpu_ms(row), 1), (others(row), 2)
            figures = [_text(spread, digits) for spread, digits in spreads]
            last = _last(row)
            boxes = str(last.detections) if last and last.detections is not None else "-"
            engine = f", on {last.engine}" if last and last.engine else ""
            table.add_row(row.name, *figures, boxes, row.unavailable or peer.what + engine)
    # A pipe has no width of its own; names must not be cut in a log.
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    isa = ", ".join(machine["instruction_sets"])
    loads = f"load {machine['load_average_before']:.1f} before, {machine['load_average_after']:.1f} after"
    print(f"{machine['processor']} ({isa}), cores {machine['cores_used']} of {machine['logical_cpus']}, {loads}")
    print(f"{job.video.name}, {job.model.name}, {job.frames} frames a turn after {WARM_UP_FRAMES} of warm-up")
    print(_command())


def _last(row: Row) -> Result | None:
    return next(reversed(row.results.values()), None)


def _text(spread: Spread | None, digits: int) -> str:
    return f"{spread.median:.{digits}f} ({spread.low:.{digits}f}-{spread.high:.{digits}f})" if spread else "-"


def _command() -> str:
    return "python -m benchmarks.peers " + shlex.join(sys.argv[1:])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--table", action="store_true", help="print a table (the default)")
    parser.add_argument(
        "--video", type=_file, default=str(SHARED / "videos/pistol.mp4"), help="any clip; played in a loop"
    )
    model = str(SHARED / "weights/reference-pistols-yolov5n-int8-hardswish.onnx")
    parser.add_argument("--model", type=_file, default=model, help="one-class YOLOv5 ONNX, decoded head, uint8 input")
    parser.add_argument("--frames", type=_positive, default=600, help="frames timed a turn (default %(default)s)")
    parser.add_argument("--rounds", type=_positive, default=5, help="turns of each peer (default %(default)s)")
    parser.add_argument("--cores", type=_cores, default=(0, 1), help="CPUs, such as 0,1 or 0-3 (default 0,1)")
    parser.add_argument("--conf-thres", type=float, default=0.25, help="default %(default)s")
    parser.add_argument("--iou-thres", type=float, default=0.45, help="default %(default)s")
    names = [peer.name for peer in PEERS]
    parser.add_argument("--peers", nargs="+", choices=names, default=names, metavar="PEER", help=", ".join(names))
    parser.add_argument("--venvs", type=Path, default=default_cache(), help="folder of the peers' environments")
    parser.add_argument("--quiet-s", type=float, default=0, help="before each turn wait so long for idle cores")
    parser.add_argument("--repeats", type=int, default=0, help="repeat a turn that other programs disturbed so often")
    parser.add_argument("--timeout-s", type=float, default=300, help="longest turn (default %(default)s)")
    parser.add_argument("--ultralytics-shape", type=_shape, default=(256, 416), help="HEIGHTxWIDTH (default 256x416)")
    parser.add_argument("--ultralytics-classes", type=_positive, default=1, help="80 as in COCO; default %(default)s")
    parser.add_argument("--engine", default="auto", help="Sparsecam's (default %(default)s: the fastest here)")
    return parser.parse_args()


def _file(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return Path(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {text}")
    return int(text)


def _cores(text: str) -> tuple[int, ...]:
    allowed = os.sched_getaffinity(0)
    try:
        cores = parse_cpu_list(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected CPUs such as 0,1 or 0-3, found {text}") from None
    if not set(cores) <= allowed:
        raise argparse.ArgumentTypeError(f"this process may use the CPUs {sorted(allowed)}, not {text}")
    return cores


def _shape(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH, such as 256x416, found {text}")
    return int(height), int(width)


if __name__ == "__main__":
    main()
