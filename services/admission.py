"""The way of a model into the registry: measured here and now, judged by the gate, entered with its card."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import onnx

from detector.choose import Trials, choose, full_shape
from detector.cores import topology
from detector.engines import installed
from detector.errors import EngineRefused, ModelError
from detector.model import Model, read_model
from detector.settings import DetectorSettings
from services.bench.bare import BareWorkers, placements
from services.bench.machine import versions
from services.bench.model_facts import model_facts
from services.machine import processor
from services.scoring import Scorer, score
from trainer.card import Card, Measured, Score, Size, Speed, Told
from trainer.errors import CardError
from trainer.gate import GateSettings, refusals
from trainer.registry import Entry, add, check_free, check_name

# Turns of the model and its dense form: what else the machine does slows some turns of both, and the best is kept.
ROUNDS = 4
TURN_S = 1.0  # hundreds of pictures of a small model, some of the largest
WARM_UP_S = 0.3
NUM_CORES = 1  # as workers have; the published tables' figures are of several
# In ONNX metadata: what our exports say of a model, and where its card says it.
_METADATA = {"license": "licence", "dataset": "data.digest", "recipe": "training.recipe", "epochs": "training.epochs"}

_EPOCH_DIGITS = 9


@dataclass(frozen=True)
class Candidate:
    """A model that is to enter."""

    onnx: Path
    told: Told
    data: Path  # the data.yaml whose `val` it is scored on
    baseline: Path  # ONNX or a checkpoint: whose accuracy it is compared with
    dense: Path  # ONNX: whose speed it is compared with
    checkpoint: Path | None = None  # what the model was exported from, to be scored as well
    engine: str = "auto"


@dataclass(frozen=True)
class Outcome:
    """The card, and why the gate refused it or the entry it has got."""

    card: Card
    refused: list[str]
    entry: Entry | None


Say = Callable[[str], None]


def admit(
    candidate: Candidate,
    name: str,
    folder: Path,
    limits: GateSettings,
    *,
    replace: bool = False,
    say: Say = lambda _: None,
    scorer: Scorer = score,
) -> Outcome:
    """Measure a model and enter it into `folder` if the gate lets it; `say` is told what is being done.

    Raises DetectorError, DataError, CardError, RegistryError or BenchError where it cannot be measured or entered.
    """
    check_name(name)
    model = read_model(candidate.onnx)
    if model.format != "onnx":
        raise ModelError(f"{model.name}: a checkpoint; the registry holds ONNX files: `sparsecam export` makes one")
    told = _agreed(candidate.told, model)
    if not replace:  # `add` looks again; here before minutes of measuring
        check_free(folder, name, model.sha256, told)
    card = Card(
        name=name,
        sha256=model.sha256,
        classes=[label for _, label in sorted((model.labels or {}).items())],
        image_size=full_shape(model, DetectorSettings.model_validate({"model": str(candidate.onnx)})),
        told=told,
        measured=_measure(candidate, model, scorer, say),
    )
    refused = refusals(card.measured, limits)
    return Outcome(card, refused, None if refused else add(folder, model.data, card, replace=replace))


def _agreed(told: Told, model: Model) -> Told:
    """`told` with the file's own epochs where it leaves them out; raises CardError where the two say different things.

    A card written before the training ended cannot know which epoch was its best.
    """
    says = {entry.key: entry.value for entry in onnx.load_model_from_string(model.data).metadata_props}
    card = {
        "licence": told.licence,
        "data.digest": told.data.digest,
        "training.recipe": told.training.recipe,
        "training.epochs": "" if told.training.epochs is None else str(told.training.epochs),
    }
    wrong = [
        f"{place} is {card[place]!r}, the file says {says[key]!r}"
        for key, place in _METADATA.items()
        if card[place] and says.get(key) and card[place] != says[key]
    ]
    if wrong:
        raise CardError(f"the card is not of {model.name}: {'; '.join(wrong)}")
    epochs = says.get("epochs", "")
    # Anybody may have written the file; nobody trains for more digits.
    if told.training.epochs is not None or not epochs.isdecimal() or len(epochs) > _EPOCH_DIGITS:
        return told
    return told.model_copy(update={"training": told.training.model_copy(update={"epochs": int(epochs)})})


def _measure(candidate: Candidate, model: Model, scorer: Scorer, say: Say) -> Measured:
    """Speed first: it takes seconds, and says whether the engines take the model at all."""
    settings = DetectorSettings.model_validate({"model": str(candidate.onnx), "engine": candidate.engine, "batch": 1})
    say("choosing the engine")
    engine = choose(Trials(model, settings, NUM_CORES)).engine
    dense = read_model(candidate.dense)
    if dense.format != "onnx":
        raise ModelError(f"{dense.name}: a checkpoint; the dense model is timed as ONNX: `sparsecam export` makes one")
    speed = _speed(model, dense, engine, full_shape(model, settings), say)

    def scored(path: Path, on: str) -> Score:
        return scorer(path, on, candidate.data, lambda done, of: say(f"{path.name} on {on}: picture {done} of {of}"))

    baseline = read_model(candidate.baseline)
    scores = [scored(candidate.onnx, engine)]
    for other in installed("onnx"):
        if other != engine and candidate.engine == "auto":
            try:
                scores.append(scored(candidate.onnx, other))
            except EngineRefused as error:
                say(str(error))  # the card is of those that take it
    if candidate.checkpoint is not None:
        scores.append(scored(candidate.checkpoint, "torch"))
    return Measured(
        made=datetime.now(timezone.utc).replace(microsecond=0),
        versions=versions(),
        scores=scores,
        baseline=scored(candidate.baseline, engine if baseline.format == "onnx" else "torch"),
        baseline_sha256=baseline.sha256,
        speed=speed,
        dense_sha256=dense.sha256,
        size=_size(model),
    )


def _speed(model: Model, dense: Model, engine: str, shape: tuple[int, int], say: Say) -> Speed:
    """Both on the same cores, one after the other in turns, each by its fastest turn's median."""
    cpus = placements(topology(), 1, NUM_CORES)
    best: dict[str, float] = {}
    with (
        BareWorkers(model, engine, [shape], cpus=cpus, num_cores=NUM_CORES) as sparse_runs,
        BareWorkers(dense, engine, [shape], cpus=cpus, num_cores=NUM_CORES) as dense_runs,
    ):
        for turn in range(ROUNDS):
            for name, workers in (("model", sparse_runs), ("dense", dense_runs)):
                say(f"timing, turn {turn + 1} of {ROUNDS}: the {name} on {engine}")
                latencies = sorted(workers.run(TURN_S, WARM_UP_S).latencies_ms)
                best[name] = min(best.get(name, float("inf")), latencies[len(latencies) // 2])
    return Speed(
        engine=engine,
        processor=processor().name,
        num_cores=NUM_CORES,
        height=shape[0],
        width=shape[1],
        ms=round(best["model"], 4),
        dense=dense.name,
        dense_ms=round(best["dense"], 4),
    )


def _size(model: Model) -> Size:
    facts = model_facts(model)
    return Size(
        file_bytes=len(model.data),
        compressed_bytes=len(zlib.compress(model.data, 9)),
        zero_weights=facts["zero_weights"],
        quantised_nodes=facts["quantised_nodes"],
        nodes=facts["nodes"],
    )
