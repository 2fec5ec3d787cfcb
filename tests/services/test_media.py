"""An alert in Redis becomes a snapshot and a clip of a real RTSP camera, and trouble stays on this side of Redis."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import redis

from ingest.fleet import Fleet
from ingest.sim.file_source import FileSource
from ingest.sim.rtsp_server import RtspServer
from services.config import Config, validate
from services.media import Media, camera_rings, counts
from services.yaml_source import Place, Source
from wire.alerts import Alert, Box, Object, alert_once, rfc3339
from wire.media import media_path
from wire.messages import FrameHeader, InputSpec, decode, decoder
from wire.producer import CameraPort


class Loopback:
    """Stands where the frame link stands: real ports, and each frame is settled at once."""

    spec = InputSpec(416, 416, 32, True)
    broker_alive = True
    shares_memory = False

    def __init__(self) -> None:
        self.frames: list[FrameHeader] = []
        self._decoder = decoder(FrameHeader)
        self._ports: dict[str, CameraPort] = {}

    def camera(self, name: str, lossless: bool) -> CameraPort:
        return self._ports.setdefault(name, CameraPort(self, name, lossless, 4, None))  # type: ignore[arg-type]

    def transmit(self, message: bytes, pixels: np.ndarray) -> bool:
        header = decode(self._decoder, message)
        self.frames.append(header)
        self._ports[header.camera].settle(header.session, header.seq, "detected")
        return True


@pytest.fixture
def rtsp(shared: Path) -> Iterator[RtspServer]:
    with RtspServer(FileSource(shared / "videos" / "pistol.mp4")) as server:
        yield server


def config_of(url: str, redis_url: str, folder: Path, **media: Any) -> Config:
    data = {
        "cameras": {"cam": {"source": url, "profile": "all"}, "off": {"source": "x.mp4", "enabled": False}},
        "redis": {"url": redis_url},
        "media": {"dir": str(folder), "min_free_gb": 0, "pre_roll_s": 1, "post_roll_s": 1, **media},
    }
    return validate(Source(data, Place("test")), env={})


def alert_about(header: FrameHeader, event: str = "opened", **changes: Any) -> Alert:
    box = Box(100.0, 50.0, 300.0, 250.0)
    fields: dict[str, Any] = {
        "version": 1,
        "id": f"i1-{event}",
        "incident": "i1",
        "event": event,
        "camera": header.camera,
        "rule": "r",
        "text": "person",
        "event_time": rfc3339(header.event_us),
        "opened_time": rfc3339(header.event_us),
        "label": "person",
        "score": 0.9,
        "box": box,
        "objects": [Object("person", 0.9, box, 7)],
        "session": header.session,
        "seq": header.seq,
    }
    return Alert(**(fields | changes))


def publish(client: redis.Redis, alert: Alert) -> None:
    client.execute_command(*alert_once(alert, 1000))


def test_an_alert_gets_the_picture_of_its_own_frame_and_a_clip(
    rtsp: RtspServer, valkey: Any, tmp_path: Path, shared: Path, wait_until: Callable[..., None]
) -> None:
    config = config_of(rtsp.url, valkey.url, tmp_path / "m", clips=True, boxes=False, jpeg_quality=100)
    rings, link = camera_rings(config), Loopback()
    assert list(rings) == ["cam"]
    fleet = Fleet(config.cameras, link, config.ingest, rings=rings)
    media = Media(config, rings)
    fleet.start()
    media.start()
    try:
        with redis.Redis.from_url(valkey.url) as client:
            wait_until(lambda: len(link.frames) > 60)
            header = link.frames[55]
            publish(client, alert_about(header))
            publish(client, alert_about(header, "closed"))
            picture = tmp_path / "m" / media_path("cam", "i1", header.event_us, "jpg")
            wait_until(picture.exists)
            wait_until(lambda: media.recorder.counts().clips == 1)
    finally:
        media.close(1)
        fleet.stop()
    with av.open(str(shared / "videos" / "pistol.mp4")) as container:
        pictures = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    # JPEG loses a little; the next frames of this clip differ by more than it does.
    snapshot = cv2.imread(str(picture))
    assert snapshot.shape == pictures[0].shape
    errors = [float(np.abs(snapshot.astype(int) - each).mean()) for each in pictures]
    assert int(np.argmin(errors)) == 55
    assert errors[55] < 1.5
    with av.open(str(picture.with_suffix(".mp4"))) as container:
        assert 50 <= sum(1 for _ in container.decode(video=0)) <= 85
    names = {count.name for count in counts(media, rings)}
    assert {"sparsecam_media_snapshots", "sparsecam_media_clips", "sparsecam_media_ring_bytes"} <= names


def test_boxes_are_drawn_where_the_alert_says(
    rtsp: RtspServer, valkey: Any, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    config = config_of(rtsp.url, valkey.url, tmp_path / "m")
    rings, link = camera_rings(config), Loopback()
    fleet = Fleet(config.cameras, link, config.ingest, rings=rings)
    fleet.start()
    wait_until(lambda: len(link.frames) > 5)
    fleet.stop()
    header = link.frames[3]
    pictures = {}
    for boxes in (False, True):
        folder = tmp_path / f"{boxes}"
        Media(config_of(rtsp.url, valkey.url, folder, boxes=boxes), rings).recorder.handle(alert_about(header))
        pictures[boxes] = cv2.imread(str(folder / media_path("cam", "i1", header.event_us, "jpg"))).astype(int)
    differs = np.abs(pictures[True] - pictures[False]).max(axis=2) > 25
    assert differs[150, 97:104].any()  # its left side
    assert differs[245:255, 200].any()  # its lower side
    assert not differs[60:240, 110:290].any()
    assert not differs[:, 320:].any()


def test_without_redis_cameras_go_on_and_pictures_begin_when_it_is_there(
    rtsp: RtspServer, own_valkey: Any, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    own_valkey.stop()
    config = config_of(rtsp.url, own_valkey.url, tmp_path / "m")
    rings, link = camera_rings(config), Loopback()
    fleet = Fleet(config.cameras, link, config.ingest, rings=rings)
    media = Media(config, rings)
    fleet.start()
    media.start()
    try:
        wait_until(lambda: len(link.frames) > 40)
        own_valkey.start()
        with redis.Redis.from_url(own_valkey.url) as client:
            publish(client, alert_about(link.frames[-1]))
            wait_until(lambda: media.recorder.counts().snapshots == 1)
    finally:
        media.close(1)
        fleet.stop()


def test_media_that_nobody_wants_keeps_no_packets_and_starts_no_thread(tmp_path: Path) -> None:
    config = config_of("rtsp://127.0.0.1:9/x", "redis://127.0.0.1:9", tmp_path / "m", snapshots=False)
    rings = camera_rings(config)
    assert rings == {}
    media = Media(config, rings)
    before = set(threading.enumerate())
    media.start()
    assert set(threading.enumerate()) <= before
    media.close(1)
    assert list(counts(media, rings)) == []


def test_more_alerts_than_can_be_pictured_are_counted(tmp_path: Path) -> None:
    config = config_of("rtsp://127.0.0.1:9/x", "redis://127.0.0.1:9", tmp_path / "m", clips=True)
    media = Media(config, camera_rings(config))
    header = FrameHeader("cam", "s", 1, False, 10**15, 1, "i420", 2, 2, 2, 2, 1.0, 0, 0)
    for number in range(300):  # nobody takes them up
        media._put(alert_about(header, incident=f"i{number}"))
    media._put(alert_about(header, "updated"))
    assert media.recorder.counts().missed == {("snapshot", "busy"): 300 - 256, ("clip", "busy"): 300 - 256}
