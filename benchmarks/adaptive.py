"""`python -m benchmarks.adaptive`: what the adaptive decode profile saves, and what it misses, beside `all`.

Each clip is read twice, as a live camera that delivers as fast as it is read: with `all` and with `adaptive`. CPU time
is that of this process: reading, decoding, fps limit and letterbox ("ingest"), and the detections on top. Appearances
are those of the `all` run: with a model, an object detected after a second without one; without, a picture that the
pixel motion gate passes after a second in which it passed none. An appearance is late by the event time from its first
frame under `all` to the first frame that adaptive detects it in, or, without a model, sends.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from bisect import bisect_left
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import cv2
import numpy as np
import structlog
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.idle_clips import encode
from detector.detector import Detector
from detector.errors import DetectorError
from detector.settings import DetectorSettings
from ingest.errors import SourceError
from ingest.frames import Picture
from ingest.motion import MotionGate
from ingest.prepare import Preparation
from ingest.reader import VideoReader
from ingest.settings import CameraSettings, IngestSettings, MotionSettings
from ingest.sim.scene_url import parse as parse_scene
from ingest.sources import parse
from ingest.status import CameraStatus
from ingest.wakefulness import WakefulnessSnapshot
from wire.ledger import CameraLedger
from wire.messages import FrameHeader, InputSpec
from wire.producer import CameraPort

Profile = Literal["all", "adaptive"]
APART_S = 1.0  # as long without it, and it appears anew
LATE_S = 0.5  # the promise


@dataclass
class Port:
    """Stands where the frame link stands: each frame that is sent is detected here and now."""

    detector: Detector | None
    spec: InputSpec
    ledger: CameraLedger = field(default_factory=lambda: CameraLedger("clip"))
    session: str = "benchmark"
    lossless: bool = False
    detect_s: float = 0.0
    compile_s: float = 0.0  # the first frame of a shape; no part of any figure
    sent_s: list[float] = field(default_factory=list)
    found: list[tuple[float, str]] = field(default_factory=list)  # event time, label

    def send(self, header: FrameHeader, pixels: NDArray[np.uint8]) -> bool:
        """Detect one frame and settle it."""
        time_s = header.event_us / 1e6
        self.ledger.sent(header.session, header.seq)
        self.sent_s.append(time_s)
        if self.detector is not None:
            begun_s = time.process_time()
            if not self.detector.is_compiled(header.height, header.width):
                self.detector.prepare(header.height, header.width)
                self.compile_s += time.process_time() - begun_s
                begun_s = time.process_time()
            self.found += [(time_s, it.label) for it in self.detector.detect(header, pixels)]
            self.detect_s += time.process_time() - begun_s
        self.ledger.settled(header.session, header.seq, "detected")
        return True


@dataclass(frozen=True)
class Run:
    """One clip under one profile."""

    ingest_s: float  # CPU
    asleep_ingest_s: float  # of it, from the first time it slept on
    detect_s: float
    frames: int
    detected: int
    dropped: dict[str, int]
    sent_s: list[float]
    found: list[tuple[float, str]]
    moved_s: list[float]
    slept_from_s: float | None  # stream time
    decoding: WakefulnessSnapshot


@dataclass(frozen=True)
class Comparison:
    """`all` and `adaptive` on one clip; CPU in seconds."""

    clip: str
    seconds: float  # of video
    all_ingest_s: float
    adaptive_ingest_s: float
    all_detect_s: float
    adaptive_detect_s: float
    ingest_ratio: float
    ratio: float  # ingest and detection
    steady_ingest_ratio: float | None  # both again from the first sleep on: without the start, when it learns
    steady_ratio: float | None
    awake_share: float
    wakes: dict[str, int]
    false_alarms: int
    state: str
    why: str
    truth: str  # what an appearance is here
    appearances: int
    missed: int
    late: int  # by more than LATE_S
    worst_delay_s: float


def play(path: Path, profile: Profile, fps: float | None, detector: Detector | None, *, gate: bool) -> Run:
    """Read a clip as a live camera."""
    settings = CameraSettings.model_validate({"source": str(path), "live": True, "profile": profile, "fps": fps})
    status = CameraStatus("clip", str(path), live=True)
    spec = detector.spec if detector else InputSpec(416, 416, 32, True)
    port = Port(detector, spec)
    preparation = Preparation(settings, cast(CameraPort, port), status)
    source = parse(settings.source, settings.live)
    motion = MotionGate(MotionSettings(enabled=True, max_quiet_s=3600))
    moved_s: list[float] = []
    aside_s, slept_from_s, slept_at_s = 0.0, None, 0.0
    begun_s = time.process_time()
    reader = VideoReader(source, settings, IngestSettings().max_pixels, wakefulness=status.wakefulness)
    try:
        for delivery in reader.deliveries():
            if slept_from_s is None and status.wakefulness.snapshot().decoding == "asleep":
                seen = status.wakefulness.snapshot()
                slept_from_s = seen.awake_s
                slept_at_s = time.process_time() - begun_s - aside_s - port.detect_s - port.compile_s
            if not isinstance(delivery, Picture):
                port.ledger.captured(delivery.count)
                port.ledger.dropped(delivery.cause, delivery.count)
                continue
            event_us = round((delivery.pts_s or 0.0) * 1e6)
            if gate:
                looking_s = time.process_time()
                if motion.passes(delivery.image, event_us):
                    moved_s.append(event_us / 1e6)
                aside_s += time.process_time() - looking_s
            preparation.handle(delivery, event_us)
    except SourceError as error:
        if error.kind != "ended":
            raise
    finally:
        reader.close()
    ingest_s = time.process_time() - begun_s - aside_s - port.detect_s - port.compile_s
    books = port.ledger.snapshot()
    assert books.balanced and not books.in_flight, books
    return Run(
        ingest_s=ingest_s,
        asleep_ingest_s=ingest_s - slept_at_s if slept_from_s is not None else 0.0,
        detect_s=port.detect_s,
        frames=books.captured,
        detected=books.detected,
        dropped=books.dropped,
        sent_s=port.sent_s,
        found=port.found,
        moved_s=moved_s,
        slept_from_s=slept_from_s,
        decoding=status.wakefulness.snapshot(),
    )


def appearances(times_s: list[float]) -> list[float]:
    """The times that follow APART_S or more without one."""
    ordered = sorted(times_s)
    return ordered[:1] + [b for a, b in itertools.pairwise(ordered) if b - a >= APART_S]


def delays(truth_s: list[float], seen_s: list[float], until_s: float) -> list[float | None]:
    """For each appearance, how much later it is first seen; None when not before the next one, or the end."""
    seen = sorted(seen_s)
    found: list[float | None] = []
    for begins_s, ends_s in itertools.zip_longest(truth_s, truth_s[1:], fillvalue=until_s):
        at = bisect_left(seen, begins_s - 1e-6)
        found.append(seen[at] - begins_s if at < len(seen) and seen[at] < ends_s else None)
    return found


def compare(path: Path, fps: float | None, detector: Detector | None, *, judge_by_model: bool) -> Comparison:
    """Run both profiles on a clip."""
    whole = play(path, "all", fps, detector, gate=not judge_by_model)
    adaptive = play(path, "adaptive", fps, detector, gate=False)
    assert whole.frames == adaptive.frames, (whole.frames, adaptive.frames)
    end_s = max(whole.sent_s) + 1
    late: list[float | None] = []
    if judge_by_model:
        for label in {label for _, label in whole.found}:
            truth = appearances([at for at, found in whole.found if found == label])
            late += delays(truth, [at for at, found in adaptive.found if found == label], end_s)
    else:
        late = delays(appearances(whole.moved_s), adaptive.sent_s, end_s)
    known = [each for each in late if each is not None]
    seconds = whole.sent_s[-1] - whole.sent_s[0]
    steady_ingest = steady = None
    if adaptive.slept_from_s is not None:
        share = 1 - adaptive.slept_from_s / seconds
        detect_s = adaptive.detect_s * sum(at >= adaptive.slept_from_s for at in adaptive.sent_s) / adaptive.detected
        steady_ingest = round(adaptive.asleep_ingest_s / (share * whole.ingest_s), 3)
        steady = round((adaptive.asleep_ingest_s + detect_s) / (share * (whole.ingest_s + whole.detect_s)), 3)
    return Comparison(
        clip=path.name,
        seconds=round(seconds, 1),
        all_ingest_s=round(whole.ingest_s, 3),
        adaptive_ingest_s=round(adaptive.ingest_s, 3),
        all_detect_s=round(whole.detect_s, 3),
        adaptive_detect_s=round(adaptive.detect_s, 3),
        ingest_ratio=round(adaptive.ingest_s / whole.ingest_s, 3),
        ratio=round((adaptive.ingest_s + adaptive.detect_s) / (whole.ingest_s + whole.detect_s), 3),
        steady_ingest_ratio=steady_ingest,
        steady_ratio=steady,
        awake_share=round(adaptive.decoding.awake_share, 3),
        wakes=dict(Counter(cast(dict[str, int], adaptive.decoding.wakes))),
        false_alarms=adaptive.decoding.false_alarms,
        state=adaptive.decoding.decoding,
        why=adaptive.decoding.why,
        truth="model" if judge_by_model else "motion",
        appearances=len(late),
        missed=late.count(None),
        late=sum(each > LATE_S for each in known),
        worst_delay_s=round(max(known, default=0.0), 3),
    )


def _table(rows: list[Comparison]) -> Table:
    table = Table(title="adaptive beside all, CPU seconds")
    for name in ("clip", "video s", "all", "adaptive", "ingest", "total", "asleep: ingest", "total", "awake"):
        table.add_column(name, justify="left" if name == "clip" else "right")
    for name in ("appear", "missed", "late", "worst s", "wakes"):
        table.add_column(name, justify="right")
    for it in rows:
        whole, adaptive = it.all_ingest_s + it.all_detect_s, it.adaptive_ingest_s + it.adaptive_detect_s
        table.add_row(
            it.clip,
            f"{it.seconds:.0f}",
            f"{whole:.2f}",
            f"{adaptive:.2f}",
            f"{it.ingest_ratio:.0%}",
            f"{it.ratio:.0%}",
            "-" if it.steady_ingest_ratio is None else f"{it.steady_ingest_ratio:.1%}",
            "-" if it.steady_ratio is None else f"{it.steady_ratio:.1%}",
            f"{it.awake_share:.0%}",
            f"{it.appearances} by {it.truth}",
            str(it.missed),
            str(it.late),
            f"{it.worst_delay_s:.2f}",
            ", ".join(f"{reason} {count}" for reason, count in it.wakes.items()) or it.state,
        )
    return table


def _clips(options: argparse.Namespace) -> list[Path]:
    clips = list(options.files)
    if options.made:
        size = f"size={options.size}&noise"
        frames = round(25 * options.seconds)
        for noise in (0, 4):
            clips += encode(parse_scene(f"sim://street?seed=3&objects=0&{size}={noise}"), frames, options.made)
        busy = "sim://street?seed=3&objects=2&quiet=15/20&size=640x360&noise=8"
        clips += encode(parse_scene(busy), frames, options.made)
    return clips


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adaptive", description=__doc__)
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="H.264 or H.265 clips")
    parser.add_argument("--model", type=Path, help="detect with this ONNX file; without, only ingest is measured")
    parser.add_argument("--judge", type=Path, nargs="*", default=[], help="the files in which the model knows objects")
    parser.add_argument("--engine", default="auto", help="as in the settings (default %(default)s)")
    parser.add_argument("--made", type=Path, metavar="FOLDER", help="also make and measure simulated clips, kept there")
    parser.add_argument("--seconds", type=float, default=60, help="of each made clip (default %(default)s)")
    parser.add_argument("--size", default="1920x1080", help="of the made quiet clips (default %(default)s)")
    parser.add_argument("--fps", type=float, default=5, help="detections a second; 0: no limit (default %(default)s)")
    parser.add_argument("--json", action="store_true")
    return parser


def main() -> None:
    """Print the table, or JSON; exit 1 when an appearance was missed or late, 2 when something cannot be read."""
    options = _parser().parse_args()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("warning"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    cv2.setNumThreads(1)
    try:
        detector = None
        if options.model:
            settings: dict[str, Any] = {"model": str(options.model), "engine": options.engine, "cores_per_worker": 1}
            detector = Detector.load(DetectorSettings.model_validate(settings))
        judged = {path.resolve() for path in options.judge}
        clips = _clips(options) + [path for path in options.judge if path not in options.files]
        rows = [
            compare(clip, options.fps or None, detector, judge_by_model=bool(detector) and clip.resolve() in judged)
            for clip in clips
        ]
    except (DetectorError, SourceError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    if options.json:
        print(json.dumps([asdict(it) for it in rows], indent=2))
    else:
        Console().print(_table(rows))
    if any(it.missed or it.late for it in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
