"""`sparsecam record`: save the detections of cameras, to be replayed with other rules and no model."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
import structlog
import typer

from services.config import Config
from services.config_errors import nearest
from services.process import catch_signals
from wire.logs import redact
from wire.messages import DetectionRecord, WireError, decode, decoder
from wire.recording import Recorded, RecordingWriter
from wire.redis_link import Link, RedisAway, connect
from wire.streams import VERSION, detections_key, id_order, last_id

log = structlog.get_logger()

# Entries of a camera in one read, and how long one waits: how soon Ctrl-C is heard.
READ_COUNT = 256
WAIT_S = 0.25
RETRY_S = 0.25


class RecordError(ValueError):
    """It cannot be recorded as asked."""


@dataclass(frozen=True)
class Job:
    """What to record."""

    output: Path
    cameras: Sequence[str]  # none: all of the config
    stored: bool  # begin with what the streams still hold, not with the next frame
    follow: bool  # go on with new frames
    seconds: float | None
    max_bytes: int
    replace: bool  # a file that is there


class Follower:
    """Reads the detections of cameras beside the sink, which does not notice. `malformed` counts entries left out."""

    def __init__(self, connect: Callable[[], redis.Redis], cameras: Sequence[str]) -> None:
        self._connect = connect
        self._camera = {detections_key(camera).encode(): camera for camera in cameras}
        self._decoder = decoder(DetectionRecord)
        self.malformed = 0

    def frames(self, stop: threading.Event, *, stored: bool, follow: bool) -> Iterator[Recorded | None]:
        """Frames in the order of their publishing, camera by camera; None now and then while there are none.

        Redis may go away and come back. Raises RedisAway only before its first answer.
        """
        link: Link | None = Link(self._connect())
        assert link is not None
        newest = {stream: last_id(link, stream) for stream in self._camera}
        last = dict.fromkeys(self._camera, b"0-0") if stored else dict(newest)
        try:
            while not stop.is_set():
                if not follow and all(id_order(last[one]) >= id_order(newest[one]) for one in last):
                    return
                try:
                    link = link or self._again(last)
                    reply = _read(link, last)
                except (redis.RedisError, RedisAway, OSError) as error:
                    log.warning("redis away", reason=redact(str(error)))
                    if link is not None:
                        link.close()
                        link = None
                    stop.wait(RETRY_S)
                    yield None
                    continue
                for stream, items in reply:
                    for id_, fields in items:
                        last[stream] = id_
                        yield self._frame(self._camera[stream], id_.decode(), fields)
                if not reply:
                    if not follow:
                        return  # the rest was cut off meanwhile
                    yield None
        finally:
            if link is not None:
                link.close()

    def _again(self, last: dict[bytes, bytes]) -> Link:
        link = Link(self._connect())
        for stream, id_ in last.items():
            # A Redis that lost its newest entries counts on from an older one.
            last[stream] = min(id_, last_id(link, stream), key=id_order)
        return link

    def _frame(self, camera: str, id_: str, fields: list[bytes]) -> Recorded | None:
        values = dict(zip(fields[::2], fields[1::2], strict=False))
        try:
            if values.get(b"v") != VERSION:
                raise WireError(f"entry of version {values.get(b'v')!r}; this build knows {VERSION!r}")
            return Recorded(id_, decode(self._decoder, values.get(b"d", b"")))
        except WireError as error:
            self.malformed += 1
            log.warning("entry left out", camera=camera, id=id_, reason=str(error))
            return None


def _read(link: Link, last: dict[bytes, bytes]) -> Sequence[Any]:
    wait = ("COUNT", READ_COUNT, "BLOCK", link.block_ms(WAIT_S))
    return link.one("XREAD", *wait, "STREAMS", *last, *last.values()) or ()


def record(config: Config, job: Job, *, as_json: bool) -> int:
    """Record until Ctrl-C or a limit; 1 where nothing came. Raises RecordError, RecordingError, RedisAway."""
    stop = threading.Event()
    catch_signals(stop)
    cameras = _cameras(config, job)
    follower = Follower(lambda: connect(config.redis, config.redis_url), cameras)
    frames = follower.frames(stop, stored=job.stored, follow=job.follow)
    first = next(frames, None)  # nothing is made or replaced where Redis does not answer
    writer = RecordingWriter(job.output, replace=job.replace)
    try:
        if job.follow:
            typer.echo(f"recording {', '.join(cameras)}; Ctrl-C ends", err=True)
        ended = _write(writer, first, frames, job)
    finally:
        if writer.frames:
            writer.close()
        else:
            writer.discard()
    left_out = f" ({follower.malformed} unreadable left out)" if follower.malformed else ""
    if not writer.frames:
        typer.echo(
            f"nothing recorded, {job.output} not written: no detections of {', '.join(cameras)}{left_out}; {ended}. "
            "The workers may still be loading their model: see `sparsecam health`",
            err=True,
        )
    if as_json:
        written = {"output": str(job.output), "bytes": writer.size} if writer.frames else {"output": None, "bytes": 0}
        done = {**written, "frames": writer.frames, "ended": ended, "malformed": follower.malformed}
        typer.echo(json.dumps(done))
    elif writer.frames:
        typer.echo(f"wrote {job.output}: {writer.frames} frames{left_out}, {writer.size / 1e6:.1f} MB; {ended}")
    return 0 if writer.frames else 1


def _write(writer: RecordingWriter, first: Recorded | None, frames: Iterator[Recorded | None], job: Job) -> str:
    """Write until the frames end or a limit is reached; returns why it ended."""
    until_s = time.monotonic() + job.seconds if job.seconds else float("inf")
    frame = first
    while True:
        if frame is None:
            writer.flush()  # nothing to do meanwhile
        else:
            writer.write(frame)
        if writer.size >= job.max_bytes:
            return f"ended at {job.max_bytes / 1e6:g} MB, the limit of --max-mb"
        if time.monotonic() >= until_s:
            return f"ended after {job.seconds:g} s"
        try:
            frame = next(frames)
        except StopIteration:
            return "ended by a signal" if job.follow else "all that was stored"


def _cameras(config: Config, job: Job) -> list[str]:
    for camera in job.cameras:
        if camera not in config.cameras:
            near = nearest(camera, config.cameras)
            hint = f"did you mean {near!r}?" if near else f"expected one of: {', '.join(config.cameras) or '(none)'}"
            raise RecordError(f"--camera {camera!r}: no such camera in the config; {hint}")
    cameras = list(dict.fromkeys(job.cameras)) or list(config.cameras)
    if not cameras:
        raise RecordError("the config has no cameras, so there is nothing to record; name it with --config")
    return cameras
