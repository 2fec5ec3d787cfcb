"""What `sparsecam replay` is given: videos, each of a camera, or a recording of detections, put in order."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ingest.redact import safe_url
from ingest.sources import parse
from services.config import Config
from services.config_errors import nearest
from sink.camera import plausible
from sink.reorder import Reorder
from sink.settings import SinkSettings
from wire.messages import DetectionRecord
from wire.recording import Recorded, read_recording


class ReplayError(ValueError):
    """It cannot be replayed as asked."""


@dataclass(frozen=True)
class Clip:
    """A video, and the camera that it stands for."""

    camera: str
    source: str


@dataclass
class Counts:
    """What was played."""

    frames: int = 0  # that the rules saw
    undecoded: int = 0
    passed_over: int = 0  # by the camera's fps limit or motion gate
    duplicates: int = 0
    gaps: int = 0  # frames of a recording that were dispatched and never came
    implausible: int = 0  # records that nobody could make an alert of
    strange: dict[str, int] = field(default_factory=dict)  # frames of cameras that the config lacks


def clips(config: Config, inputs: Sequence[str]) -> list[Clip]:
    """The camera of each input: a path, or a camera's name, `=` and a path. Raises ReplayError, SourceError."""
    found = [_clip(config, text) for text in inputs]
    for clip in found:
        if parse(clip.source).live:
            raise ReplayError(
                f"{safe_url(clip.source)}: expected a video file or a folder of images. For a live camera, `sparsecam "
                "record` saves what its detector sees; that can be replayed"
            )
    return found


def _clip(config: Config, text: str) -> Clip:
    name, equals, path = text.partition("=")
    if equals and not Path(text).exists():
        if name not in config.cameras and config.cameras:
            near = nearest(name, config.cameras)
            hint = f"did you mean {near!r}?" if near else f"expected one of: {', '.join(config.cameras)}"
            raise ReplayError(f"{text}: no camera {name!r} in the config; {hint}")
        return Clip(name, path)
    same = [name for name, one in config.cameras.items() if _is_same(one.source, text)]
    if same or len(config.cameras) == 1:
        return Clip((same or list(config.cameras))[0], text)
    if config.cameras:
        some = next(iter(config.cameras))
        raise ReplayError(
            f"{text}: which camera is it? Rules and scenes belong to cameras. Write {some}={text}, with one of: "
            f"{', '.join(config.cameras)}"
        )
    return Clip(re.sub(r"[^A-Za-z0-9_.\-]", "-", Path(text).stem) or "video", text)


def _is_same(source: str, path: str) -> bool:
    return "://" not in source and Path(source).expanduser().resolve() == Path(path).expanduser().resolve()


def from_recording(
    path: Path, cameras: Collection[str], settings: SinkSettings, counts: Counts
) -> Iterator[DetectionRecord]:
    """The frames of a recording as a sink that was there would have put them in order.

    Raises RecordingError, and ReplayError for one without frames.

    None of `cameras`: all that the recording has.
    """
    orders: dict[str, Reorder[DetectionRecord]] = {}
    empty = True
    for frame in read_recording(path):
        empty = False
        record = frame.record
        if cameras and record.camera not in cameras:
            counts.strange[record.camera] = counts.strange.get(record.camera, 0) + 1
            continue
        if not plausible(record):
            counts.implausible += 1
            continue
        order = orders.get(record.camera)
        if order is None:
            order = orders[record.camera] = Reorder(settings.reorder_timeout_s, settings.reorder_frames)
        if not order.is_duplicate(record):
            yield from _in_order(order, frame)
    if empty:
        raise ReplayError(f"{path} is empty: a recording without a frame; record again while detections come")
    for order in orders.values():
        yield from order.expire(math.inf)
        counts.duplicates += order.counts.duplicates
        counts.gaps += order.counts.gaps


def _in_order(order: Reorder[DetectionRecord], frame: Recorded) -> Iterator[DetectionRecord]:
    # The sink's clock is that of the frames' arrival; so what it gave up waiting for, this gives up too.
    now_s = frame.published_ms / 1e3
    yield from order.expire(now_s)
    yield from order.push(frame.record, frame.record, now_s)
