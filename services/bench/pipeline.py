"""`sparsecam bench pipeline`: the whole live path beside the bare engine on the same cores, in turns."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import typer

from detector.choose import Choice, Trials, choose
from detector.cores import topology
from detector.model import read_model
from detector.settings import DetectorSettings
from services.bench.bare import BareResult, BareWorkers, placements
from services.bench.costs import keep_costs
from services.bench.figures import latency_summary
from services.bench.live import Turn, Window, run_turn
from services.bench.machine import command_line, keep_to, machine_facts, versions
from services.bench.pipeline_report import print_report
from services.bench.progress import steps
from services.bench.sources import Cameras, make_cameras
from services.bench.stages import HOW
from wire.messages import InputSpec


@dataclass(frozen=True)
class Job:
    """What to measure."""

    model: str
    sources: Sequence[str]
    count: int | None
    workers: int | None
    engine: str
    cores: str
    cores_per_worker: int
    square: bool
    live: bool
    profile: str
    fps: float | None
    window: Window
    rounds: int


def bench_pipeline(job: Job, *, as_json: bool) -> int:
    """Measure and print; returns the exit code."""
    if job.cores:
        keep_to(job.cores)
    before = machine_facts()
    wanted: dict[str, Any] = {
        "model": str(Path(job.model).resolve()),
        "engine": job.engine,
        "rectangular": not job.square,
        "cores_per_worker": job.cores_per_worker,
        "workers": job.workers or "auto",
    }
    settings = DetectorSettings.model_validate(wanted)
    model = read_model(Path(job.model))
    choice = choose(Trials(model, settings, settings.cores_per_worker))
    spec = InputSpec(choice.verdict.height, choice.verdict.width, model.stride, choice.rectangular)
    with ExitStack() as stack:
        cameras = make_cameras(
            job.sources, job.count, live=job.live, profile=job.profile, fps=job.fps, spec=spec, stack=stack
        )
        shapes = list(dict.fromkeys(cameras.shapes.values()))
        wanted["warm_shapes"] = [list(shape) for shape in shapes]
        wanted["shapes_cached"] = max(8, min(32, len(shapes)))
        measured = _take_turns(job, cameras, wanted, choice)
    document = {
        "command": command_line(),
        "machine": {**before, "load_average_after": machine_facts()["load_average"]},
        "versions": versions(),
        "model": model.name,
        "engine": measured.facts,
        "because": choice.because,
        "shapes": [list(shape) for shape in shapes],
        "live": cameras.live,
        "profile": job.profile,
        **summarise(measured, cameras),
    }
    keep_costs(document)
    if as_json:
        typer.echo(json.dumps(document))
    else:
        print_report(document)
    return 0


@dataclass(frozen=True)
class Measured:
    """All turns; the bare engine frame by frame between them, and at the end as many at once as workers take."""

    turns: list[Turn]
    ceilings: list[BareResult]
    batch: int
    batched: BareResult | None  # None where workers infer one by one
    facts: dict[str, Any]


def _take_turns(job: Job, cameras: Cameras, detector: dict[str, Any], choice: Choice) -> Measured:
    """Ceiling, pipeline, ceiling, pipeline... ceiling: what else the machine does hits both alike."""
    settings = DetectorSettings.model_validate(detector)
    machine = topology()
    workers = job.workers or max(1, machine.usable // settings.cores_per_worker)
    cpus = placements(machine, workers, settings.cores_per_worker)
    # A camera's shape as often as it has cameras: the mix of work is the pipeline's.
    mix = list(cameras.shapes.values())
    shapes = list(dict.fromkeys(mix)) if len(set(map(mix.count, mix))) == 1 else mix
    turns: list[Turn] = []
    model, num_cores, batch = read_model(Path(job.model)), settings.cores_per_worker, choice.batch
    batched = None
    with steps(2 * job.rounds + 1 + (batch > 1)) as bar:
        with BareWorkers(model, choice.engine, shapes, cpus=cpus, num_cores=num_cores) as bare:

            def ceiling() -> BareResult:
                bar.next(f"bare engine, {workers} workers")
                return bare.run(job.window.seconds, job.window.warmup_s)

            ceilings = [ceiling()]
            for number in range(job.rounds):
                bar.next(f"pipeline, {len(cameras.settings)} cameras, round {number + 1}")
                turns.append(run_turn(cameras, detector, job.window))
                ceilings.append(ceiling())
            facts = bare.facts
        if batch > 1:
            bar.next(f"bare engine, {workers} workers, batch {batch}")
            with BareWorkers(model, choice.engine, shapes, cpus=cpus, num_cores=num_cores, batch=batch) as bare:
                batched = bare.run(job.window.seconds, job.window.warmup_s)
    return Measured(turns, ceilings, batch, batched, facts)


def engine_cpu_ms(alone_ms: float, batched: BareResult | None, batch: int, share: float) -> float:
    """CPU milliseconds of the engine for a frame, when that share of all frames is inferred `batch` at once."""
    if batched is None:
        return alone_ms
    together_ms = 1e3 * batched.cpu_s / (batch * max(1, batched.runs))
    return share * together_ms + (1 - share) * alone_ms


def summarise(measured: Measured, cameras: Cameras) -> dict[str, Any]:
    """All figures. Speed and ratio are medians over the rounds; all else is of the last one."""
    turns, ceilings, batched = measured.turns, measured.ceilings, measured.batched
    last = turns[-1]
    # Each round against the ceilings before and after it.
    around = [(a.items_per_s + b.items_per_s) / 2 for a, b in pairwise(ceilings)]
    ratios = [turn.fps / ceiling for turn, ceiling in zip(turns, around, strict=True)]
    others = [turn.others_cores for turn in turns] + [one.others_cores for one in ceilings]
    cpu_ms = {role: round(1e3 * spent / last.frames, 3) for role, spent in last.cpu_s.items()}
    cpu_ms["total"] = round(sum(ms for role, ms in cpu_ms.items() if role != "load"), 3)
    bare_cpu_ms = 1e3 * sum(one.cpu_s for one in ceilings) / max(1, sum(one.runs for one in ceilings))
    share = last.stages.batched_share(measured.batch) if batched else 0.0
    engine_ms = engine_cpu_ms(bare_cpu_ms, batched, measured.batch, share)
    return {
        "fps": round(statistics.median(turn.fps for turn in turns), 2),
        "ceiling_fps": round(statistics.median(around), 2),
        "ratio": round(statistics.median(ratios), 4),
        "rounds": [
            {
                "fps": round(turn.fps, 2),
                "ceiling_fps": round(ceiling, 2),
                "ratio": round(ratio, 4),
                "others_cores": round(turn.others_cores, 3),
            }
            for turn, ceiling, ratio in zip(turns, around, ratios, strict=True)
        ],
        # The most that other programs took in any turn: above a few hundredths of a core fps and ratio are not to be
        # believed, and ratio_by_cpu is.
        "others_cores": round(max(others), 3),
        "frames": last.frames,
        "seconds": round(last.seconds, 3),
        "workers": last.workers,
        "stages": {"capture": last.capture, **last.stages.summaries()},
        "stages_how": HOW,
        "engine_ms": latency_summary([ms for one in ceilings for ms in one.latencies_ms]),
        "cpu_ms_per_frame": cpu_ms,
        "ceiling_cpu_ms_per_frame": round(bare_cpu_ms, 3),
        "batch": measured.batch,
        "batched_share": round(share, 4),  # of the frames, inferred `batch` at once
        "batched_ceiling_fps": round(batched.items_per_s, 2) if batched else None,
        # The bare engine's CPU time at the batches that the workers really took.
        "engine_cpu_ms_per_frame": round(engine_ms, 3),
        # What the ratio would be were CPU time all that counts; other load on the machine moves both sides alike.
        "ratio_by_cpu": round(bare_cpu_ms / cpu_ms["total"], 4) if cpu_ms["total"] else None,
        "cpu_seconds": round(sum(spent for role, spent in last.cpu_s.items() if role != "load"), 3),
        "detections": last.stages.boxes,
        "alerts": last.alerts,
        "cameras": conservation(last),
        "frame_age_p99_ms": last.stages.summaries()["age"].get("p99") if cameras.live else None,
        "fairness": fairness(last) if cameras.live and len(cameras.settings) > 1 else None,
    }


def conservation(turn: Turn) -> dict[str, dict[str, Any]]:
    """By camera: in flight before + captured = detected + dropped + in flight after."""
    table = {}
    for name, after in turn.after.items():
        before = turn.before[name]
        window = after.since(before)
        dropped = sum(window.dropped.values())
        table[name] = {
            "in_flight_before": before.in_flight,
            "captured": window.captured,
            "detected": window.detected,
            "dropped": window.dropped,
            "in_flight": after.in_flight,
            "balanced": before.in_flight + window.captured == window.detected + dropped + after.in_flight,
        }
    return table


def fairness(turn: Turn) -> float | None:
    """Most over fewest frames detected of a camera; None where one had none."""
    counts = [turn.stages.detected[name] for name in turn.after]
    return round(max(counts) / min(counts), 4) if min(counts) else None
