"""`sparsecam models prepare IN OUT`: a model in the form its engine runs fastest, and what that changed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from detector.engines import installed
from detector.errors import DetectorError, EngineRefused, EngineUnavailable, ModelError
from detector.model import read_model
from detector.prepare.prepare import PreparationRefused, Prepared, prepare_model
from detector.prepare.report import Report
from detector.prepare.verify import Pixels
from trainer.data.pictures import read_image

_PICTURE_KINDS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_MOST_PICTURES = 20  # half a second a shape and step for the reference model; more would hardly find more
_LAYERS_SHOWN = 10  # those with the most zeros; --json has all


def prepare(
    source: Path,
    target: Path,
    *,
    engine: str,
    batch: int,
    image_shape: tuple[int, int] | None,
    as_json: bool,
    images: Path | None = None,
) -> int:
    """Write the prepared model to `target`; 0 when done, 1 when it is refused.

    `engine` `auto` prepares for every installed engine and keeps the fastest form. `images` is a folder of pictures to
    compare on; without it generated ones are used. The source file is only read.
    """
    console = Console(stderr=True)
    try:
        model = read_model(source)
        pictures = _pictures(images)
        with console.status("preparing") as status:

            def form(name: str) -> Prepared:
                return prepare_model(
                    model,
                    name,
                    batch=batch,
                    image_shape=image_shape,
                    pictures=pictures,
                    progress=lambda doing: status.update(f"for {name}: {doing}"),
                )

            done = _fastest(form) if engine == "auto" else form(engine)
        _write(target, done.onnx)
    except (DetectorError, OSError) as error:
        console.print(f"not prepared: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    if as_json:
        typer.echo(json.dumps({"source": str(source), "target": str(target), **done.report.to_builtins()}, indent=2))
    else:
        _show(Console(), done.report, target)
    return 0


def _fastest(form: Callable[[str], Prepared]) -> Prepared:
    """The form for the engine that runs its own form fastest; raises EngineRefused where none takes the model."""
    found: list[Prepared] = []
    refusals: list[str] = []
    for name in installed("onnx"):
        try:
            found.append(form(name))
        except PreparationRefused:
            raise  # the same for every engine
        except EngineRefused as error:
            refusals.append(str(error))
    if not found:
        if refusals:
            raise EngineRefused("; ".join(refusals))
        raise EngineUnavailable("no inference engine is installed: pip install onnxruntime")
    return min(found, key=lambda one: one.report.after.ms.get(one.report.engine, float("inf")))


def _pictures(folder: Path | None) -> list[Pixels]:
    """Pictures of a folder as BGR, evenly spread over it; raises ModelError where there is none."""
    if folder is None:
        return []
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURE_KINDS)
    chosen = paths[:: max(1, -(-len(paths) // _MOST_PICTURES))]
    pictures = [picture for path in chosen if (picture := read_image(path)) is not None]
    if not pictures:
        raise ModelError(f"{folder}: no pictures in it ({', '.join(_PICTURE_KINDS)})")
    return pictures


def _write(target: Path, onnx: bytes) -> None:
    """Whole or not at all, also where source and target are one file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".prepared-", delete=False) as file:
        path = Path(file.name)
        try:
            file.write(onnx)
            file.flush()
            path.chmod(0o644)
            path.rename(target)
        except OSError as error:  # a full disk, or a folder of that name
            path.unlink(missing_ok=True)
            raise OSError(error.errno, f"cannot be written: {error.strerror}", str(target)) from error


def _show(console: Console, report: Report, target: Path) -> None:
    shapes = "and smaller heights and widths" if report.rectangular else "only"
    console.print(
        f"{report.model} for {report.engine}, batch {report.batch}, {report.height}x{report.width} {shapes}: "
        f"{target}\nlargest difference of the output on {report.pictures} pictures: {report.largest_difference:.2g}",
        highlight=False,
    )
    steps = Table("step", "", "what it did, or why it was left out", title="steps", title_justify="left")
    for step in report.steps:
        steps.add_row(step.name, "[green]taken[/]" if step.taken else "left out", step.detail)
    console.print(steps)
    console.print(_sizes(report))
    console.print(_sparsity(report))


def _sizes(report: Report) -> Table:
    table = Table("", "before", "after", title="one core, ms a picture", title_justify="left")
    before, after = report.before, report.after
    table.add_row("nodes", str(before.nodes), str(after.nodes))
    table.add_row("size", f"{before.size_bytes / 1e6:.2f} MB", f"{after.size_bytes / 1e6:.2f} MB")
    for name in dict.fromkeys([*before.ms, *after.ms, *before.refused, *after.refused]):
        table.add_row(name, *(f"{form.ms[name]:.2f} ms" if name in form.ms else "refused" for form in (before, after)))
    return table


def _sparsity(report: Report) -> Table:
    table = Table("layer", "weights", "zeros", "zero blocks of 4", title="sparsity", title_justify="left")
    for layer in sorted(report.layers, key=lambda one: -one.zeros)[:_LAYERS_SHOWN]:
        shape = "x".join(map(str, layer.shape))
        table.add_row(layer.layer, shape, f"{layer.zeros:.1%}", f"{layer.zero_blocks:.1%}")
    if len(report.layers) > _LAYERS_SHOWN:
        table.caption = f"the {_LAYERS_SHOWN} of {len(report.layers)} layers with the most zeros; --json has all"
    return table
