"""A snapshot is the very frame that the alert names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from ingest.camera import Camera
from ingest.fleet import Fleet
from ingest.media.ring import PacketRing
from ingest.media.snapshot import decode_frame, upright
from ingest.settings import CameraSettings, IngestSettings


def recorded(link: Any, until: Any, source: Path | str, **settings: Any) -> PacketRing:
    """The ring of a camera that was read to its end."""
    ring = PacketRing(keep_s=3600, max_bytes=10**9)
    camera = CameraSettings.model_validate({"source": str(source)} | settings)
    fleet = Fleet({"file": camera}, link, IngestSettings(), rings={"file": ring})
    fleet.start()
    until(lambda: fleet.finished, 60)
    fleet.stop()
    return ring


def true_pictures(source: Path, turn: str = "bgr24") -> list[np.ndarray]:
    with av.open(str(source)) as container:
        return [frame.to_ndarray(format=turn) for frame in container.decode(video=0)]


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
    link: Any, until: Any, tmp_path: Path, write_clip: Callable[..., Path], options: dict[str, str]
) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=60, options=options)
    ring = recorded(link, until, path)
    pictures = true_pictures(path)
    headers = link.frames["file"]
    assert len(headers) == len(pictures) == 60
    for header, picture in zip(headers, pictures, strict=True):
        assert np.array_equal(snapshot(ring, header), picture)


def test_frames_of_a_real_video_are_found_again(link: Any, until: Any, shared: Path) -> None:
    path = shared / "videos" / "person-bicycle-car.mp4"  # B frames, and an edit list
    ring = recorded(link, until, path)
    pictures = true_pictures(path)
    headers = link.frames["file"]
    assert len(headers) == len(pictures) == 459
    for index in (0, 1, 100, 333, 457, 458):
        assert np.array_equal(snapshot(ring, headers[index]), pictures[index])


def test_a_turned_camera_gives_upright_snapshots(
    link: Any, until: Any, tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=5)
    ring = recorded(link, until, path, rotate=90)
    expected = np.rot90(true_pictures(path)[3], -1)
    assert np.array_equal(snapshot(ring, link.frames["file"][3]), expected)


def test_a_camera_without_a_ring_keeps_nothing(
    link: Any, until: Any, tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=5)
    fleet = Fleet({"file": CameraSettings(source=str(path))}, link, IngestSettings())
    assert Camera is type(fleet._slots["file"].camera)
    assert fleet._slots["file"].preparation.ring is None
    fleet.start()
    until(lambda: fleet.finished)
    fleet.stop()


def test_images_leave_nothing_in_the_ring(link: Any, until: Any, tmp_path: Path, shared: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((20, 30, 3), np.uint8))
    ring = recorded(link, until, tmp_path)
    assert ring.bytes == 0
    assert ring.find(link.frames["file"][0].session, link.frames["file"][0].seq) is None
