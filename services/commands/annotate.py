"""`sparsecam annotate`: draw what a model finds into a video or images, and measure how fast that was."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import typer
from av import VideoFrame
from numpy.typing import NDArray
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from detector.annotate import draw
from detector.detector import Detector
from detector.settings import DetectorSettings
from ingest.errors import SourceError
from ingest.frames import Picture, Reader
from ingest.planes import clockwise_turn
from ingest.reader import open_reader
from ingest.settings import CameraSettings, IngestSettings
from ingest.sources import parse
from services.commands.annotate_output import Writer, open_writer
from services.config_errors import problem_of
from services.process import catch_signals, stdout_to_stderr
from services.yaml_source import Place, Source
from wire.logs import redact

_TURNS = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


@dataclass(frozen=True)
class Job:
    """What to do."""

    model: Path
    source: str
    output: Path | None
    engine: str
    num_cores: int
    conf_thres: float
    iou_thres: float
    image_shape: tuple[int, int] | None
    labels: list[str] | None
    seconds: float | None


@dataclass
class Result:
    """What was done. `fps` is of the whole loop: read, detect, draw, write."""

    source: str
    output: str
    model: str
    engine: str
    frames: int = 0
    skipped: int = 0  # frames that could not be decoded
    seconds: float = 0.0
    fps: float = 0.0
    inference_ms: float = 0.0  # the engine alone, mean of a frame
    detection_ms: float = 0.0  # letterbox, engine and boxes, mean of a frame
    detections: dict[str, int] = field(default_factory=dict)  # by label


def annotate(job: Job, *, as_json: bool) -> int:
    """Do it; raises SourceError, DetectorError or OutputError, and typer.BadParameter for options of no use."""
    settings = _settings(job)
    stop = threading.Event()
    catch_signals(stop)
    parse(job.source)  # raises SourceError, which says more than the settings' own check
    camera = CameraSettings.model_validate({"source": job.source})
    source, reader = open_reader(camera, IngestSettings.model_validate({}).max_pixels)
    try:
        with stdout_to_stderr():
            detector = Detector.load(settings, job.num_cores)
        writer, output = open_writer(source, job.output, reader.nominal_s)
        result = Result(source.shown, str(output), detector.model_name, detector.choice.engine)
        try:
            _run(job, reader, detector, writer, stop=stop, into=result)
        finally:
            writer.close()
    finally:
        reader.close()
    _print(result, as_json)
    return 0


def _settings(job: Job) -> DetectorSettings:
    options: dict[str, Any] = {
        "model": str(job.model),
        "engine": job.engine,
        "conf_thres": job.conf_thres,
        "iou_thres": job.iou_thres,
        "image_shape": job.image_shape,
        "labels": job.labels,
    }
    try:
        return DetectorSettings.model_validate(options)
    except ValidationError as error:
        (first, *_) = error.errors(include_url=False)
        name, _, what = problem_of(first, DetectorSettings, Source(options, Place("options"))).text.partition(": ")
        raise typer.BadParameter(what, param_hint=f"--{name.replace('_', '-')}") from None


def _run(job: Job, reader: Reader, detector: Detector, writer: Writer, *, stop: threading.Event, into: Result) -> None:
    """Read, detect, draw and write until the source ends, `stop`, or the time is up; fills `into`."""
    found: Counter[str] = Counter()
    inference_ms = detection_s = begun_s = 0.0
    with _progress() as bar:
        task = bar.add_task("compiling the model", total=_length(reader), rate="")
        try:
            for delivery in reader.deliveries():
                if not isinstance(delivery, Picture):
                    into.skipped += delivery.count
                    writer.skip()
                    continue
                picture = upright(delivery.image)
                if not begun_s:
                    # Compiles the model for pictures of this shape: seconds that say nothing of its speed.
                    detector.detect_image(picture)
                    bar.update(task, description="annotating")
                    begun_s = time.perf_counter()
                before_s = time.perf_counter()
                detections = detector.detect_image(picture)
                detection_s += time.perf_counter() - before_s
                inference_ms += detector.last.engine_ms
                found.update(one.label for one in detections)
                draw(picture, detections)
                writer.write(picture, delivery.pts_s)
                into.frames += 1
                into.seconds = round(time.perf_counter() - begun_s, 3)
                bar.update(task, completed=into.frames, rate=f"{into.frames / max(into.seconds, 1e-3):.1f} fps")
                if stop.is_set() or (job.seconds and into.seconds >= job.seconds):
                    break
        except SourceError as error:
            # What was annotated until a source broke off is worth keeping.
            if not into.frames:
                raise
            typer.echo(f"the source broke off: {redact(error.words)}", err=True)
    into.fps = round(into.frames / into.seconds, 2) if into.seconds else 0.0
    into.inference_ms = round(inference_ms / max(1, into.frames), 3)
    into.detection_ms = round(detection_s * 1e3 / max(1, into.frames), 3)
    into.detections = dict(found)


def upright(image: VideoFrame | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A delivered picture as BGR (height, width, 3) uint8 of its own, turned as a phone's rotation mark says."""
    if not isinstance(image, VideoFrame):
        return np.array(image, dtype=np.uint8)
    bgr = np.ascontiguousarray(image.to_ndarray(format="bgr24"))
    turn = clockwise_turn(image)
    return np.asarray(cv2.rotate(bgr.astype(np.uint8, copy=False), _TURNS[turn]) if turn else bgr, dtype=np.uint8)


def _length(reader: Reader) -> int | None:
    """Frames to come, where the source says."""
    frames: Any = getattr(reader, "frames", None)
    return frames if isinstance(frames, int) and frames > 0 else None


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _print(result: Result, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(result)))
        return
    found = ", ".join(f"{count} {label}" for label, count in sorted(result.detections.items())) or "nothing"
    typer.echo(f"wrote {result.output}")
    skipped = f" ({result.skipped} could not be decoded)" if result.skipped else ""
    typer.echo(f"frames             {result.frames}{skipped} in {result.seconds:.1f} s")
    typer.echo(f"FPS                {result.fps:.1f} (read, detect, draw, write)")
    typer.echo(f"average inference  {result.inference_ms:.2f} ms on {result.engine}")
    typer.echo(f"average detection  {result.detection_ms:.2f} ms (letterbox, inference, boxes)")
    typer.echo(f"found              {found}")
