"""`sparsecam replay`: what the rules of a config would have told of a video or a recording. Nothing is sent."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import typer
from msgspec.structs import replace

from detector.detector import Detector
from detector.settings import DetectorSettings
from ingest.redact import safe_url
from services.commands.alerts import HELD_BACK_S
from services.commands.replay_input import Counts, ReplayError, clips, from_recording
from services.commands.replay_progress import Progress
from services.commands.replay_video import VideoPlayer
from services.commands.timeline import Timeline, check_name, elapsed, microseconds
from services.config import Config
from services.config_errors import ConfigError
from services.config_rules import class_problems
from services.model_names import with_model_file
from services.process import catch_signals, stdout_to_stderr
from services.sink import sink_plan
from services.yaml_source import read_yaml
from sink.camera import CameraWork
from wire.alerts import Alert, to_json
from wire.messages import DetectionRecord
from wire.recording import is_recording


@dataclass(frozen=True)
class Job:
    """What to replay."""

    inputs: Sequence[str]
    config_file: Path | None  # for the places of what is wrong in it
    model: str  # empty: the config's
    engine: str  # empty: the config's
    num_cores: int | None
    start: datetime  # event time of a video's first frame
    timeline: Path | None


@dataclass
class _Result:
    counts: Counts = field(default_factory=Counts)
    incidents: Counter[tuple[str, str]] = field(default_factory=Counter)  # camera and rule: opened
    timeline: Timeline = field(default_factory=Timeline)


def replay(config: Config, job: Job, *, as_json: bool) -> int:
    """Print every alert, then a summary; raises ReplayError, RecordingError, SourceError, DetectorError."""
    stop = threading.Event()
    catch_signals(stop)
    if not config.rules:
        raise ReplayError("the config has no rules, so nothing could fire; name a config with --config")
    if job.timeline is not None:
        check_name(job.timeline)  # now, and not after an hour of video
    result, progress = _Result(), Progress()
    cameras: dict[str, CameraWork] = {}
    plan = dataclasses.replace(sink_plan(config), links=None)  # nobody takes pictures of a replay
    for record in _records(config, job, result.counts, stop, progress):
        if stop.is_set():
            break
        work = cameras.get(record.camera)
        if work is None:
            work = cameras[record.camera] = CameraWork(record.camera, plan)
        result.counts.frames += 1
        result.timeline.saw(record)
        alerts = work.step(record)
        if alerts:
            progress.clear()
        _tell(alerts, result, record.event_us, as_json)
        progress.played(result.counts.frames, record.event_us - result.timeline.first_us)
    progress.clear()
    for _, work in sorted(cameras.items()):
        _tell(work.end(), result, result.timeline.last_us, as_json)
    if job.timeline is not None:
        result.timeline.write(job.timeline)
    # Standard output is then the alerts alone, one a line.
    typer.echo(_summary(result), err=as_json)
    return 0


def _records(
    config: Config, job: Job, counts: Counts, stop: threading.Event, progress: Progress
) -> Iterator[DetectionRecord]:
    recordings = [one for one in job.inputs if is_recording(one)]
    if not recordings:
        return _played(config, job, counts, stop, progress)
    if len(job.inputs) > 1:
        raise ReplayError(
            f"{recordings[0]} is a recording; expected it alone, because its frames have times of their own"
        )
    return from_recording(Path(recordings[0]), config.cameras, config.sink, counts)


def _played(
    config: Config, job: Job, counts: Counts, stop: threading.Event, progress: Progress
) -> Iterator[DetectionRecord]:
    wanted = clips(config, job.inputs)
    start_us = _start_us(job.start)
    progress.say("loading the model; the first time it is measured, which takes up to minutes")
    try:
        with stdout_to_stderr():
            detector = Detector.load(_detector_settings(config, job), job.num_cores)
    finally:
        progress.clear()
    if job.config_file is not None:
        problems = class_problems(config.rules, detector.labels, read_yaml(job.config_file))
        if problems:
            raise ConfigError(problems)
    player = VideoPlayer(config, detector, start_us, counts, stop)
    for clip in wanted:
        progress.clear()
        typer.echo(
            f"{safe_url(clip.source)} as camera {clip.camera}, {detector.model_name} on {detector.choice.engine}",
            err=True,
        )
        yield from player.frames(clip)


def _detector_settings(config: Config, job: Job) -> DetectorSettings:
    given = {name: value for name, value in (("model", job.model), ("engine", job.engine)) if value}
    wanted = DetectorSettings.model_validate({**config.detector.model_dump(), **given})
    return with_model_file(wanted, config.registry.folder)


def _start_us(start: datetime) -> int:
    """A time without a zone is UTC, so that the same command does the same everywhere."""
    aware = start if start.tzinfo else start.replace(tzinfo=timezone.utc)
    start_us = round(aware.timestamp()) * 1_000_000
    if start_us <= 0:
        raise ReplayError(f"--start {start}: expected a time after 1970")
    return start_us


def _tell(alerts: list[Alert], result: _Result, now_us: int, as_json: bool) -> None:
    for alert in alerts:
        result.timeline.told(alert)
        result.incidents[alert.camera, alert.rule] += alert.event == "opened"
        # Played video has no stamps of this machine, or each replay would be another; so there is no such time to tell.
        shown = replace(alert, detection_ms=alert.detection_ms or None)
        typer.echo(to_json(shown).decode() if as_json else _line(alert, now_us, result.timeline.first_us))


def _line(alert: Alert, now_us: int, first_us: int) -> str:
    """An alert as it is told at `now_us`: one that closes an incident has the time at which that was seen last."""
    parts = [elapsed(now_us - first_us), f"{alert.event:7}", alert.text]
    if alert.score is not None:
        parts.append(f"{alert.score:.0%}")
    parts.append(f"rule {alert.rule}")
    if alert.track is not None:
        parts.append(f"track {alert.track}")
    event_us, opened_us = microseconds(alert.event_time), microseconds(alert.opened_time)
    if alert.event == "opened" and event_us - opened_us > HELD_BACK_S * 1e6:
        parts.append(f"since {elapsed(opened_us - first_us)}")
    if event_us != now_us:
        parts.append(f"last seen {elapsed(event_us - first_us)}")
    return "  ".join(parts)


def _summary(result: _Result) -> str:
    counts, timeline = result.counts, result.timeline
    lines = [
        f"{camera}  {rule}: {count} incident{'' if count == 1 else 's'}"
        for (camera, rule), count in sorted(result.incidents.items())
        if count
    ] or ["nothing would have fired"]
    told = [f"{counts.frames} frames, {elapsed(max(0, timeline.last_us - timeline.first_us))}"]
    told += [
        f"{count} {what}"
        for count, what in (
            (counts.passed_over, "passed over by fps or motion gate"),
            (counts.undecoded, "could not be decoded"),
            (counts.duplicates, "twice"),
            (counts.gaps, "missing"),
            (counts.implausible, "implausible"),
        )
        if count
    ]
    told += [f"{count} of {camera!r}, which the config lacks" for camera, count in sorted(counts.strange.items())]
    return "\n".join([*lines, "; ".join(told)])
