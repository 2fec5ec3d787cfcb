"""Snapshots and clips, made in the ingest process: it has the packets. Alerts come to it as to any subscriber."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress

import redis
import structlog

from ingest.media.recorder import Recorder
from ingest.media.ring import PacketRing
from services.config import Config
from wire import metrics
from wire.alerts import ALERTS, Alert, follow_alerts
from wire.logs import redact
from wire.redis_link import Link, RedisAway, connect
from wire.redis_url import RedisUrlError
from wire.streams import id_order, last_id

log = structlog.get_logger()

# How often open clips take up new packets, and how soon `close` is heard.
TICK_S = 0.25
RETRY_S = 1.0
# Decoding for a snapshot steps back behind decoding for detectors: a third of a core when all are busy.
NICE = 5
# A snapshot takes about 0.1 s and its packets are kept for seconds: what waits behind so many would come too late.
MAX_WAITING = 256


def camera_rings(config: Config) -> dict[str, PacketRing]:
    """A ring for each camera that is read; none when neither snapshots nor clips are wanted."""
    if not config.media.enabled:
        return {}
    names = [name for name, camera in config.cameras.items() if camera.enabled]
    return {name: PacketRing(config.media.ring_s, config.media.ring_bytes) for name in names}


class Media:
    """Two threads: one hears alerts, the other makes their pictures. With no rings it does nothing."""

    def __init__(self, config: Config, rings: Mapping[str, PacketRing]) -> None:
        self.recorder = Recorder(config.media, rings)
        self._config = config
        self._rings = rings
        self._begun_ms = time.time_ns() // 1_000_000
        self._stop = threading.Event()
        self._alerts: queue.Queue[Alert] = queue.Queue(MAX_WAITING)
        self._threads = [
            threading.Thread(target=self._hear, name="media-alerts", daemon=True),
            threading.Thread(target=self._record, name="media-recorder", daemon=True),
        ]

    def start(self) -> None:
        """Begin with the next alert; also with those that come while Redis is still away."""
        if self._rings:
            log.info("snapshots and clips", folder=str(self._config.media.folder), clips=self._config.media.clips)
            for thread in self._threads:
                thread.start()

    def close(self, timeout_s: float) -> None:
        """Complete the open clips and end, within about `timeout_s`."""
        self._stop.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout_s / len(self._threads))

    def _hear(self) -> None:
        told = False
        while not self._stop.is_set():
            try:
                for _, alert in follow_alerts(self._connect, self._since(), self._stop):
                    self._put(alert)
            except RedisUrlError as error:
                log.error("no snapshots and clips", reason=redact(str(error)))
                return
            except (redis.RedisError, RedisAway, OSError) as error:
                if not told:
                    log.warning("snapshots and clips wait for redis", reason=redact(str(error)))
                told = True
                self._stop.wait(RETRY_S)

    def _since(self) -> str:
        """The newest alert of before our start: none is missed while Redis is away at first.

        A Redis whose clock is behind ours gives older ids: there, the newest one it has.
        """
        link = Link(self._connect())
        try:
            return min(f"{self._begun_ms}-0".encode(), last_id(link, ALERTS), key=id_order).decode()
        finally:
            link.close()

    def _connect(self) -> redis.Redis:
        return connect(self._config.redis, self._config.redis_url)

    def _put(self, alert: Alert) -> None:
        if alert.camera not in self._rings or alert.event == "updated":
            return
        try:
            self._alerts.put_nowait(alert)
        except queue.Full:
            self.recorder.overrun(alert)

    def _record(self) -> None:
        with suppress(OSError, AttributeError):  # only Linux has priorities of threads
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while not self._stop.is_set():
            with suppress(queue.Empty):
                self.recorder.handle(self._alerts.get(timeout=TICK_S))
            self.recorder.tick()
        self.recorder.close()


def counts(media: Media, rings: Mapping[str, PacketRing]) -> Iterable[metrics.Count]:
    """The metrics of snapshots and clips."""
    if not rings:
        return
    now = media.recorder.counts()
    yield metrics.Count("sparsecam_media_snapshots", "Snapshots written.", now.snapshots)
    yield metrics.Count("sparsecam_media_clips", "Clips written.", now.clips)
    yield metrics.Count("sparsecam_media_clips_open", "Clips being written.", now.clips_open, gauge=True)
    yield metrics.Count("sparsecam_media_clips_late", "Clips that lack pre-roll.", now.clips_late)
    yield metrics.Count("sparsecam_media_clips_cut", "Clips that the stream's end cut.", now.clips_cut)
    yield metrics.Count("sparsecam_media_deleted", "Files deleted for age or room.", now.deleted)
    yield metrics.Count("sparsecam_media_undeletable", "Files that could not be deleted.", now.undeletable, gauge=True)
    yield metrics.Count("sparsecam_media_files", "Files in media.dir.", now.files, gauge=True)
    yield metrics.Count("sparsecam_media_bytes", "Their size (bytes).", now.bytes, gauge=True)
    for (kind, why), count in now.missed.items():
        labels: dict[str, str] = {"kind": kind, "reason": why}
        yield metrics.Count("sparsecam_media_missed", "Snapshots and clips not made.", count, labels)
    for camera, ring in rings.items():
        here = {"camera": camera}
        yield metrics.Count("sparsecam_media_ring_bytes", "Packets in memory (bytes).", ring.bytes, here, gauge=True)
        yield metrics.Count("sparsecam_media_ring_shortened", "Groups dropped for size.", ring.shortened, here)
