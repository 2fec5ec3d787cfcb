"""`python -m benchmarks.alerts`: does the rectangular letterbox raise the same alerts as the square one?

Each clip is a camera of one site: file source, every frame detected, real Valkey, real sink, the same rule. The site
runs once square and once rectangular. Two alerts are the same when camera and label agree and their event times,
counted from the clip's first frame, lie no further apart than the rule's window of frames: that is what a detection
more or less moves an alert by. Those further apart but within the cooldown are counted as `later`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.site import running_site
from services.config import Config
from services.process import report_path
from wire.alerts import ALERTS, from_json
from wire.health import HealthError, read_health
from wire.logs import setup_logs
from wire.messages import DetectionRecord, decode, decoder
from wire.redis_link import connect
from wire.streams import detections_key

# That of `sparsecam demo`.
RULE: dict[str, Any] = {"min_score": 0.4, "confirm_frames": 3, "window_frames": 5, "cooldown_s": 5}
KEPT = 1_000_000  # records in a stream: more than any clip has frames


@dataclass(frozen=True)
class Raised:
    """One alert; the time is from its clip's first frame."""

    camera: str
    label: str
    at_s: float
    score: float


@dataclass(frozen=True)
class Run:
    """One run of the site."""

    alerts: list[Raised]
    frame_s: dict[str, float]  # camera: median time between its frames
    shows: dict[str, dict[int, frozenset[str]]]  # camera: frame number: labels that the rule counts


@dataclass(frozen=True)
class Row:
    """One clip, compared."""

    clip: str
    frames: int
    frames_agree: float  # share of frames that show the same labels in both
    square: int  # alerts
    rectangular: int
    same: int
    later: int  # pairs within the cooldown, not within the window
    only_square: int
    only_rectangular: int
    worst_s: float | None  # largest distance of a pair


def run_site(
    clips: Sequence[Path], model: Path, engine: str, *, rectangular: bool, rule: dict[str, Any], limit_s: float
) -> Run:
    """Play all clips through a site of their own; raises RuntimeError with its log when they do not end in time."""
    content = {
        "cameras": {clip.stem: {"source": str(clip.resolve())} for clip in clips},
        "detector": {"model": str(model.resolve()), "engine": engine, "rectangular": rectangular},
        "rules": {"anything": rule},
        "redis": {"detections_maxlen": KEPT},
    }
    with running_site(content) as site:
        site.wait(lambda: _is_over(site.config), limit_s, "the clips did not come to their end")
        return _read(site.config)


def _is_over(config: Config) -> bool:
    """Every frame of every clip is detected, and the sink is done with them."""
    try:
        ingest = read_health(report_path(config.health_dir, "ingest", 0)).detail
        sink = read_health(report_path(config.health_dir, "sink", 0)).detail
    except HealthError:
        return False
    return bool(
        ingest.get("finished") and sink.get("read", 0) >= ingest.get("detected", 0) and not sink.get("alerts_waiting")
    )


def _read(config: Config) -> Run:
    rule = config.rules["anything"]
    records = decoder(DetectionRecord)
    first_us, frame_s, shows = {}, {}, {}
    with connect(config.redis, config.redis_url) as client:
        for camera in config.cameras:
            entries: Any = client.xrange(detections_key(camera))
            found = sorted((decode(records, fields[b"d"]) for _, fields in entries), key=lambda one: one.event_us)
            first_us[camera] = found[0].event_us
            times_s = [one.event_us / 1e6 for one in found]
            frame_s[camera] = statistics.median(b - a for a, b in pairwise(times_s))
            shows[camera] = {
                one.seq: frozenset(it.label for it in one.detections if it.score >= rule.min_score) for one in found
            }
        raised: Any = client.xrange(ALERTS)
        alerts = [alert for alert in (from_json(fields[b"d"]) for _, fields in raised) if alert.event == "opened"]
    return Run(
        sorted(
            (
                Raised(one.camera, one.label, _event_s(one.event_time) - first_us[one.camera] / 1e6, one.score)
                for one in alerts
            ),
            key=lambda one: (one.camera, one.label, one.at_s),
        ),
        frame_s,
        shows,
    )


def _event_s(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def pairs(one: Sequence[Raised], other: Sequence[Raised], within_s: float) -> list[tuple[Raised, Raised]]:
    """The nearest alerts of the same camera and label, each in one pair at most, the closest pairs first."""
    # Event times of different runs are floats of microseconds since 1970: a frame's time is good to less than 1 ms.
    near = sorted(
        (abs(a.at_s - b.at_s), i, j)
        for i, a in enumerate(one)
        for j, b in enumerate(other)
        if (a.camera, a.label) == (b.camera, b.label) and abs(a.at_s - b.at_s) <= within_s + 1e-3
    )
    taken_a: set[int] = set()
    taken_b: set[int] = set()
    found = []
    for _, i, j in near:
        if i not in taken_a and j not in taken_b:
            taken_a.add(i)
            taken_b.add(j)
            found.append((one[i], other[j]))
    return found


def compare(square: Run, rectangular: Run, rule: dict[str, Any]) -> list[Row]:
    """A row for each camera."""
    rows = []
    for camera, frame_s in square.frame_s.items():
        one = [alert for alert in square.alerts if alert.camera == camera]
        other = [alert for alert in rectangular.alerts if alert.camera == camera]
        in_all = pairs(one, other, rule["cooldown_s"])
        same = pairs(one, other, rule["window_frames"] * frame_s)
        shown, also = square.shows[camera], rectangular.shows[camera]
        rows.append(
            Row(
                clip=camera,
                frames=len(shown),
                frames_agree=round(sum(also.get(seq) == labels for seq, labels in shown.items()) / len(shown), 4),
                square=len(one),
                rectangular=len(other),
                same=len(same),
                later=len(in_all) - len(same),
                only_square=len(one) - len(in_all),
                only_rectangular=len(other) - len(in_all),
                worst_s=round(max(abs(a.at_s - b.at_s) for a, b in in_all), 3) if in_all else None,
            )
        )
    return rows


def print_table(rows: Sequence[Row]) -> None:
    """For a person."""
    table = Table(title="alerts, square and rectangular", title_justify="left")
    columns = ("clip", "frames", "agree", "square", "rect.", "same", "later", "only square", "only rect.", "worst s")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(
            row.clip,
            str(row.frames),
            f"{row.frames_agree:.1%}",
            *(str(n) for n in (row.square, row.rectangular, row.same, row.later)),
            *(str(n) for n in (row.only_square, row.only_rectangular)),
            "-" if row.worst_s is None else f"{row.worst_s:.3f}",
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def main() -> None:
    """Run both and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", nargs="+", type=Path, help="video files")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--min-score", type=float, default=RULE["min_score"])
    parser.add_argument("--cooldown-s", type=float, default=RULE["cooldown_s"])
    parser.add_argument("--limit-s", type=float, default=300.0, help="for each of the two runs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    setup_logs("warning")  # to standard error; standard output belongs to the result
    rule = {**RULE, "min_score": options.min_score, "cooldown_s": options.cooldown_s}
    square, rectangular = (
        run_site(options.clips, options.model, options.engine, rectangular=shape, rule=rule, limit_s=options.limit_s)
        for shape in (False, True)
    )
    rows = compare(square, rectangular, rule)
    if options.json:
        alerts = {"square": square.alerts, "rectangular": rectangular.alerts}
        document = {name: [asdict(one) for one in some] for name, some in alerts.items()}
        print(json.dumps({"rule": rule, "rows": [asdict(row) for row in rows], "alerts": document}))
    else:
        print_table(rows)


if __name__ == "__main__":
    main()
