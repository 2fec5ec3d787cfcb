"""`sparsecam plan`: does this machine hold so many cameras, with how many workers, and how many would it hold."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from detector.choose import Trials, choose
from detector.cores import Topology, topology
from detector.engines import candidates
from detector.layout import placement_order, worker_sizes
from detector.model import Model, read_model
from detector.settings import DetectorSettings
from ingest.letterbox import target_shape
from services.bench.bare import BareWorkers, placements
from services.bench.costs import known_costs
from services.bench.decode_cost import PROFILES, measure_decode
from services.bench.figures import latency_summary
from services.bench.machine import command_line, machine_facts, versions
from services.bench.plan import BUSY_LIMIT, Plan, Point, Wish, best, check, make_plan
from wire.messages import InputSpec

WARM_UP_S = 0.5  # until the engine's first, slower runs are over


@dataclass(frozen=True)
class Job:
    """What was asked."""

    model: Path
    engine: str
    wish: Wish
    cores: int | None
    seconds: float  # for each point of the curve


def plan(job: Job, *, as_json: bool) -> int:
    """Measure, add up, print; exit code 1 when the machine does not hold the load."""
    machine = topology()
    check(job.wish, job.cores, machine.usable)
    if job.cores is not None:
        machine = _first_cores(machine, job.cores)
    model = read_model(job.model)
    settings = DetectorSettings.model_validate({"model": str(job.model), "engine": job.engine})
    choice = choose(Trials(model, settings, 1, _say_trial(settings, model)))
    spec = InputSpec(choice.verdict.height, choice.verdict.width, model.stride, choice.rectangular)
    camera = job.wish.camera
    shape = target_shape(camera.height, camera.width, spec)
    sizes = worker_sizes(machine)
    steps = _Steps(len(sizes) + 1 + (choice.batch > 1))
    steps.next(f"decoding {camera.width}x{camera.height} (kept for the next plan)")
    decode = measure_decode(camera, spec, settings.cache_dir)
    curve = [
        _point(model, choice.engine, shape, machine=machine, size=size, batch=1, seconds=job.seconds, steps=steps)
        for size in sizes
    ]
    chosen = best(curve)
    batched = None
    if choice.batch > 1:
        batched = _point(
            model,
            choice.engine,
            shape,
            machine=machine,
            size=chosen.cores_per_worker,
            batch=choice.batch,
            seconds=job.seconds,
            steps=steps,
        )
    costs = known_costs()

    def planned(wish: Wish) -> Plan:
        return make_plan(wish, chosen, decode, costs, machine.capacity, batched=batched)

    made = planned(job.wish)
    held = {profile: planned(replace(job.wish, profile=profile)).cameras_held for profile in PROFILES}
    document = {
        "command": command_line(),
        "machine": machine_facts(),
        "versions": versions(),
        "model": model.name,
        "engine": choice.engine,
        "shape": list(shape),
        "cameras": job.wish.cameras,
        "fps": job.wish.fps,
        "camera": {name: getattr(camera, name) for name in ("width", "height", "fps", "keyframe_s")},
        "profile": job.wish.profile,
        "busy_share": job.wish.busy_share,
        "holds": made.holds,
        "cameras_held": made.cameras_held,
        "cameras_held_by_profile": held,
        "limited_by": made.limited_by,
        "workers": made.workers,
        "cores_per_worker": made.cores_per_worker,
        "batch": made.batch,
        "usable_cores": made.usable,
        "busy_limit": BUSY_LIMIT,
        "utilisation": round(made.utilisation, 4),
        "cores_by_part": made.cores,
        "curve": [asdict(point) for point in [*curve, *([batched] if batched else [])]],
        "decode_cost_ms": {name: getattr(decode, name) for name in decode.__struct_fields__},
        "frame_costs_ms": {name: getattr(costs, name) for name in costs.__struct_fields__},
        "arithmetic": made.lines,
    }
    if as_json:
        typer.echo(json.dumps(document))
    else:
        _print(document, made)
    return 0 if made.holds else 1


class _Steps:
    """Says on standard error what is measured now: the answer, on standard output, comes tens of seconds later."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._begun = 0

    def next(self, what: str) -> None:
        """This step begins."""
        self._begun += 1
        typer.echo(f"measuring {what}, {self._begun} of {self._total}", err=True)


def _say_trial(settings: DetectorSettings, model: Model) -> Callable[[str, str], None]:
    """For `Trials.before`: each engine is counted when it is first tried, its further shapes are not."""
    wanted = candidates(settings.engine, model.format, model.name)
    seen: set[str] = set()

    def say(engine: str, what: str) -> None:
        known = engine in wanted and engine not in seen
        count = f", {wanted.index(engine) + 1} of {len(wanted)} (kept for the next start)" if known else ""
        seen.add(engine)
        typer.echo(f"measuring {engine} at {what}{count}", err=True)

    return say


def _first_cores(machine: Topology, count: int) -> Topology:
    cores = tuple(placement_order(machine, count)[:count])
    os.sched_setaffinity(0, {cpu for core in cores for cpu in core.cpus})
    return replace(machine, cores=cores)


def _point(
    model: Model,
    engine: str,
    shape: tuple[int, int],
    *,
    machine: Topology,
    size: int,
    batch: int,
    seconds: float,
    steps: _Steps,
) -> Point:
    workers = max(1, machine.usable // size)
    steps.next(f"{workers} worker{'s' * (workers > 1)} of {size} core{'s' * (size > 1)}, batch {batch}")
    with BareWorkers(
        model, engine, [shape], cpus=placements(machine, workers, size), num_cores=size, batch=batch
    ) as bare:
        result = bare.run(seconds, WARM_UP_S)
    latency_ms = latency_summary(result.latencies_ms)["median"]
    core_ms = 1e3 * result.cpu_s / (result.runs * batch)
    return Point(size, workers, batch, round(result.items_per_s, 2), latency_ms, round(core_ms, 3))


def _print(document: dict[str, Any], made: Plan) -> None:
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False, soft_wrap=True)
    camera, profile = document["camera"], document["profile"]
    answer = "holds" if made.holds else "does NOT hold"
    console.print(
        f"This machine {answer} {document['cameras']} cameras of {camera['width']}x{camera['height']} at "
        f"{camera['fps']:g} fps with {document['fps']:g} detections a second each "
        f"(profile {profile}); it would hold {made.cameras_held}."
    )
    by_profile = ", ".join(f"{name} {count}" for name, count in document["cameras_held_by_profile"].items())
    quota = document["machine"]["quota_cores"]
    if quota is not None:
        console.print(f"The CPU quota pays for {quota:g} cores; {made.usable:g} are planned with.")
    console.print(f"Cameras held by profile: {by_profile} (adaptive busy {document['busy_share']:.3g} of the time)")
    console.print(
        f"Set detector.workers: {made.workers}, detector.cores_per_worker: {made.cores_per_worker}; batch {made.batch}"
        f" ({document['engine']} at {document['shape'][0]}x{document['shape'][1]})\n"
    )
    table = Table(title="engine, all workers at once", title_justify="left")
    for name in ("workers x cores", "batch", "items/s", "median ms", "CPU ms/item"):
        table.add_column(name, justify="right")
    for point in document["curve"]:
        one = Point(**point)
        row = f"{one.items_per_s:.1f}", f"{one.latency_ms:.2f}", f"{one.core_ms:.2f}"
        table.add_row(f"{one.workers} x {one.cores_per_worker}", str(one.batch), *row)
    console.print(table)
    if made.batch > 1:
        console.print(f"Workers infer {made.batch} frames at once when so many wait, else one by one.\n")
    for line in made.lines:
        console.print(line)
    table = Table(title=f"cores used by {document['cameras']} cameras", title_justify="left")
    for part in [*made.cores, "all", "of"]:
        table.add_column(part, justify="right")
    shares = [f"{share:.3f}" for share in made.cores.values()]
    table.add_row(*shares, f"{made.used:.3f}", f"{made.usable:g} ({100 * made.utilisation:.0f} %)")
    console.print(table)
    console.print(
        f"At most {100 * BUSY_LIMIT:.0f} % of the cores are planned for. Load average while measuring: "
        f"{document['machine']['load_average']}; CPU times, of which all this is made, hardly feel it."
    )
