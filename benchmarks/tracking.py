"""`python -m benchmarks.tracking`: how well and how fast the tracker follows the simulated street.

Scenes of several seeds, their truth made as noisy as a detector's answers (see tracking_noise), at a full and at a low
frame rate. Scores are TrackEval's (HOTA, IDF1, MOTA at an overlap of 0.5); it needs numpy 2, so it gets an environment
of its own, made once. `--peer` adds Roboflow's ByteTrack on the same detections. Truth is what is in view by at least
30 %. A person and the bicycle they ride are two objects.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.peers.venvs import Environment, PeerUnavailable, default_cache, ready
from benchmarks.tracking_noise import VISIBLE, NoisyDetector
from ingest.sim.scene import Street, TruthBox
from ingest.sim.scene_url import SceneSpec
from sink.tracking import Tracker, TrackerSettings
from wire.logs import setup_logs
from wire.messages import Detection, DetectionRecord

TRACKEVAL = Environment("trackeval", ("trackeval==1.3.0",))
PEER = Environment("trackers", ("trackers==2.6.1",))
_PEER_MIN_IOU = 0.1  # its default; with 0.3, as ours, its HOTA was lower in three of the four kinds of scene
_ASK_TIMEOUT_S = 600
_START_US = 1_700_000_000_000_000


@dataclass(frozen=True)
class Scene:
    """One seed at one rate: what is true and what a detector says, frame by frame."""

    spec: SceneSpec
    fps: float
    truth: list[list[TruthBox]]
    records: list[DetectionRecord]


@dataclass(frozen=True)
class Run:
    """A tracker on one kind of scene."""

    tracker: str
    fps: float
    objects: int  # in a scene
    frames: int
    boxes_a_frame: float
    scores: dict[str, float]


def scene(spec: SceneSpec, fps: float, seconds: float) -> Scene:
    """Play a scene; of the street's frames those that a camera of `fps` shows."""
    street, detector, every = Street(spec), NoisyDetector(spec, fps, seed=1), spec.fps / fps
    truth = [street.truth(round(index * every)) for index in range(round(seconds * fps))]
    records = [record(index, fps, detector.look(boxes), spec) for index, boxes in enumerate(truth)]
    return Scene(spec, fps, truth, records)


def record(index: int, fps: float, detections: list[Detection], spec: SceneSpec) -> DetectionRecord:
    """What a worker would publish."""
    return DetectionRecord(
        camera="street",
        session="s1",
        seq=index,
        order=index,
        broker="b1",
        worker="w1",
        model="noise",
        event_us=_START_US + round(index * 1e6 / fps),
        captured_ns=0,
        dispatched_ns=0,
        inference_start_ns=0,
        inference_end_ns=0,
        source_height=spec.height,
        source_width=spec.width,
        detections=detections,
    )


def track(played: Scene, settings: TrackerSettings) -> list[list[list[Any]]]:
    """Our tracker: for each frame [[label, id, box]...]."""
    tracker = Tracker(settings)
    return [[[one.label, one.id, one.box] for one in tracker.step(record).tracks] for record in played.records]


def track_by_peer(played: Scene, python: Path) -> list[list[list[Any]]]:
    """The same by the peer, which `python` has; raises subprocess.SubprocessError when it fails."""
    frames = [[[one.label, one.score, one.box] for one in record.detections] for record in played.records]
    asked = {"fps": played.fps, "min_iou": _PEER_MIN_IOU, "frames": frames}
    tracked: list[list[list[Any]]] = _ask(python, "tracking_peer.py", asked)
    return tracked


def score(scenes: Sequence[Scene], tracked: Sequence[list[list[list[Any]]]], python: Path) -> dict[str, float]:
    """The scores of TrackEval, which `python` has, each class of each scene a sequence of its own."""
    sequences = []
    for played, tracks in zip(scenes, tracked, strict=True):
        for label in sorted({one.label for boxes in played.truth for one in boxes}):
            true = [
                [[one.object_id, one.box] for one in boxes if one.label == label and one.visible >= VISIBLE]
                for boxes in played.truth
            ]
            found = [[[id_, box] for of, id_, box in frame if of == label] for frame in tracks]
            sequences.append([{"truth": one, "tracks": other} for one, other in zip(true, found, strict=True)])
    scores: dict[str, float] = _ask(python, "tracking_scores.py", sequences)
    return scores


def _ask(python: Path, script: str, question: object) -> Any:
    done = subprocess.run(
        [str(python), str(Path(__file__).with_name(script))],
        input=msgspec.json.encode(question),
        stdout=subprocess.PIPE,
        timeout=_ASK_TIMEOUT_S,
        check=True,
    )
    return json.loads(done.stdout)


def speed_ms(objects: int, frames: int = 2000) -> tuple[float, float]:
    """Median and 99th percentile of a step with that many objects that walk about, two classes, noisy boxes."""
    rng, tracker, spec = np.random.default_rng(1), Tracker(TrackerSettings()), SceneSpec(width=1920, height=1080)
    speed = rng.uniform(-150, 150, (objects, 2))
    place = rng.uniform((0, 0), (1800, 900), (objects, 2))
    took = []
    for index in range(frames):
        place += speed / 25
        speed = np.where((place < 0) | (place > (1800, 900)), -speed, speed)
        edges = np.hstack([place, place + np.array([60, 150])]) + rng.normal(0, 2, (objects, 4))
        scores = rng.uniform(0.2, 0.95, objects)
        boxes = [
            Detection(("person", "car")[number % 2], 0, float(scores[number]), tuple(edges[number].tolist()))
            for number in range(objects)
        ]
        one = record(index, 25, boxes, spec)
        begin = time.perf_counter()
        tracker.step(one)
        took.append((time.perf_counter() - begin) * 1e3)
    return float(np.median(took)), float(np.percentile(took, 99))


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's description."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tracking", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=101, help="the tracker's figures were chosen on seeds 1 to 3")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--objects", type=int, nargs="+", default=[6, 20])
    parser.add_argument("--fps", type=float, nargs="+", default=[25, 5])
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the tracker")
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    setup_logs()  # to standard error; standard output belongs to the result
    settings = TrackerSettings.model_validate(dict(one.split("=", 1) for one in options.set))
    try:
        python = ready(TRACKEVAL, options.cache)
        peer = ready(PEER, options.cache) if options.peer else None
    except PeerUnavailable as error:
        print(f"not to be had here: {error}", file=sys.stderr)
        return 1
    runs = []
    for objects in options.objects:
        for fps in options.fps:
            spec = SceneSpec(objects=objects)
            seeds = range(options.first_seed, options.first_seed + options.seeds)
            scenes = [scene(replace(spec, seed=seed), fps, options.seconds) for seed in seeds]
            records = [one for played in scenes for one in played.records]
            boxes = sum(len(one.detections) for one in records) / len(records)
            by = {"sparsecam": [track(played, settings) for played in scenes]}
            if peer:
                by["trackers"] = [track_by_peer(played, peer) for played in scenes]
            runs += [
                Run(name, fps, objects, len(records), boxes, score(scenes, out, python)) for name, out in by.items()
            ]
    speeds = {objects: speed_ms(objects) for objects in (1, 3, 20, 100)}
    if options.json:
        print(json.dumps({"runs": [asdict(run) for run in runs], "speed_ms": speeds}, indent=2))
        return 0
    _show(runs, speeds)
    return 0


def _show(runs: list[Run], speeds: dict[int, tuple[float, float]]) -> None:
    table = Table(title="the simulated street, with noise")
    for title in (
        "tracker",
        "objects",
        "fps",
        "frames",
        "boxes a frame",
        "HOTA",
        "DetA",
        "AssA",
        "IDF1",
        "MOTA",
        "id switches",
    ):
        table.add_column(title, justify="right")
    for run in runs:
        shares = [f"{run.scores[name] * 100:.1f}" for name in ("HOTA", "DetA", "AssA", "IDF1", "MOTA")]
        table.add_row(
            str(run.objects),
            f"{run.fps:g}",
            str(run.frames),
            f"{run.boxes_a_frame:.1f}",
            *shares,
            str(run.scores["IDSW"]),
        )
    console = Console()
    console.print(table)
    for objects, (median, worst) in speeds.items():
        console.print(f"a step with {objects} objects: {median:.3f} ms, 99 % under {worst:.3f} ms")


if __name__ == "__main__":
    sys.exit(main())
