"""Which engine runs the model here, at which shape and batch, and whether it bears rectangular pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import structlog

from detector import engines
from detector.errors import EngineRefused, HeadError, ModelError
from detector.heads import NMS_INSIDE
from detector.model import Model
from detector.settings import DetectorSettings
from detector.trial import Verdict, try_model
from detector.verdicts import where

log = structlog.get_logger()


_BATCHES = (4, 2)  # larger ones gained little more on the reference model, and hold more frames back
_BATCH_MS = 40.0  # what inferring a batch may take: the first frame of it waits for the last
# What a frame inferred alone costs beside its inference and several share: messages, processes that wake, cold caches.
# Measured with `sparsecam bench pipeline`, one by one and in fours: docs/performance.md.
_SHARED_MS = 0.4


@dataclass(frozen=True)
class Choice:
    """The outcome: a verdict at the full shape, and the reasons in words."""

    engine: str
    verdict: Verdict
    rectangular: bool
    rectangular_because: str
    usual: Verdict  # at the shape that most cameras will have
    because: str
    batch: int  # frames worth inferring at once when so many wait
    batch_because: str


@dataclass(frozen=True)
class Trials:
    """Trials of one model under one configuration."""

    model: Model
    settings: DetectorSettings
    num_cores: int
    before: Callable[[str, str], None] = lambda *_: None  # before each trial that no kept verdict answers

    def at(
        self,
        engine: str,
        batch: int,
        height: int,
        width: int,
        *,
        beat_ms: float | None = None,
        like: Verdict | None = None,
    ) -> Verdict:
        """Whether the engine runs the model at this shape (pixels); `beat_ms` and `like` as for `try_model`."""
        begun_s: list[float] = []

        def begin() -> None:
            self.before(engine, f"{height}x{width}" + (f", batch {batch}" if batch > 1 else ""))
            begun_s.append(time.monotonic())

        verdict = try_model(
            self.model,
            engine,
            num_cores=self.num_cores,
            batch=batch,
            height=height,
            width=width,
            classes=self._class_count(),
            timeout_s=self.settings.trial_timeout_s,
            cache_dir=self.settings.cache_dir,
            beat_ms=beat_ms,
            like=like,
            before=begin,
        )
        # An engine that refuses the model is told of by whoever asked; of a shape or batch this is the only word.
        if begun_s and (verdict.accepted or like is not None):
            result = {"ms": verdict.best_ms} if verdict.accepted else {"refused": verdict.reason}
            took_s = round(time.monotonic() - begun_s[0], 1)
            log.info("tried", engine=engine, batch=batch, shape=f"{height}x{width}", **result, took_s=took_s)
        return verdict

    def _class_count(self) -> int | None:
        names, own = self.settings.labels, self.model.labels
        if isinstance(names, list) and names:
            return len(names)
        if not own:
            return None
        # By the highest number: neither the file nor the config need name all below it.
        numbered: list[int] = [*own, *(names if isinstance(names, dict) else ())]
        return max(numbered) + 1

    def at_some_batch(self, engine: str, height: int, width: int, beat_ms: float | None = None) -> Verdict:
        """With one picture at a time, else (where the graph insists) with the batch it was exported with."""
        single = self.at(engine, 1, height, width, beat_ms=beat_ms)
        if single.accepted or self.model.batch in (None, 1):
            return single
        own = self.at(engine, self.model.batch, height, width)
        if not own.accepted:
            return single
        log.warning(
            "the graph only runs with its own batch, most of its work is thrown away",
            model=self.model.name,
            batch=self.model.batch,
            mend="export it again with batch 1",
        )
        return own


def full_shape(model: Model, settings: DetectorSettings) -> tuple[int, int]:
    """Largest input (height, width) in pixels, whole strides: the config's, the graph's, or the metadata's."""
    shape = settings.image_shape or _own_shape(model)
    if shape is None:
        raise ModelError(
            f"{model.name}: the model takes pictures of any size and does not say its own; "
            "set detector.image_shape, for instance [640, 640]"
        )
    if shape[0] % model.stride or shape[1] % model.stride:
        raise ModelError(
            f"{model.name}: an input of {shape[0]}x{shape[1]} is no multiple of the model's stride {model.stride}; "
            f"use detector.image_shape [{_up(shape[0], model.stride)}, {_up(shape[1], model.stride)}]"
        )
    return shape


def _own_shape(model: Model) -> tuple[int, int] | None:
    if model.height is not None and model.width is not None:
        return model.height, model.width
    return model.image_size


def choose(trials: Trials) -> Choice:
    """Try the wanted engine, or under `auto` every installed one that reads the format, and take the fastest taker.

    Trials are kept on disk by model, CPU, engine and version, so all this is measured once. Raises EngineUnavailable,
    HeadError, or EngineRefused with what each engine said and which of them would take the model.
    """
    model, settings = trials.model, trials.settings
    height, width = full_shape(model, settings)
    wanted = engines.candidates(settings.engine, model.format, model.name)
    trials = replace(trials, before=_announcement(trials, wanted))
    verdicts: dict[str, Verdict] = {}
    refusals: dict[str, str] = {}
    for engine in wanted:
        beat_ms = min((it.best_ms for it in verdicts.values() if it.accepted), default=None)
        verdict = verdicts[engine] = trials.at_some_batch(engine, height, width, beat_ms)
        if verdict.unknown_head:  # to every engine alike
            raise HeadError(f"{model.name}: {verdict.reason}{_at_another_shape(model, settings)}")
        if not verdict.accepted:
            refusals[engine] = verdict.reason
            log.warning("engine refused the model", model=model.name, engine=engine, reason=verdict.reason)
    if len(refusals) == len(wanted):
        others = [
            trials.at_some_batch(engine, height, width)
            for engine in engines.installed(model.format)
            if engine not in refusals
        ]
        raise EngineRefused(_nobody(model, refusals, others) + _at_another_shape(model, settings))
    fastest = min((verdict for verdict in verdicts.values() if verdict.accepted), key=lambda verdict: verdict.best_ms)
    rectangle, why = _rectangular(trials, fastest)
    because = _because(trials, verdicts)
    usual = rectangle if rectangle and rectangle.height == _widescreen(fastest, trials.model.stride) else fastest
    batch, batch_why = _batch(trials, usual, fastest)
    log.info("engine chosen", model=model.name, engine=fastest.engine, because=because, ms=fastest.ms)
    return Choice(fastest.engine, fastest, rectangle is not None, why, usual, because, batch, batch_why)


def _announcement(trials: Trials, wanted: Sequence[str]) -> Callable[[str, str], None]:
    """Says once what is about to be measured, as it may take minutes; for `Trials.before`, whose own it calls."""
    model, settings = trials.model, trials.settings
    told = False

    def announce(engine: str, what: str) -> None:
        nonlocal told
        trials.before(engine, what)
        if told:
            return
        told = True
        facts = {"engines": f"{len(wanted)} ({', '.join(wanted)})", "kept_in": where(settings.cache_dir)}
        further = int(settings.rectangular) + (0 if settings.batch == 1 else len(_batches(settings)))
        if further:
            facts["then"] = f"up to {further} more shapes and batches of the fastest"
        if len(wanted) > 1:
            facts["to_skip"] = "name one of them in detector.engine"
        log.info("measuring the model, which takes up to minutes the first time only", model=model.name, **facts)

    return announce


def _batches(settings: DetectorSettings) -> Sequence[int]:
    return _BATCHES if settings.batch == "auto" else (settings.batch,)


def _batch(trials: Trials, single: Verdict, full: Verdict) -> tuple[int, str]:
    """How many frames to infer at once when so many wait, and why; measured at the usual shape, which is in use."""
    wanted = trials.settings.batch
    if single.batch != 1 or wanted == 1:
        return 1, "detector.batch is 1" if wanted == 1 else "the graph has a batch of its own"
    if NMS_INSIDE in full.head:
        # Exporters write NMS as a loop over the pictures, and often the traced one's only: the others of a batch then
        # come out as zeros, which no shape and no grey picture shows.
        asked = "" if wanted == "auto" else f"detector.batch {wanted} is not followed: "
        return 1, f"{asked}the model has {NMS_INSIDE}, which many exports do for the first picture of a batch only"
    reasons = []
    for size in _batches(trials.settings):
        if wanted == "auto" and size * full.best_ms > _BATCH_MS:
            reasons.append(f"{size} take over {_BATCH_MS:g} ms at {full.height}x{full.width}")
            continue
        several = trials.at(single.engine, size, single.height, single.width, like=full)
        if not several.accepted:
            reasons.append(f"{size}: {several.reason}")
            continue
        if any(shape[:1] != [size] for shape in several.outputs):
            reasons.append(f"{size}: its outputs {several.outputs} are not of {size} pictures each")
            continue
        each_ms = several.best_ms / size
        told = f"{size} at once take {each_ms:.2f} ms each, one alone {single.best_ms:.2f} ms"
        told += f" at {single.height}x{single.width}"
        if wanted != "auto" or batch_pays(size, each_ms, single.best_ms):
            return size, told + (f", and share {_SHARED_MS:g} ms beside it" if each_ms > single.best_ms else "")
        reasons.append(told)
    return 1, "; ".join(reasons)


def batch_pays(size: int, each_ms: float, alone_ms: float) -> bool:
    """Whether `size` frames that take `each_ms` each cost less than one by one, all told.

    An engine need not gain by it: the frames share what they cost beside it.
    """
    return each_ms + _SHARED_MS / size < alone_ms + _SHARED_MS


def _rectangular(trials: Trials, full: Verdict) -> tuple[Verdict | None, str]:
    """The verdict at a lower shape where cameras may send less than the full one, and why (or why not)."""
    if not trials.settings.rectangular:
        return None, "detector.rectangular is false"
    # 16:9, so that the trial serves most cameras; half where the full shape is as low as that.
    height = _widescreen(full, trials.model.stride)
    if height >= full.height:
        height = _up(full.height // 2, trials.model.stride)
    if height >= full.height:
        return None, f"the full shape {full.height}x{full.width} is one stride high"
    less = trials.at(full.engine, full.batch, height, full.width, like=full)
    if not less.accepted:
        return None, f"at {height}x{full.width}: {less.reason}"
    if less.head != full.head:
        return None, f"at {height}x{full.width} it shows another head: {less.head}, not {full.head}"
    return less, f"tried at {height}x{full.width}: {less.ms:.1f} ms, {full.ms:.1f} ms at {full.height}x{full.width}"


def _widescreen(full: Verdict, stride: int) -> int:
    """How high (pixels) a 16:9 camera's frames are at the full width."""
    return _up(full.width * 9 // 16, stride)


def _because(trials: Trials, verdicts: dict[str, Verdict]) -> str:
    """The measurements, quickest first, and why the other engines are out of the running."""
    if trials.settings.engine != "auto":
        return "the config asks for it"
    takers = sorted((verdict for verdict in verdicts.values() if verdict.accepted), key=lambda verdict: verdict.best_ms)
    times = ", ".join(f"{verdict.engine} {verdict.best_ms:.1f} ms" for verdict in takers)
    cores = f"{trials.num_cores} core" + ("s" if trials.num_cores > 1 else "")
    told = [f"{times} at {takers[0].height}x{takers[0].width} on {cores}"]
    told += [f"{verdict.engine} refused the model: {verdict.reason}" for verdict in verdicts.values() if verdict.reason]
    readers = [kind.name for kind in engines.KINDS.values() if kind.reads == trials.model.format]
    missing = [name for name in readers if name not in verdicts]
    if missing:
        told.append(f"not installed: {', '.join(missing)}")
    return "; ".join(told)


def _nobody(model: Model, refusals: dict[str, str], others: list[Verdict]) -> str:
    said = "; ".join(f"engine {engine} refused the model: {reason}" for engine, reason in refusals.items())
    takers = [verdict.engine for verdict in others if verdict.accepted]
    if takers:
        return f"{model.name}: {said}. Engines that accept it: {', '.join(takers)}; set detector.engine to {takers[0]}"
    also = "".join(f"; engine {verdict.engine}: {verdict.reason}" for verdict in others)
    return f"{model.name}: {said}{also}. No installed engine accepts it"


def _at_another_shape(model: Model, settings: DetectorSettings) -> str:
    """At the end of a refusal: that the config asks for another shape than the file's own; empty where it does not."""
    wanted, own = settings.image_shape, _own_shape(model)
    if wanted is None or own is None or wanted == own:
        return ""
    return f". It was tried at detector.image_shape {list(wanted)}; its own is {list(own)}"


def _up(size: int, stride: int) -> int:
    return -(-size // stride) * stride
