"""`sparsecam export CHECKPOINT`: the ONNX file that workers load, and what it weighs and takes."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from detector import engines
from detector.errors import DetectorError, EngineRefused, EngineUnavailable, ModelError
from detector.model import MAX_MODEL_BYTES, Model, parse_model
from detector.prepare.graph import Graph
from detector.prepare.report import LayerSparsity, sparsity
from services.bench.compare import compare
from services.bench.errors import BenchError
from services.training import MissingExtra
from trainer.errors import TrainerError


@dataclass(frozen=True)
class Job:
    """What is wanted."""

    checkpoint: Path
    out: Path | None
    image_size: tuple[int, int] | None  # (height, width) in pixels
    batch: int
    dynamic: bool
    compress: bool
    licence: str
    engines: Sequence[str]  # to measure on: names, `all` or `none`; none given: all


@dataclass(frozen=True)
class Speed:
    """One engine's milliseconds a picture on one core, or why there are none."""

    engine: str
    ms: float = 0.0
    dense_ms: float = 0.0  # of the same network in fp32, none of its weights zero
    ratio: float = 0.0  # how many times as fast as dense
    refused: str = ""


@dataclass(frozen=True)
class Report:
    """What was written. Differences are the largest from PyTorch's output, on noise at two shapes."""

    file: str
    input: str
    quantised: bool
    metadata: dict[str, str]
    sides: float  # of a box, in parts of the picture's longer side
    score: float
    file_bytes: int
    compressed_bytes: int  # by gzip
    zeros: float  # part of the convolutions' weights, 0..1
    layers: list[LayerSparsity]
    speeds: list[Speed]


def export(job: Job, *, as_json: bool) -> int:
    """Write the file and print what it is; 0 when done, 1 when it is refused."""
    console = Console(stderr=True)
    try:
        names = _engines(job.engines)
        with console.status("exporting") as status:
            report = _export(job, names, status.update)
    except (TrainerError, DetectorError, OSError) as error:
        console.print(f"not exported: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
    else:
        _show(Console(highlight=False, soft_wrap=True, markup=False), report)
    return 0


def _engines(wanted: Sequence[str]) -> list[str]:
    """Engines to measure on; raises EngineUnavailable or EngineRefused for one that cannot, MissingExtra."""
    try:
        engines.engine_class("torch")
    except EngineUnavailable as error:
        raise MissingExtra(ImportError("PyTorch is not installed")) from error
    if list(wanted) == ["none"]:
        return []
    return engines.asked_for(wanted, "onnx", "the exported model")


def _export(job: Job, names: Sequence[str], progress: Callable[[str], None]) -> Report:
    from trainer.export import export_checkpoint, export_dense_twin
    from trainer.facts import read_facts

    out = job.out or job.checkpoint.with_suffix(".onnx")
    if out.resolve() == job.checkpoint.resolve():
        raise ModelError(f"{out}: would be written over what is exported; name another file with --out")
    data, name = _read(job.checkpoint), job.checkpoint.name
    facts = read_facts(data, name)
    if job.licence:
        facts = replace(facts, licence=job.licence)
    exported = export_checkpoint(data, name, facts, image_size=job.image_size, batch=job.batch, dynamic=job.dynamic)
    compressed = exported.compressed()
    _write(out, exported.onnx)
    if job.compress:
        _write(out.with_name(f"{out.name}.gz"), compressed)
    model = parse_model(exported.onnx, out.name)
    speeds = []
    if names:
        dense = export_dense_twin(data, name, image_size=job.image_size, batch=job.batch)
        twin = parse_model(dense.onnx, "dense")
        for engine in names:
            progress(f"measuring on {engine}")
            speeds.append(_speed(model, twin, engine, job.batch))
    graph = Graph(exported.onnx)
    layers = sparsity(graph)
    weights = [math.prod(layer.shape) for layer in layers]
    zeros = sum(layer.zeros * count for layer, count in zip(layers, weights, strict=True)) / max(sum(weights), 1)
    shape = [model.batch or "batch", 3, model.height or "height", model.width or "width"]
    return Report(
        file=str(out),
        input=f"{model.dtype} [{', '.join(map(str, shape))}]",
        quantised=exported.quantised,
        metadata={entry.key: entry.value for entry in graph.proto.metadata_props},
        sides=exported.sides,
        score=exported.score,
        file_bytes=len(exported.onnx),
        compressed_bytes=len(compressed),
        zeros=zeros,
        layers=layers,
        speeds=speeds,
    )


def _read(path: Path) -> bytes:
    """The checkpoint's bytes; raises ModelError."""
    try:
        size = path.stat().st_size
        if size > MAX_MODEL_BYTES:
            raise ModelError(f"{path}: {size} bytes is more than the {MAX_MODEL_BYTES} a checkpoint may have")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}; expected a checkpoint or an export") from error


def _write(target: Path, data: bytes) -> None:
    """Whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".export-", delete=False) as file:
        file.write(data)
    Path(file.name).chmod(0o644)
    Path(file.name).rename(target)


def _speed(model: Model, dense: Model, engine: str, batch: int) -> Speed:
    # The twin's shape is fixed, to what the model was exported for.
    assert dense.height is not None
    assert dense.width is not None
    try:
        ms, dense_ms = compare([model, dense], engine, (dense.height, dense.width), batch=batch)
    except (BenchError, EngineRefused) as error:
        return Speed(engine, refused=str(error))
    return Speed(engine, round(ms, 3), round(dense_ms, 3), round(dense_ms / ms, 3))


def _show(console: Console, report: Report) -> None:
    form = "INT8" if report.quantised else "fp32"
    console.print(f"{report.file}: {form}, input {report.input}; sizes that are multiples of 32 run as well")
    console.print(
        f"from PyTorch's output it differs by at most {report.sides:.1e} of a picture's side and "
        f"{report.score:.1e} of a score"
    )
    told = Table("it says", "", title="metadata", title_justify="left")
    for key, value in report.metadata.items():
        told.add_row(key, value if len(value) <= 100 else f"{value[:97]}...")
    console.print(told)
    layers = Table("layer", "weights", "zeros", "zero blocks of 4", title="sparsity", title_justify="left")
    for layer in report.layers:
        layers.add_row(layer.layer, "x".join(map(str, layer.shape)), f"{layer.zeros:.1%}", f"{layer.zero_blocks:.1%}")
    layers.add_row("all", "", f"{report.zeros:.1%}", "")
    console.print(layers)
    console.print(f"size {report.file_bytes / 1e6:.2f} MB, compressed {report.compressed_bytes / 1e6:.2f} MB (gzip)")
    if report.speeds:
        console.print(_speeds(report.speeds))
    for speed in report.speeds:
        if speed.refused:
            console.print(f"{speed.engine}: {speed.refused}")


def _speeds(speeds: Sequence[Speed]) -> Table:
    table = Table("engine", title="one core, ms a picture, the quickest of many", title_justify="left")
    for column in ("this model", "dense fp32", "times as fast"):
        table.add_column(column, justify="right")
    for speed in speeds:
        figures: tuple[Any, ...] = ("refused", "", "")
        if not speed.refused:
            figures = (f"{speed.ms:.2f}", f"{speed.dense_ms:.2f}", f"{speed.ratio:.2f}")
        table.add_row(speed.engine, *figures)
    return table
