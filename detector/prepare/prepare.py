"""Prepare a model for an engine: rewrite step by step, and keep a step only if the outputs stay what they were.

A step that would change the outputs is left out, with the difference and the first node that shows it. Then the engine
itself tries the result in a child process, for DeepSparse ends its process on some graphs; steps it does not bear are
left out as well. At last the result is compared on pictures that no step has seen, and refused if it differs there.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detector import heads
from detector.choose import full_shape
from detector.engines import candidates, installed
from detector.errors import EngineRefused, HeadError, ModelError
from detector.heads import Head
from detector.model import Model, parse_model
from detector.prepare.activations import HardSwishForm, rewrite_hard_swish
from detector.prepare.graph import Graph
from detector.prepare.head_layout import decode_before_transpose
from detector.prepare.report import Measured, Report, Step, sparsity
from detector.prepare.simplify import fold_requantisation, has_float16, keep_outputs, merge_duplicates, simplify
from detector.prepare.uint8_input import take_bytes
from detector.prepare.verify import Difference, Form, Pixels, Reference, compare, generated_pictures, reference, session
from detector.prepare.weights import sign_weights
from detector.preprocess import GREY, letterbox
from detector.settings import DetectorSettings
from detector.trial import Verdict, try_model
from wire.messages import InputSpec

# Measured, see detector/prepare/activations.py.
_HARD_SWISH: dict[str, HardSwishForm] = {"onnxruntime": "hardsigmoid-mul"}
_TRIAL_TIMEOUT_S = 120.0
_STEP_PICTURES = 3  # of those given, for comparing after every step; the others judge the result

Rewrite = Callable[[bytes], tuple[bytes, str]]  # ONNX bytes to ONNX bytes and what was done, empty when nothing
Progress = Callable[[str], None]
Pictures = dict[tuple[int, int], list[Pixels]]  # at each shape (height, width)


class PreparationRefused(ModelError):
    """The prepared model would not say what the original says."""


@dataclass(frozen=True)
class Prepared:
    """A model in its new form, and how it came about."""

    onnx: bytes
    report: Report


@dataclass(frozen=True)
class _Job:
    """The original, its head, and where forms are compared with it."""

    model: Model
    engine: str
    head: Head
    batch: int
    shapes: tuple[tuple[int, int], ...]  # (height, width), the full one first
    references: list[Reference]  # the original at each shape
    timeout_s: float
    progress: Progress

    @property
    def full(self) -> tuple[int, int]:
        return self.shapes[0]

    @property
    def open(self) -> bool:
        """Whether the model runs at other shapes too, and must go on doing so."""
        return len(self.shapes) > 1


def prepare_model(
    model: Model,
    engine: str,
    *,
    batch: int = 1,
    image_shape: tuple[int, int] | None = None,
    pictures: Sequence[Pixels] = (),
    measure: bool = True,
    timeout_s: float = _TRIAL_TIMEOUT_S,
    progress: Progress = lambda _: None,
) -> Prepared:
    """Rewrite `model` for `engine`, at a fixed batch and, where `image_shape` (height, width) is given, a fixed shape.

    Without `image_shape` a model that runs at other shapes still does afterwards. `pictures` are uint8 BGR of any
    size, letterboxed here; without them generated ones are compared. `progress` is told what is being done. Raises
    ModelError, HeadError, EngineUnavailable, EngineRefused, or PreparationRefused with the difference and the node.
    """
    if model.format != "onnx":
        raise ModelError(f"{model.name} is a PyTorch checkpoint; only ONNX can be prepared: export it first")
    candidates(engine, model.format, model.name)
    shape = full_shape(model, DetectorSettings(image_shape=image_shape))
    progress("running the original")
    head = _head(model, model.with_shape(batch, *shape), batch, shape)
    shapes = (shape,) if image_shape else (shape, *_smaller_shape(model, head, batch, shape))
    seen = _fitted(pictures[:_STEP_PICTURES], shapes, batch) or _generated(shapes, batch, seed=1)
    job = _Job(model, engine, head, batch, shapes, _references(model, head, batch, seen), timeout_s, progress)
    base = _with_input(job, model.data)
    rewrites = _rewrites(job)
    onnx, steps = _apply(job, base, rewrites)
    progress(f"trying it on {engine}")
    if not _try(job, onnx, engine).accepted:
        progress(f"{engine} refuses that form: looking for the step it does not bear")
        onnx, steps = _bearable(job, base, rewrites, steps)
    onnx = _with_metadata(job, onnx)
    progress("comparing on pictures that no step has seen")
    unseen = _fitted(pictures[_STEP_PICTURES:], shapes, batch) or _generated(shapes, batch, seed=2)
    final = _difference(dataclasses.replace(job, references=_references(model, head, batch, unseen)), onnx)
    if not final.equal:
        raise PreparationRefused(
            f"{model.name}: prepared for {engine} its output would differ by {final.largest:.3g}, first "
            f"at {final.node}; nothing was written. Steps taken: "
            + ", ".join(step.name for step in steps if step.taken)
        )
    before_graph = Graph(model.data)
    before, after = Measured(len(before_graph.nodes), len(model.data)), Measured(len(Graph(onnx).nodes), len(onnx))
    if measure:
        progress("measuring both on every installed engine")
        before, after = _measured(job, model.data, before), _measured(job, onnx, after)
    report = Report(
        model=model.name,
        engine=engine,
        batch=batch,
        height=shape[0],
        width=shape[1],
        rectangular=job.open,
        pictures=len(unseen[shape]),
        largest_difference=final.largest,
        steps=steps,
        before=before,
        after=after,
        layers=sparsity(before_graph),
    )
    return Prepared(onnx, report)


def _rewrites(job: _Job) -> dict[str, Rewrite]:
    """The steps for one engine, in order."""
    form = _HARD_SWISH.get(job.engine, "add-clip-mul-div")

    def edit(change: Callable[[Graph], str]) -> Rewrite:
        def rewrite(onnx: bytes) -> tuple[bytes, str]:
            graph = Graph(onnx)
            done = change(graph)
            return graph.to_bytes(), done

        return rewrite

    def fold(onnx: bytes) -> tuple[bytes, str]:
        graph = Graph(onnx)
        if has_float16(graph):
            return onnx, ""
        smaller = _with_input(job, simplify(_with_input(job, onnx, symbolic=job.open)))
        now = len(Graph(smaller).nodes)
        return smaller, f"{len(graph.nodes)} nodes to {now}" if now != len(graph.nodes) else ""

    return {
        "unused outputs": edit(lambda graph: keep_outputs(graph, job.head.outputs)),
        "constants and idle nodes": fold,
        "duplicates": edit(merge_duplicates),
        "requantisation": edit(fold_requantisation),
        "activations": edit(lambda graph: rewrite_hard_swish(graph, form)),
        "head layout": edit(decode_before_transpose),
        "bytes as input": edit(take_bytes),
        "signed weights": edit(sign_weights),
    }


def _apply(job: _Job, base: bytes, rewrites: dict[str, Rewrite]) -> tuple[bytes, list[Step]]:
    """All steps that leave the output as it is; the result, and what became of each."""
    onnx = base
    steps: list[Step] = []
    for name, rewrite in rewrites.items():
        job.progress(name)
        candidate, done = rewrite(onnx)
        if not done:
            steps.append(Step(name, False, "nothing to do"))
            continue
        try:
            difference = _difference(job, candidate)
        except EngineRefused as error:
            steps.append(Step(name, False, f"the result does not run: {error}"))
            continue
        if not difference.equal:
            why = f"would change the output by {difference.largest:.3g}, first at {difference.node}"
            steps.append(Step(name, False, why))
            continue
        onnx = candidate
        steps.append(Step(name, True, done))
    return onnx, steps


def _bearable(job: _Job, base: bytes, rewrites: dict[str, Rewrite], steps: list[Step]) -> tuple[bytes, list[Step]]:
    """The steps again, each tried by the engine; raises EngineRefused where it takes no form at all."""
    onnx, verdict = base, _try(job, base, job.engine)
    kept: list[Step] = []
    for step in steps:
        if not step.taken:
            kept.append(step)
            continue
        candidate, done = rewrites[step.name](onnx)
        latest = _try(job, candidate, job.engine)
        # Until some form is accepted a step cannot be blamed for a refusal.
        if latest.accepted or not verdict.accepted:
            onnx, verdict = candidate, latest
            kept.append(Step(step.name, bool(done), done or "nothing to do"))
        else:
            kept.append(Step(step.name, False, f"{job.engine} does not bear it: {latest.reason}"))
    if not verdict.accepted:
        raise EngineRefused(f"{job.model.name}: engine {job.engine} takes no form of it: {verdict.reason}")
    return onnx, kept


def _head(model: Model, onnx: bytes, batch: int, shape: tuple[int, int]) -> Head:
    """The head at one shape; raises HeadError or EngineRefused."""
    run = session(onnx)
    try:
        outputs = run.run(None, {model.input_name: model.tensor(batch, *shape, GREY)})
    except Exception as error:  # ONNX Runtime's exceptions share no base
        raise EngineRefused(f"onnxruntime cannot run the model: {str(error)[:500]}") from error
    head = heads.recognise(outputs, *shape, len(model.labels) if model.labels else None)
    wrong = heads.fault(head, outputs)
    if wrong:
        raise HeadError(f"{model.name} at {shape[0]}x{shape[1]}: {wrong}")
    return head


def _smaller_shape(model: Model, head: Head, batch: int, shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Half the height, where the original runs there; else it is of one shape only, and so will the result be."""
    half = -(-shape[0] // 2 // model.stride) * model.stride, shape[1]
    if half[0] >= shape[0]:
        return []
    try:
        return [half] if _head(model, model.with_shape(batch, *half), batch, half).kind == head.kind else []
    except (EngineRefused, HeadError):
        return []


def _fitted(pictures: Sequence[Pixels], shapes: Sequence[tuple[int, int]], batch: int) -> Pictures:
    """Pictures letterboxed to every shape; nothing where there are none."""
    specs = {shape: InputSpec(*shape, stride=1, rectangular=False) for shape in shapes if pictures}
    return {
        shape: [np.stack([letterbox(bgr, spec).pixels] * batch) for bgr in pictures] for shape, spec in specs.items()
    }


def _generated(shapes: Sequence[tuple[int, int]], batch: int, seed: int) -> Pictures:
    return {(height, width): generated_pictures(height, width, batch, seed) for height, width in shapes}


def _references(model: Model, head: Head, batch: int, pictures: Pictures) -> list[Reference]:
    return [reference(_form(model, head, batch, shape), seen) for shape, seen in pictures.items()]


def _difference(job: _Job, onnx: bytes) -> Difference:
    """From the original, over all shapes: the first that is not equal, else the largest."""
    worst = Difference(0.0, True)
    changed = parse_model(onnx, job.model.name)
    for original, shape in zip(job.references, job.shapes, strict=True):
        found = compare(original, _form(changed, job.head, job.batch, shape))
        if not found.equal:
            return found
        worst = max(worst, found, key=lambda difference: difference.largest)
    return worst


def _form(model: Model, head: Head, batch: int, shape: tuple[int, int]) -> Form:
    outputs = Graph(model.data).outputs
    # Once the unused outputs are gone, those that are left are the head's.
    wanted = head.outputs if len(outputs) > len(head.outputs) else range(len(outputs))
    return Form(
        model.with_shape(batch, *shape),
        model.input_name,
        model.dtype,
        model.layout == "nchw",
        tuple(outputs[index] for index in wanted),
    )


def _with_input(job: _Job, onnx: bytes, *, symbolic: bool = False) -> bytes:
    """The graph with its batch fixed. Height and width are the full ones, or names where they must not be relied on."""
    graph = Graph(onnx)
    nchw = job.model.layout == "nchw"
    sizes = job.model.tensor_shape(job.batch, *job.full)
    names = ("", "", "height", "width") if nchw else ("", "height", "width", "")
    for dim, size, name in zip(graph.picture().type.tensor_type.shape.dim, sizes, names, strict=True):
        if symbolic and name:
            dim.dim_param = name
        else:
            dim.dim_value = size
    del graph.proto.graph.value_info[:]
    for output in graph.proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    return graph.to_bytes()


def _with_metadata(job: _Job, onnx: bytes) -> bytes:
    """What the next reader needs and the exporter left out: the stride, the full shape, names known by the weights."""
    graph = Graph(onnx)
    known = {entry.key for entry in graph.proto.metadata_props}
    facts = {"imgsz": str(list(job.full))}
    if job.model.labels:
        facts["names"] = str(job.model.labels)
    if job.head.strides:
        facts["stride"] = str(max(job.head.strides))
    for key, value in facts.items():
        if key not in known:
            graph.proto.metadata_props.add(key=key, value=value)
    return graph.to_bytes()


def _try(job: _Job, onnx: bytes, engine: str) -> Verdict:
    model = parse_model(onnx, job.model.name)
    # A folder of its own: this is a measurement of now, not a verdict to keep.
    with tempfile.TemporaryDirectory(prefix="sparsecam-") as folder:
        return try_model(
            model,
            engine,
            num_cores=1,
            batch=job.batch,
            height=job.full[0],
            width=job.full[1],
            classes=len(model.labels) if model.labels else None,
            timeout_s=job.timeout_s,
            cache_dir=Path(folder),
        )


def _measured(job: _Job, onnx: bytes, size: Measured) -> Measured:
    verdicts = {engine: _try(job, onnx, engine) for engine in installed("onnx")}
    return Measured(
        size.nodes,
        size.size_bytes,
        # A trial times the whole batch, and people read these as milliseconds a picture.
        {name: verdict.best_ms / job.batch for name, verdict in verdicts.items() if verdict.accepted},
        {name: verdict.reason for name, verdict in verdicts.items() if not verdict.accepted},
    )
