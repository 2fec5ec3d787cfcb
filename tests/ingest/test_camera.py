"""One camera's loop, from a source to the link: every frame counted once, whatever happens."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ingest.camera import Camera
from ingest.errors import SourceError
from ingest.fleet import Fleet
from ingest.frames import Picture, Skipped
from ingest.media.ring import PacketRing
from ingest.prepare import Preparation
from ingest.reader import open_reader
from ingest.settings import CameraSettings, IngestSettings
from ingest.sources import Source, parse
from ingest.status import CameraStatus


@pytest.fixture
def play(link: Any) -> Callable[..., Any]:
    """Runs one file camera to its end; returns (ledger snapshot, camera snapshot)."""

    def run(source: Path | str, **settings: Any) -> tuple[Any, Any]:
        camera = CameraSettings.model_validate({"source": str(source)} | settings)
        fleet = Fleet({"file": camera}, link, IngestSettings())
        fleet.start()
        deadline_s = time.monotonic() + 60
        while not fleet.finished:
            assert time.monotonic() < deadline_s, fleet.snapshots()
            time.sleep(0.005)
        fleet.stop()
        return link.ports["file"].ledger.snapshot(), fleet.snapshots()[0]

    return run


def test_a_real_file_is_sent_whole_and_ends(play: Callable[..., Any], link: Any, shared: Path) -> None:
    ledger, camera = play(shared / "videos" / "pistol.mp4")
    assert (ledger.captured, ledger.detected, ledger.dropped) == (214, 214, {})
    assert (camera.state, camera.error) == ("ended", None)
    frames = link.frames["file"]
    first = frames[0]
    assert (first.height, first.width, first.pixel_format, first.lossless) == (224, 416, "i420", True)
    assert (first.source_height, first.source_width) == (338, 640)
    # 25 frames a second, in event time, however fast the file was read.
    assert all(39_900 <= b.event_us - a.event_us <= 40_100 for a, b in itertools.pairwise(frames))


def test_a_file_waits_for_a_model_and_loses_nothing(
    play: Callable[..., Any], link: Any, tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=40)
    spec, link.spec = link.spec, None
    threading.Timer(0.5, lambda: setattr(link, "spec", spec)).start()
    ledger, camera = play(path)
    assert (ledger.captured, ledger.detected) == (40, 40)
    assert camera.state == "ended"


def test_a_full_window_holds_the_file_back(
    link: Any, tmp_path: Path, write_clip: Callable[..., Path], until: Any
) -> None:
    link.settling = False
    fleet = Fleet({"c": CameraSettings(source=str(write_clip(tmp_path / "a.mp4", frames=40)))}, link, IngestSettings())
    fleet.start()
    until(lambda: len(link.frames["c"]) == 4)
    time.sleep(0.2)
    assert len(link.frames["c"]) == 4 and not fleet.finished
    stopped_s = time.monotonic()
    fleet.stop()
    assert time.monotonic() - stopped_s < 2
    # The one in the thread's hand goes out over the window, and the link's owner waits for all of them or counts them.
    ledger = link.ports["c"].ledger.snapshot()
    assert (ledger.captured, ledger.in_flight) == (5, 5)
    link.ports["c"].give_up()
    assert link.ports["c"].ledger.snapshot().dropped == {"stopped": 5}
    assert fleet.snapshots()[0].state == "stopped"


@pytest.mark.parametrize(("fps", "sent"), [(5, 20), (10, 40), (25, 100), (100, 100)])
def test_the_fps_limit_works_in_event_time(
    play: Callable[..., Any], tmp_path: Path, write_clip: Callable[..., Path], fps: float, sent: int
) -> None:
    ledger, _ = play(write_clip(tmp_path / "a.mp4", frames=100), fps=fps)
    assert ledger.captured == 100
    assert abs(ledger.detected - sent) <= 1
    assert ledger.dropped.get("rate_limited", 0) == 100 - ledger.detected


def test_keyframes_only_counts_the_others(
    play: Callable[..., Any], tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    ledger, _ = play(write_clip(tmp_path / "a.mp4", frames=100), profile="keyframes")
    assert (ledger.captured, ledger.detected, ledger.dropped) == (100, 10, {"not_keyframe": 90})


def test_the_motion_gate_drops_still_frames(
    play: Callable[..., Any], tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    def still(index: int, height: int, width: int) -> np.ndarray:
        return np.full((height, width, 3), 80, np.uint8)

    path = write_clip(tmp_path / "a.mp4", frames=100, draw=still)
    ledger, _ = play(path, motion={"enabled": True, "max_quiet_s": 1})
    assert (ledger.captured, ledger.detected, ledger.dropped) == (100, 4, {"static": 96})


def test_looping_goes_on_counting_and_never_goes_back_in_time(
    link: Any, tmp_path: Path, write_clip: Callable[..., Path], until: Any
) -> None:
    settings = CameraSettings(source=str(write_clip(tmp_path / "a.mp4", frames=10)), loop=True)
    fleet = Fleet({"c": settings}, link, IngestSettings())
    fleet.start()
    until(lambda: len(link.frames["c"]) > 55)
    fleet.stop()
    events = [frame.event_us for frame in link.frames["c"]]
    assert all(39_900 <= b - a <= 40_100 for a, b in itertools.pairwise(events))


def test_realtime_pace_takes_the_files_own_time(
    play: Callable[..., Any], tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    begun_s = time.monotonic()
    play(write_clip(tmp_path / "a.mp4", frames=26), pace="realtime")
    assert 0.95 < time.monotonic() - begun_s < 3


def test_a_folder_of_images_good_and_bad(play: Callable[..., Any], link: Any, tmp_path: Path) -> None:
    shapes = [(40, 60), (1, 1), (33, 17), (300, 20)]
    for index, shape in enumerate(shapes):
        cv2.imwrite(str(tmp_path / f"{index}.png"), np.full((*shape, 3), 90, np.uint8))
    cv2.imwrite(str(tmp_path / "4.png"), np.full((50, 50, 4), 90, np.uint8))
    cv2.imwrite(str(tmp_path / "5.png"), np.full((50, 50), 90, np.uint8))
    (tmp_path / "6.jpg").write_bytes(b"not an image")
    ledger, camera = play(tmp_path)
    assert (ledger.captured, ledger.detected, ledger.dropped) == (7, 6, {"decode_error": 1})
    assert camera.state == "ended"
    assert [(f.source_height, f.source_width) for f in link.frames["file"]] == [*shapes, (50, 50), (50, 50)]
    assert {f.pixel_format for f in link.frames["file"]} == {"rgb24"}


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda folder: folder / "missing.mp4", "not_found"),
        (lambda folder: (folder / "zero.mp4").write_bytes(b"") or folder / "zero.mp4", "empty"),
        (lambda folder: (folder / "junk.mkv").write_bytes(b"junk" * 999) and folder / "junk.mkv", "corrupt"),
        (lambda folder: folder, "empty"),
        (lambda folder: (folder / "a.png").write_bytes(b"x") and folder, "corrupt"),
    ],
)
def test_a_file_that_cannot_be_read_fails_with_its_reason(
    play: Callable[..., Any], tmp_path: Path, make: Callable[[Path], Path], kind: str
) -> None:
    ledger, camera = play(make(tmp_path), loop=True)
    assert (camera.state, camera.error) == ("failed", kind)
    assert camera.errors == {kind: 1}
    assert ledger.detected == 0


def test_a_truncated_file_ends_with_all_it_had_and_a_reason(
    play: Callable[..., Any], tmp_path: Path, shared: Path
) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes((shared / "videos" / "pistol.mp4").read_bytes()[:200_000])
    ledger, camera = play(path)
    assert (ledger.captured, ledger.detected, ledger.dropped) == (84, 83, {"decode_error": 1})
    assert (camera.state, camera.error) == ("ended", "corrupt")


def test_a_turned_camera_is_set_upright(
    play: Callable[..., Any], link: Any, tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    play(write_clip(tmp_path / "a.mp4", frames=3, width=320, height=180), rotate=90)
    header = link.frames["file"][0]
    assert (header.source_height, header.source_width) == (320, 180)
    assert (header.height, header.width) == (416, 256)


class Scripted:
    """A reader that follows a script of deliveries and exceptions."""

    nominal_s = 0.04
    concealed = 0
    defect = None

    def __init__(self, script: list[Any]) -> None:
        self._script = script
        self.closed = False

    def deliveries(self) -> Iterator[Any]:
        for each in self._script:
            if isinstance(each, Exception):
                raise each
            yield each

    def close(self) -> None:
        self.closed = True


BEGUN_NS = time.monotonic_ns()


def picture(pts_s: float = 0.0, image: Any = None, captured_s: float | None = None) -> Picture:
    """One that a camera delivers as it is taken, or at `captured_s`."""
    image = np.full((40, 60, 3), 90, np.uint8) if image is None else image
    return Picture(image, pts_s, BEGUN_NS + round(1e9 * (pts_s if captured_s is None else captured_s)))


def camera_of(
    link: Any, scripts: list[list[Any]], stop: threading.Event, **settings: Any
) -> tuple[Camera, CameraStatus, list[Scripted]]:
    """A live camera whose n-th attempt follows the n-th script; after the last, it is stopped."""
    readers: list[Scripted] = []

    def opens(_settings: CameraSettings, _limit: int, _wanted: Any, _wakefulness: Any) -> tuple[Source, Scripted]:
        if len(readers) == len(scripts):
            stop.set()
            raise SourceError("ended", "script over")
        readers.append(Scripted(scripts[len(readers)]))
        return parse("rtsp://cam/x"), readers[-1]

    camera = CameraSettings.model_validate(
        {"source": "rtsp://cam/x", "reconnect": {"base_s": 0.01, "cap_s": 0.01, "stubborn_cap_s": 0.01}} | settings
    )
    status = CameraStatus("c", "rtsp://cam/x", live=True)
    preparation = Preparation(camera, link.camera("c", False), status)
    return Camera(camera, preparation, stop, max_pixels=10**8, open_reader=opens), status, readers


def test_trouble_of_any_kind_is_counted_and_tried_again(link: Any) -> None:
    stop = threading.Event()
    camera, status, readers = camera_of(
        link,
        [
            [picture(0.0), SourceError("reset", "connection lost")],
            [SourceError("frozen", "nothing came")],
            [picture(1.0), ZeroDivisionError("a bug of ours")],
            [Skipped("decode_error", 3), picture(2.0)],
        ],
        stop,
    )
    camera.run()
    assert status.snapshot().errors == {"reset": 1, "frozen": 1, "internal": 1}
    assert status.reconnects == 3
    assert all(reader.closed for reader in readers)
    ledger = link.ports["c"].ledger.snapshot()
    assert (ledger.captured, ledger.detected, ledger.dropped) == (6, 3, {"decode_error": 3})


def test_what_a_server_sends_of_the_past_is_stale(link: Any) -> None:
    past = [picture(index * 0.04, captured_s=index * 0.001) for index in range(50)]
    now = [picture(index * 0.04, captured_s=(index - 49) * 0.04 + 0.049) for index in range(50, 60)]
    camera, _status, _ = camera_of(link, [past + now], threading.Event())
    camera.run()
    ledger = link.ports["c"].ledger.snapshot()
    # Of the two seconds of the past half a second is sent, before it shows that it is the past.
    assert ledger.captured == 60 and set(ledger.dropped) == {"stale"}
    assert 10 <= ledger.detected <= 10 + 13


def test_a_picture_our_code_stumbles_over_costs_that_picture_only(link: Any) -> None:
    stop = threading.Event()
    broken = picture(0.04, image=np.empty((0, 0, 3), np.uint8))
    camera, _status, _ = camera_of(link, [[picture(0.0), broken, broken, picture(0.08)]], stop)
    camera.run()
    ledger = link.ports["c"].ledger.snapshot()
    assert (ledger.captured, ledger.detected, ledger.dropped) == (4, 2, {"decode_error": 2})


def test_an_abandoned_thread_that_wakes_counts_and_sends_nothing(link: Any, until: Any) -> None:
    stop, wake = threading.Event(), threading.Event()

    class Hanging(Scripted):
        def deliveries(self) -> Iterator[Any]:
            yield picture(0.0)
            wake.wait()
            yield picture(0.04)

    camera, status, _ = camera_of(link, [[]], stop)
    camera._open_reader = lambda *_: (parse("rtsp://cam/x"), Hanging([]))  # type: ignore[assignment,return-value]
    thread = threading.Thread(target=camera.run, daemon=True)
    thread.start()
    until(lambda: len(link.frames["c"]) == 1 and camera.in_source_s > 0.05)
    camera.abandon()
    state = status.state = "streaming"  # as its successor would set it
    wake.set()
    thread.join(5)
    assert not thread.is_alive()
    assert len(link.frames["c"]) == 1
    assert link.ports["c"].ledger.snapshot().captured == 1
    assert status.state == state


def test_an_abandoned_thread_that_wakes_while_it_opens_takes_nothing_from_its_successor(
    link: Any, tmp_path: Path, write_clip: Callable[..., Path], until: Any
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=20, width=64, height=48)
    stop, wake = threading.Event(), threading.Event()
    settings = CameraSettings(source=str(clip), live=True)
    ring = PacketRing(5, 10**7)
    preparation = Preparation(settings, link.camera("c", False), CameraStatus("c", str(clip), live=True), ring)

    def slow(*arguments: Any) -> Any:
        wake.wait()
        return open_reader(*arguments)

    old = Camera(settings, preparation, stop, max_pixels=10**8, open_reader=slow)
    thread = threading.Thread(target=old.run, daemon=True)
    thread.start()
    until(lambda: old.in_source_s > 0)
    old.abandon()
    _, reader = Camera(settings, preparation, stop, max_pixels=10**8)._open()
    anchored = preparation.clock._offset_us = 0.0  # as the successor's first frame would set it
    wake.set()
    thread.join(5)
    assert not thread.is_alive()
    assert len(list(itertools.islice(reader.deliveries(), 5))) == 5
    reader.close()
    assert sum(len(group.packets) for group in ring._groups) >= 5
    assert preparation.clock._offset_us == anchored


def test_live_frames_without_a_model_are_counted_as_that(make_link: Callable[..., Any]) -> None:
    link, stop = make_link(None), threading.Event()
    camera, _, _ = camera_of(link, [[picture(0.0), Skipped("no_model", 2)]], stop)
    camera.run()
    ledger = link.ports["c"].ledger.snapshot()
    assert (ledger.captured, ledger.dropped, ledger.balanced) == (3, {"no_model": 3}, True)
