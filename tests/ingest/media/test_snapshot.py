"""A snapshot is the very frame that the alert names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from ingest.media.recorder import Recorder
from ingest.media.ring import PacketRing
from ingest.media.settings import MediaSettings
from ingest.media.snapshot import decode_frame, upright


def true_pictures(source: Path) -> list[np.ndarray]:
    with av.open(str(source)) as container:
        return [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]


def snapshot(ring: PacketRing, header: Any) -> np.ndarray:
    mark = ring.find(header.session, header.seq)
    assert mark is not None
    found = ring.to_decode(mark)
    assert found is not None
    frame = decode_frame(mark.segment.format, *found)
    assert frame is not None
    return upright(frame, mark.turn)


@pytest.mark.parametrize(
    "options",
    [
        {"g": "10", "preset": "ultrafast"},
        {"g": "20", "bf": "3", "preset": "medium"},
        {"g": "12", "bf": "3", "preset": "medium", "x264-params": "open-gop=1:scenecut=0"},
    ],
    ids=["plain", "reordered", "open-gop"],
)
def test_each_frame_is_found_again(
    record: Any, link: Any, tmp_path: Path, write_clip: Callable[..., Path], options: dict[str, str]
) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=60, options=options)
    ring = record(path)
    pictures = true_pictures(path)
    headers = link.frames["cam"]
    assert len(headers) == len(pictures) == 60
    for header, picture in zip(headers, pictures, strict=True):
        assert np.array_equal(snapshot(ring, header), picture)


def test_frames_of_a_real_video_are_found_again(record: Any, link: Any, shared: Path) -> None:
    path = shared / "videos" / "person-bicycle-car.mp4"  # B frames, and an edit list
    ring = record(path)
    pictures = true_pictures(path)
    headers = link.frames["cam"]
    assert len(headers) == len(pictures) == 459
    for index in (0, 1, 100, 333, 457, 458):
        assert np.array_equal(snapshot(ring, headers[index]), pictures[index])


def test_a_turned_camera_gives_upright_snapshots(
    record: Any, link: Any, tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=5)
    ring = record(path, rotate=90)
    expected = np.rot90(true_pictures(path)[3], -1)
    assert np.array_equal(snapshot(ring, link.frames["cam"][3]), expected)


@pytest.mark.parametrize("profile", ["keyframes", "adaptive"])
def test_frames_of_every_profile_are_found_again(
    record: Any, link: Any, tmp_path: Path, write_clip: Callable[..., Path], profile: str
) -> None:
    def still_then_moving(index: int, height: int, width: int) -> np.ndarray:
        rgb = np.random.default_rng(1).integers(60, 120, (height, width, 3), np.uint8)
        left = 0 if index < 150 else 4 * (index - 150)
        rgb[20:120, left : left + 100] = (250, 250, 0)
        return rgb

    path = write_clip(tmp_path / "a.mp4", frames=200, width=320, height=240, draw=still_then_moving)
    ring = record(path, profile=profile, adaptive={"quiet_s": 1})
    pictures, headers = true_pictures(path), link.frames["cam"]
    assert 10 < len(headers) < 200
    for header in headers:
        index = round((header.event_us - headers[0].event_us) / 40_000)
        assert np.array_equal(snapshot(ring, header), pictures[index])


def test_frames_without_time_stamps_are_found_again(
    record: Any, link: Any, tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    options = {"preset": "ultrafast", "g": "10", "tune": "zerolatency"}
    path = write_clip(tmp_path / "a.h264", frames=30, options=options)
    ring = record(path)
    pictures = true_pictures(path)
    with av.open(str(path)) as container:
        assert {packet.pts for packet in container.demux(video=0)} == {None}
    headers = link.frames["cam"]
    assert len(headers) == 30
    for header, picture in zip(headers, pictures, strict=True):
        assert np.array_equal(snapshot(ring, header), picture)


def test_images_have_no_packets_and_that_is_said(
    record: Any, link: Any, alert_about: Any, tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), np.zeros((20, 30, 3), np.uint8))
    ring = record(tmp_path / "in")
    assert ring.bytes == 0
    recorder = Recorder(MediaSettings.model_validate({"dir": tmp_path / "m"}), {"cam": ring})
    recorder.handle(alert_about(link.frames["cam"][0]))
    assert recorder.counts().missed == {("snapshot", "no_packets"): 1}
