"""`sparsecam bench engine`: the bare engine on a model, sync or async, as the reference benchmarks measure it.

sync: one stream on `num_cores` cores, the latency of one picture. async: as many streams as the cores hold, each a
process pinned to cores of its own as our workers are, for the most pictures a second.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from detector.choose import full_shape
from detector.cores import Topology, topology
from detector.engines import asked_for
from detector.model import Model, read_model
from detector.settings import DetectorSettings
from services.bench.bare import BareWorkers, placements
from services.bench.errors import BenchError
from services.bench.figures import Summary, latency_summary
from services.bench.machine import command_line, machine_facts, versions
from services.bench.model_facts import model_facts
from services.bench.progress import steps

Scenario = Literal["sync", "async"]


@dataclass(frozen=True)
class Job:
    """What to measure."""

    model: Path
    engines: Sequence[str]  # names, or "all" installed ones; none: all
    num_cores: int | None  # of one stream; None: all for sync, one for async
    batch: int
    image_shape: tuple[int, int] | None
    scenario: Scenario
    streams: int | None  # None: one for sync, as many as the cores hold for async
    seconds: float
    warmup_s: float


@dataclass
class Row:
    """One engine's figures, or why there are none."""

    engine: str
    num_cores: int
    streams: int
    batch: int
    items_per_s: float = 0.0
    latency_ms: Summary = field(default_factory=dict)
    cpu_ms_per_item: float = 0.0
    runs: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    refused: str = ""


def bench_engine(job: Job, *, as_json: bool) -> int:
    """Measure and print; exit code 1 when no engine takes the model."""
    model = read_model(job.model)
    settings = DetectorSettings.model_validate({"model": str(job.model), "image_shape": job.image_shape})
    height, width = full_shape(model, settings)
    num_cores, streams = layout(job, topology())
    names = asked_for(job.engines, model.format, model.name)
    rows = []
    with steps(len(names)) as bar:
        for name in names:
            bar.next(f"{name}: {job.warmup_s + job.seconds:g} s")
            rows.append(_measure(model, name, (height, width), num_cores=num_cores, streams=streams, job=job))
    document = {
        "command": command_line(),
        "machine": machine_facts(),
        "versions": versions(),
        "model": {**model_facts(model), "input": [job.batch, 3, height, width]},
        "scenario": job.scenario,
        "seconds": job.seconds,
        "engines": [asdict(row) for row in rows],
    }
    if as_json:
        typer.echo(json.dumps(document))
    else:
        _print(document, rows)
    return 0 if any(row.runs for row in rows) else 1


def layout(job: Job, machine: Topology) -> tuple[int, int]:
    """(cores a stream, streams); raises BenchError for what the machine does not have."""
    have = machine.usable
    num_cores = job.num_cores or (have if job.scenario == "sync" else 1)
    if num_cores > have:
        raise BenchError(f"--num-cores {num_cores}: this process may use {have} cores")
    streams = job.streams or (1 if job.scenario == "sync" else have // num_cores)
    if job.scenario == "sync" and streams != 1:
        raise BenchError(f"--streams {streams}: the sync scenario has one stream; use --scenario async")
    if streams * num_cores > have:
        raise BenchError(
            f"--streams {streams} of {num_cores} cores need {streams * num_cores} cores; this process may use {have}. "
            f"At most {have // num_cores} streams"
        )
    return num_cores, streams


def _measure(model: Model, name: str, shape: tuple[int, int], *, num_cores: int, streams: int, job: Job) -> Row:
    row = Row(name, num_cores, streams, job.batch)
    cpus = placements(topology(), streams, num_cores)
    try:
        with BareWorkers(model, name, [shape], cpus=cpus, num_cores=num_cores, batch=job.batch) as workers:
            result = workers.run(job.seconds, job.warmup_s)
            row.facts = workers.facts
    except BenchError as error:
        row.refused = str(error)
        return row
    row.items_per_s = round(result.items_per_s, 2)
    row.latency_ms = latency_summary(result.latencies_ms)
    row.runs = result.runs
    row.cpu_ms_per_item = round(1e3 * result.cpu_s / max(1, result.runs * job.batch), 3)
    return row


def _print(document: dict[str, Any], rows: list[Row]) -> None:
    model = document["model"]
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False, soft_wrap=True)
    size = f"{model['bytes'] / 1e6:.1f} MB, " + (
        "a checkpoint" if model["nodes"] is None else f"{model['nodes']} nodes, {model['quantised_nodes']} of them INT8"
    )
    console.print(f"{model['name']}: {size}; input {model['input']} {model['dtype']}")
    console.print(f"scenario {document['scenario']}, {document['seconds']:g} s; latency in milliseconds a batch")
    table = Table()
    for name in (
        "engine",
        "streams x cores",
        "batch",
        "items/s",
        "mean",
        "median",
        "p90",
        "p95",
        "p99",
        "std",
        "CPU ms/item",
    ):
        table.add_column(name, justify="left" if name == "engine" else "right")
    for row in rows:
        if row.refused:
            continue
        latency = [f"{row.latency_ms[name]:.2f}" for name in ("mean", "median", "p90", "p95", "p99", "std")]
        table.add_row(
            row.engine,
            f"{row.streams} x {row.num_cores}",
            str(row.batch),
            f"{row.items_per_s:.1f}",
            *latency,
            f"{row.cpu_ms_per_item:.2f}",
        )
    if any(not row.refused for row in rows):
        console.print(table)
    for row in rows:
        if row.refused:
            console.print(row.refused)
    machine = document["machine"]
    console.print(
        f"{machine['processor']} ({', '.join(machine['instruction_sets'])}), cores {machine['cores_used']}, "
        f"load average {machine['load_average']}",
        highlight=False,
    )
