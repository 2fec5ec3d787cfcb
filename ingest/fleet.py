"""All cameras of one process: a thread each, and a watchdog for readers that do not come back.

A thread that hangs inside a driver or a network file system cannot be killed. It is abandoned: another thread with a
fresh reader takes its camera over, and should the old one wake, it finds itself abandoned and ends. Too many of them,
and the process says so in `fatal`, so that its supervisor starts a new one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import cv2
import structlog

from ingest.camera import Camera, OpenReader
from ingest.errors import SourceError
from ingest.media.ring import PacketRing
from ingest.prepare import Preparation
from ingest.reader import open_reader, read_limit_s
from ingest.settings import CameraSettings, IngestSettings
from ingest.sim.launch import START_TIMEOUT_S
from ingest.sources import Source, parse
from ingest.status import FINAL, CameraSnapshot, CameraStatus
from wire.producer import CameraPort

log = structlog.get_logger()

# Four looks in the shortest allowed limit; each look costs microseconds.
_LOOK_S = 0.25


class Link(Protocol):
    """What the fleet needs of the frame link: a port for each camera."""

    def camera(self, name: str, lossless: bool) -> CameraPort:
        """The port of one camera."""


@dataclass
class _Slot:
    settings: CameraSettings
    preparation: Preparation
    limit_s: float  # inside one call of its source; longer than that it is hung
    camera: Camera
    thread: threading.Thread

    @property
    def status(self) -> CameraStatus:
        return self.preparation.status


def _longest_call_s(source: Source, settings: CameraSettings) -> float:
    """Longer than any call of a working source: it reports its own time limits after at most twice their value."""
    starting_s = START_TIMEOUT_S if source.kind == "sim" else 0.0
    return starting_s + 3 * max(settings.open_timeout_s, read_limit_s(source, settings))


class Fleet:
    """Runs the enabled cameras. `fatal` says why the process must end, and is None while it need not."""

    def __init__(
        self,
        cameras: Mapping[str, CameraSettings],
        link: Link,
        settings: IngestSettings,
        open_reader: OpenReader = open_reader,
        rings: Mapping[str, PacketRing] | None = None,
    ) -> None:
        """`rings` keep the packets of the cameras named in it."""
        self.fatal: str | None = None
        self._rings = rings or {}
        self._settings = settings
        self._open_reader = open_reader
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._left_behind: list[threading.Thread] = []  # abandoned, and hanging when that was looked at last
        self._slots = {name: self._slot(name, camera, link) for name, camera in cameras.items() if camera.enabled}
        self._watchdog = threading.Thread(target=self._watch, name="camera-watchdog", daemon=True)

    def _slot(self, name: str, settings: CameraSettings, link: Link) -> _Slot:
        source = parse(settings.source, settings.live)
        status = CameraStatus(name, source.shown, source.live)
        preparation = Preparation(settings, link.camera(name, not source.live), status, self._rings.get(name))
        # Known beforehand, because to parse may look at a disk, and a disk may be what hangs.
        limit_s = max(self._settings.watchdog_s, _longest_call_s(source, settings))
        return _Slot(settings, preparation, limit_s, *self._new_reader(settings, preparation))

    def _new_reader(self, settings: CameraSettings, preparation: Preparation) -> tuple[Camera, threading.Thread]:
        camera = Camera(
            settings,
            preparation,
            self._stop,
            max_pixels=self._settings.max_pixels,
            open_reader=self._open_reader,
        )
        name = f"camera-{preparation.status.camera}"
        return camera, threading.Thread(target=camera.run, name=name, daemon=True)

    def start(self) -> None:
        """Start every camera, whatever state it is in, and the watchdog."""
        # Each camera resizes small pictures on its own thread; OpenCV's pool would only pass them around.
        cv2.setNumThreads(1)
        for slot in self._slots.values():
            slot.thread.start()
        self._watchdog.start()
        log.info("cameras started", cameras=len(self._slots))

    def snapshots(self) -> list[CameraSnapshot]:
        """How each camera is doing."""
        return [slot.status.snapshot() for slot in self._slots.values()]

    @property
    def finished(self) -> bool:
        """Whether no camera will deliver another frame: all were files and have ended or failed."""
        return all(slot.status.state in FINAL for slot in self._slots.values())

    def stop(self) -> None:
        """Stop all cameras; returns within stop_timeout_s even when readers hang."""
        deadline_s = time.monotonic() + self._settings.stop_timeout_s
        self._stop.set()
        for slot in self._slots.values():
            slot.preparation.port.close()  # wakes a file's thread that waits for room
        with self._lock:
            slots = list(self._slots.values())
        for slot in slots:
            if slot.thread.is_alive():
                slot.thread.join(max(0.0, deadline_s - time.monotonic()))
        hanging = [slot.status.camera for slot in slots if slot.thread.is_alive()]
        for slot in slots:
            slot.camera.abandon()
        if hanging:
            log.warning("camera threads did not end in time; left behind", cameras=hanging)

    def _watch(self) -> None:
        while self.fatal is None and not self._stop.wait(_LOOK_S):
            for slot in self._slots.values():
                if slot.status.state in FINAL:
                    continue
                if slot.camera.in_source_s > slot.limit_s:
                    self._give_up(slot, f"{slot.status.source}: no sign of life for {slot.limit_s:g} s")
                elif not slot.thread.is_alive():
                    self._give_up(slot, f"{slot.status.source}: its thread died")

    def _give_up(self, slot: _Slot, why: str) -> None:
        slot.camera.abandon()
        error = SourceError("hung", why)
        slot.status.failed(error)
        log.error("reader abandoned", camera=slot.status.camera, error=why, mend=error.mend)
        self._left_behind = [thread for thread in [*self._left_behind, slot.thread] if thread.is_alive()]
        hanging = len(self._left_behind)
        if hanging > self._settings.max_abandoned:
            self.fatal = (
                f"{hanging} abandoned readers still hang, more than max_abandoned ({self._settings.max_abandoned})"
            )
            log.critical("too many readers abandoned", hanging=hanging)
        elif slot.status.live:
            self._replace(slot)
        else:
            # A file begun again would be detected twice.
            slot.status.state = "failed"

    def _replace(self, slot: _Slot) -> None:
        with self._lock:
            if self._stop.is_set():
                return
            slot.camera, slot.thread = self._new_reader(slot.settings, slot.preparation)
            slot.thread.start()
