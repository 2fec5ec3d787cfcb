"""A pipeline benchmark as tables for a person."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

# A shell, a clock and a kernel thread or two; from there on others' work shows in the ratio.
QUIET_CORES = 0.05
# Roles of the product in the order of a frame's way.
ROLES = ("ingest", "broker", "detector", "valkey", "sink", "total", "load")


def print_report(document: dict[str, Any]) -> None:
    """Speed and ratio, stages, CPU by role, the books of each camera."""
    # A pipe has no width of its own; names must not be cut in a log.
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    shapes = ", ".join(f"{height}x{width}" for height, width in document["shapes"])
    console.print(
        f"{document['model']} on {document['engine'].get('engine')} at {shapes}, {document['workers']} workers, "
        f"{len(document['cameras'])} {'live ' if document['live'] else ''}cameras, profile {document['profile']}"
    )
    console.print(
        f"pipeline {document['fps']:.1f} FPS, bare engine on the same cores {document['ceiling_fps']:.1f}, "
        f"ratio {document['ratio']:.3f} (by CPU time {document['ratio_by_cpu']:.3f}); "
        f"{document['frames']} frames in {document['seconds']:.1f} s, {document['alerts']} alerts on the channel"
    )
    if document["batch"] > 1:
        console.print(
            f"{100 * document['batched_share']:.0f} % of the frames were inferred {document['batch']} at once; the "
            f"bare engine makes {document['batched_ceiling_fps']:.1f} FPS so, and "
            f"{document['engine_cpu_ms_per_frame']:.2f} CPU ms a frame in that mix"
        )
    rounds = ", ".join(f"{one['fps']:.1f}/{one['ceiling_fps']:.1f}={one['ratio']:.3f}" for one in document["rounds"])
    console.print(f"rounds: {rounds}")
    if document["others_cores"] > QUIET_CORES:
        console.print(
            f"Other programs took up to {document['others_cores']:.2f} cores meanwhile: FPS and ratio are not to be "
            "believed, the ratio by CPU time is."
        )
    console.print(_stages(document))
    console.print(_cpu(document))
    console.print(_cameras(document))
    if document["live"]:
        fair = document["fairness"]
        console.print(
            f"frame age p99 {document['frame_age_p99_ms']} ms; most/fewest detected of a camera "
            f"{'-' if fair is None else f'{fair:.3f}'}"
        )
    machine = document["machine"]
    console.print(
        f"{machine['processor']} ({', '.join(machine['instruction_sets'])}), cores {machine['cores_used']}, "
        f"load average {machine['load_average']} before, {machine['load_average_after']} after"
    )
    console.print(document["command"], soft_wrap=True)


def _stages(document: dict[str, Any]) -> Table:
    table = Table(title="milliseconds by stage", title_justify="left")
    for name in ("stage", "p50", "p95", "p99", "from where to where"):
        table.add_column(name, justify="left" if name in ("stage", "from where to where") else "right")
    for stage, figures in document["stages"].items():
        shown = [f"{figures[name]:.2f}" if name in figures else "-" for name in ("p50", "p95", "p99")]
        table.add_row(stage, *shown, document["stages_how"][stage])
    return table


def _cpu(document: dict[str, Any]) -> Table:
    table = Table(
        title="CPU milliseconds a detected frame, user and system",
        title_justify="left",
        caption="load: simulated cameras and this command itself, not part of the total",
    )
    spent = document["cpu_ms_per_frame"]
    roles = [role for role in ROLES if role in spent]
    for role in [*roles, "bare engine"]:
        table.add_column(role, justify="right")
    table.add_row(*(f"{spent[role]:.2f}" for role in roles), f"{document['ceiling_cpu_ms_per_frame']:.2f}")
    return table


def _cameras(document: dict[str, Any]) -> Table:
    title = "frames in the window: in flight before + captured = detected + dropped + in flight"
    table = Table(title=title, title_justify="left")
    for name in ("camera", "before", "captured", "detected", "dropped", "in flight", "law"):
        table.add_column(name, justify="left" if name in ("camera", "dropped") else "right")
    for name, row in document["cameras"].items():
        dropped = ", ".join(f"{count} {cause}" for cause, count in sorted(row["dropped"].items())) or "0"
        counts = (str(row[key]) for key in ("in_flight_before", "captured", "detected"))
        table.add_row(name, *counts, dropped, str(row["in_flight"]), "holds" if row["balanced"] else "BROKEN")
    return table
