"""A model ready to detect: frames in, detections in source pixels out."""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import structlog
from numpy.typing import NDArray

from detector import heads
from detector.choose import Choice, Trials, choose
from detector.engines import Engine, engine_class
from detector.errors import BadFrame, EngineRefused, ModelError
from detector.heads import Candidates, Head
from detector.labels import name_classes
from detector.model import Model, read_model
from detector.nms import FEW, nms
from detector.preprocess import GREY, Pixels, TensorFiller, letterbox
from detector.raw_heads import RawHead, cut
from detector.settings import DetectorSettings
from wire.messages import Detection, FrameHeader, InputSpec

log = structlog.get_logger()

# A shape that was refused for want of time, memory or disk is tried again after this, or after so many times what the
# trial took, twice as long each time: no worker spends more than a twentieth of its time on what it cannot run.
PASSING_S, PASSING_TIMES = 60.0, 20.0
COMPILED_AGAIN_S = 60.0  # after a shape was compiled again health tells of it for so long: longer than most turns take
_WARM_UP_RUNS = 3  # the first inferences touch fresh memory and are slower


@dataclass(frozen=True)
class StageTimes:
    """Milliseconds that the last frame spent in each stage."""

    preprocess_ms: float
    engine_ms: float
    postprocess_ms: float


@dataclass(frozen=True)
class _Compiled:
    """The model at one input shape."""

    engine: Engine
    head: Head | RawHead
    filler: TensorFiller


@dataclass(frozen=True)
class _Shape:
    """The model at one input shape: for a frame alone, and for several where that pays."""

    single: _Compiled
    several: _Compiled | None


Frame = tuple[FrameHeader, memoryview | Pixels]


class Detector:
    """One model on one engine. Compiles each input shape when it first comes, after a child process survived it.

    Not thread-safe: one thread detects. Engines release Python's lock, so other threads go on meanwhile.
    """

    def __init__(self, trials: Trials, choice: Choice) -> None:
        model, settings = trials.model, trials.settings
        self.model = model
        self.choice = choice
        self.spec = InputSpec(choice.verdict.height, choice.verdict.width, model.stride, choice.rectangular)
        self.labels = name_classes(settings.names, model.labels, choice.verdict.class_count, model.name)
        self.last = StageTimes(0, 0, 0)
        self._settings = settings
        self._num_cores = trials.num_cores
        self._trials = trials
        self.batch = choice.batch  # frames worth handing to `detect_batch` at once
        self._compiled: OrderedDict[tuple[int, int], _Shape] = OrderedDict()
        self._refused: dict[tuple[int, int], tuple[str, float]] = {}  # why, and until when (monotonic)
        self._retries: Counter[tuple[int, int]] = Counter()
        self._dropped: set[tuple[int, int]] = set()  # shapes that were compiled once and had to make room
        self._compiled_again_s = -math.inf

    @classmethod
    def load(cls, settings: DetectorSettings, num_cores: int | None = None) -> Detector:
        """Read, try and compile the model of the settings on `num_cores` cores (the settings' where None).

        Raises ModelError, HeadError, EngineUnavailable or EngineRefused.
        """
        if not settings.model:
            raise ModelError("no model is configured: set detector.model to the path of an ONNX file or a checkpoint")
        return cls.of(read_model(Path(settings.model)), settings, num_cores)

    @classmethod
    def of(
        cls, model: Model, settings: DetectorSettings, num_cores: int | None = None, *, deployed: bool = False
    ) -> Detector:
        """As `load`, for a model that was read already; `settings.model` is not looked at.

        `deployed`: the settings were written for another model; warm shapes that this one does not take are left out.
        """
        # Pictures are small and the cores are the engine's: OpenCV's own threads would only fight it for them.
        cv2.setNumThreads(1)
        trials = Trials(model, settings, num_cores or settings.cores_per_worker)
        detector = cls(trials, choose(trials))
        for height, width in settings.warm_shapes:
            try:
                detector.prepare(height, width)
            except BadFrame as error:
                told = f"detector.warm_shapes [{height}, {width}]: {error}"
                if not deployed:
                    raise ModelError(told) from error
                log.warning("a shape is not compiled beforehand", because=told)
        if not detector._compiled:
            detector.prepare(detector.choice.usual.height, detector.choice.usual.width)
        return detector

    @property
    def model_name(self) -> str:
        """The model file's name."""
        return self.model.name

    def describe(self) -> dict[str, Any]:
        """What runs and why, for logs, `check` and health."""
        verdict = self.choice.verdict
        shape = self.model.tensor_shape(verdict.batch, verdict.height, verdict.width)
        return {
            "model": self.model.name,
            "sha256": self.model.sha256,
            "engine": self.choice.engine,
            "because": self.choice.because,
            "cores": self._num_cores,
            "input": f"{self.model.dtype} {list(shape)}",
            "head": verdict.head,
            "raw_heads": verdict.raw is not None,
            "raw_heads_because": verdict.raw_because,
            "classes": [self.labels[number] for number in sorted(self.labels)],
            "rectangular": self.spec.rectangular,
            "rectangular_because": self.choice.rectangular_because,
            "batch": self.batch,
            "batch_because": self.choice.batch_because,
            "trial_ms": verdict.ms,
            "compiled": [f"{height}x{width}" for height, width in self._compiled],
        }

    def is_compiled(self, height: int, width: int) -> bool:
        """Whether a frame of this shape can be inferred at once; otherwise its shape is tried and compiled first."""
        return (height, width) in self._compiled

    def prepare(self, height: int, width: int) -> None:
        """Compile a shape before its first frame (seconds); raises BadFrame or EngineRefused."""
        self._at(height, width)

    def detect(self, header: FrameHeader, pixels: memoryview | Pixels) -> list[Detection]:
        """Objects in one letterboxed frame, best first; raises BadFrame or EngineRefused."""
        return self._run(self._at(header.height, header.width).single, [(header, pixels)])[0]

    def detect_batch(self, frames: Sequence[Frame]) -> list[list[Detection]]:
        """Objects in frames of one shape, as `detect` finds them; quickest for `batch` frames. Raises as it does."""
        first, _ = frames[0]
        shape = self._at(first.height, first.width)
        if shape.several is None or len(frames) != self.batch:
            return [self.detect(header, pixels) for header, pixels in frames]
        return self._run(shape.several, frames)

    def _run(self, compiled: _Compiled, frames: Sequence[Frame]) -> list[list[Detection]]:
        start = time.perf_counter()
        for place, (header, pixels) in enumerate(frames):
            _check_geometry(header)
            compiled.filler.fill(header, pixels, place)
        filled = time.perf_counter()
        outputs = compiled.engine.infer(compiled.filler.tensor)
        inferred = time.perf_counter()
        candidates = compiled.head.decode(outputs, self._settings.conf_thres, len(frames))
        headers = [header for header, _ in frames]
        kept = self._select(candidates, headers, has_nms=compiled.head.has_nms)
        detections = self._to_source(kept, headers)
        self.last = StageTimes(
            (filled - start) * 1e3, (inferred - filled) * 1e3, (time.perf_counter() - inferred) * 1e3
        )
        return detections

    def detect_image(self, bgr: NDArray[Any]) -> list[Detection]:
        """Objects in one picture (uint8; BGR, grey or BGRA), letterboxed here; raises BadFrame or EngineRefused."""
        return self.detect(*self.fit(bgr))

    def fit(self, bgr: NDArray[Any]) -> tuple[FrameHeader, Pixels]:
        """A picture as the frame that `detect` takes; raises BadFrame."""
        fitted = letterbox(bgr, self.spec)
        height, width = fitted.pixels.shape[:2]
        header = FrameHeader(
            camera="",
            session="",
            seq=0,
            lossless=True,
            event_us=0,
            captured_ns=0,
            pixel_format="rgb24",
            height=height,
            width=width,
            source_height=bgr.shape[0],
            source_width=bgr.shape[1],
            scale=fitted.scale,
            pad_left=fitted.pad_left,
            pad_top=fitted.pad_top,
        )
        return header, fitted.pixels

    def _at(self, height: int, width: int) -> _Shape:
        """The model compiled for this shape; the least recently used shape makes room."""
        shape = height, width
        known = self._compiled.get(shape)
        if known is not None:
            self._compiled.move_to_end(shape)
            return known
        self._check_shape(height, width)
        began_s = time.monotonic()
        why, until_s = self._refused.get(shape, ("", 0.0))
        if time.monotonic() < until_s:
            raise EngineRefused(why)
        try:
            single = self._compile(height, width, self.choice.verdict.batch)
            compiled = _Shape(single, self._several(height, width))
        except EngineRefused as error:
            # Remembered, or every frame of this shape would cost a trial.
            self._refused[shape] = str(error), math.inf if error.lasting else self._retry_s(shape, began_s)
            raise
        self._compiled[shape] = compiled
        if shape in self._dropped:
            if math.isinf(self._compiled_again_s):
                log.warning("shapes are compiled again and again, and frames wait for it", mend=self._too_few_shapes())
            self._compiled_again_s = time.monotonic()
        while len(self._compiled) > self._settings.shapes_cached:
            gone, _ = self._compiled.popitem(last=False)
            self._dropped.add(gone)
            log.info("compiled shape dropped for another", height=gone[0], width=gone[1])
        return compiled

    def _retry_s(self, shape: tuple[int, int], began_s: float) -> float:
        """When a shape is tried again that was refused by what may pass (monotonic)."""
        now_s = time.monotonic()
        self._retries[shape] += 1
        return now_s + max(PASSING_S, PASSING_TIMES * (now_s - began_s)) * 2.0 ** (self._retries[shape] - 1)

    @property
    def refusal(self) -> str:
        """Why frames of some shape are not detected now, or late; empty where all are. May be read by any thread."""
        now_s = time.monotonic()
        late = self._too_few_shapes() if now_s - self._compiled_again_s < COMPILED_AGAIN_S else ""
        return next((why for why, until_s in list(self._refused.values()) if now_s < until_s), late)

    def _too_few_shapes(self) -> str:
        return (
            f"pictures come in more shapes than the {self._settings.shapes_cached} of detector.shapes_cached, and "
            "frames wait while one is compiled again: raise it"
        )

    def _check_shape(self, height: int, width: int) -> None:
        spec = self.spec
        fits = (
            0 < height <= spec.height and 0 < width <= spec.width and not (height % spec.stride or width % spec.stride)
            if spec.rectangular
            else (height, width) == (spec.height, spec.width)
        )
        if not fits:
            wanted = (
                f"at most {spec.height}x{spec.width}, multiples of {spec.stride}"
                if spec.rectangular
                else (f"{spec.height}x{spec.width} exactly ({self.choice.rectangular_because})")
            )
            raise BadFrame(f"a picture of {height}x{width}; {self.model.name} wants {wanted}")

    def _several(self, height: int, width: int) -> _Compiled | None:
        if self.batch == 1:
            return None
        try:
            return self._compile(height, width, self.batch)
        except EngineRefused as error:
            log.warning("frames of this shape go one by one", height=height, width=width, reason=str(error))
            return None

    def _compile(self, height: int, width: int, batch: int) -> _Compiled:
        verdict = self._trials.at(self.choice.engine, batch, height, width, like=self.choice.verdict)
        if not verdict.accepted:
            raise EngineRefused(
                f"{self.model.name}: engine {self.choice.engine} refused the shape {height}x{width}: {verdict.reason}",
                lasting=verdict.lasting,
            )
        start = time.perf_counter()
        data = self.model.with_shape(batch, height, width)
        if verdict.raw is not None:
            data = cut(data, verdict.raw, batch, height, width)
        engine = engine_class(self.choice.engine).load(data, self._num_cores)
        grey = self.model.tensor(batch, height, width, GREY)
        for _ in range(_WARM_UP_RUNS):
            outputs = engine.infer(grey)
        head: Head | RawHead
        if verdict.raw is not None:
            head = RawHead(verdict.raw, batch, height, width)
            head.check(outputs)
        else:
            head = heads.recognise(outputs, height, width, verdict.class_count)
            for index in head.outputs:
                if len(outputs[index]) != batch:  # what lacks would pass for empty scenes
                    raise EngineRefused(
                        f"{self.model.name}: at {height}x{width} output {index} is {list(outputs[index].shape)}, "
                        f"expected {batch} first, one for each picture of the batch; export it with a dynamic batch"
                    )
        log.info(
            "model compiled",
            model=self.model.name,
            height=height,
            width=width,
            batch=batch,
            **engine.describe(),
            raw_heads=verdict.raw is not None,
            raw_heads_because=verdict.raw_because,
            seconds=round(time.perf_counter() - start, 2),
        )
        return _Compiled(engine, head, TensorFiller(self.model, batch, height, width))

    def _select(self, found: Candidates, headers: Sequence[FrameHeader], *, has_nms: bool) -> Candidates:
        """What is to be told of each picture, best first; what lies in the padding may still be among a few."""
        limit, iou_thres = self._settings.max_detections, self._settings.iou_thres
        if has_nms:
            return found.take(np.argsort(-found.scores, kind="stable"))
        if len(found.scores) <= FEW:
            # A picture's boxes overlap those of another as little as those of another class: one call for all.
            pictures = len(headers)
            groups = found.classes if pictures == 1 else found.classes * pictures + found.pictures
            return found.take(nms(found.boxes, found.scores, groups, iou_thres, FEW))
        kept = []
        for picture, header in enumerate(headers):
            place = np.flatnonzero(found.pictures == picture)
            place = place[_reaches_picture(found.boxes[place], header)]  # the others must not use up the limit
            kept.append(place[nms(found.boxes[place], found.scores[place], found.classes[place], iou_thres, limit)])
        return found.take(np.concatenate(kept))

    def _to_source(self, found: Candidates, headers: Sequence[FrameHeader]) -> list[list[Detection]]:
        """Boxes from letterbox to source pixels, clipped; what lies wholly in the padding is no object.

        The limit is on what is left.
        """
        detections: list[list[Detection]] = [[] for _ in headers]
        # A frame has a few boxes: plain numbers take 1 us a box, NumPy 100 us however few.
        for box, score, number, picture in zip(
            found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), found.pictures.tolist(), strict=True
        ):
            if len(detections[picture]) == self._settings.max_detections:
                continue
            header = headers[picture]
            scale, pad_left, pad_top = header.scale, header.pad_left, header.pad_top
            width, height = float(header.source_width), float(header.source_height)
            left = min(max((box[0] - pad_left) / scale, 0.0), width)
            top = min(max((box[1] - pad_top) / scale, 0.0), height)
            right = min(max((box[2] - pad_left) / scale, 0.0), width)
            bottom = min(max((box[3] - pad_top) / scale, 0.0), height)
            if right > left and bottom > top:
                label = self.labels.get(number) or str(number)
                detections[picture].append(Detection(label, number, score, (left, top, right, bottom)))
        return detections


def _reaches_picture(boxes: NDArray[np.float32], header: FrameHeader) -> NDArray[np.bool_]:
    """(n,) which of these boxes (n, 4) in the letterbox lie on the picture, be it in part."""
    pads = np.array([header.pad_left, header.pad_top])
    ends = pads + header.scale * np.array([header.source_width, header.source_height])
    reaches: NDArray[np.bool_] = ((boxes[:, :2] < ends) & (boxes[:, 2:] > pads)).all(axis=1)
    return reaches


def _check_geometry(header: FrameHeader) -> None:
    # The comparison is written so that a scale that is not a number fails it too.
    if not (0 < header.scale < float("inf")) or header.source_height < 1 or header.source_width < 1:
        raise BadFrame(
            f"camera {header.camera}: scale {header.scale} of a {header.source_height}x{header.source_width} source"
        )
