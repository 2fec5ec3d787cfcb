"""A clip is the camera's own packets, from a keyframe before its pre-roll to the end of its post-roll."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from ingest.media.recorder import HOLD_S, STALL_S, Recorder
from ingest.media.settings import MediaSettings
from ingest.sim.h264 import split_annexb
from wire.alerts import rfc3339
from wire.media import media_path


def settings(folder: Path, **changes: Any) -> MediaSettings:
    return MediaSettings.model_validate(
        {"dir": folder, "clips": True, "pre_roll_s": 1, "post_roll_s": 1, "min_free_gb": 0} | changes
    )


def packets(path: Path) -> list[Any]:
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


def pictures(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]


def nal_units(path: Path) -> list[list[bytes]]:
    """Each packet's NAL units but for parameter sets, which RTSP repeats with each keyframe."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        to_annexb = av.BitStreamFilterContext("h264_mp4toannexb", stream)
        units = []
        for packet in container.demux(stream):
            for filtered in to_annexb.filter(packet if packet.size else None):
                units.append([nal for nal in split_annexb(bytes(filtered)) if nal[0] & 31 not in (7, 8, 9)])
        return units


def clip_of(folder: Path, header: Any, incident: str = "i1") -> Path:
    return folder / media_path(header.camera, incident, header.event_us, "mp4")


def drain(recorder: Recorder, until: Any) -> None:
    def done() -> bool:
        recorder.tick()
        return recorder.counts().clips_open == 0

    until(done, 30)


@pytest.mark.parametrize("options", [{"g": "10"}, {"g": "20", "bf": "3", "preset": "medium"}], ids=["plain", "b"])
def test_a_files_packets_are_kept_byte_for_byte(
    record: Any,
    link: Any,
    until: Any,
    alert_about: Any,
    tmp_path: Path,
    write_clip: Callable[..., Path],
    options: dict[str, str],
) -> None:
    source = write_clip(tmp_path / "a.mp4", frames=200, options=options | {"sc_threshold": "0"})
    ring = record(source)
    recorder = Recorder(settings(tmp_path / "m"), {"cam": ring})
    header = link.frames["cam"][99]
    recorder.handle(alert_about(header))
    recorder.handle(alert_about(header, "closed", at_us=header.event_us + 500_000))
    drain(recorder, until)

    of_source = packets(source)
    clip = clip_of(tmp_path / "m", header)
    of_clip = packets(clip)
    sources = [bytes(packet) for packet in of_source]
    first = sources.index(bytes(of_clip[0]))
    assert [bytes(packet) for packet in of_clip] == sources[first : first + len(of_clip)]
    assert of_clip[0].is_keyframe
    # Frame 99 is at 3.96 s: pre-roll from 2.96 s, after the keyframes at 2.8 s (g=10 or 20); 1.5 s after it the end.
    gop = int(options["g"])
    assert first == 74 // gop * gop
    shown_s = [float((packet.pts - of_clip[0].pts) * packet.time_base) for packet in of_clip]
    assert max(shown_s) == pytest.approx((99 - first) / 25 + 1.5, abs=0.13)
    # And it plays: the pictures are those of the source.
    shown, true = pictures(clip), pictures(source)
    assert len(shown) == len(of_clip)
    assert np.array_equal(shown[0], true[first])
    assert np.array_equal(shown[99 - first], true[99])
    counts = recorder.counts()
    assert (counts.clips, counts.clips_late, counts.clips_cut, counts.snapshots) == (1, 0, 0, 1)


def test_an_incident_that_was_held_back_has_its_files_by_the_frame_that_opened_it(
    record: Any, link: Any, until: Any, alert_about: Any, tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    """A cooldown or a budget keeps it back, here over midnight: it began the day before it was told of."""
    ring = record(write_clip(tmp_path / "a.mp4", frames=200))
    recorder = Recorder(settings(tmp_path / "m"), {"cam": ring})
    header = link.frames["cam"][99]
    began = rfc3339(header.event_us - 86_400_000_000)
    recorder.handle(alert_about(header, opened_time=began))
    recorder.handle(alert_about(header, "closed", at_us=header.event_us + 500_000, opened_time=began))
    drain(recorder, until)
    clip = clip_of(tmp_path / "m", header)
    assert clip.with_suffix(".jpg").exists()
    before_s, after_s = 1.0 + 2.0, 0.5 + 1.0  # a pre-roll and at most a keyframe's distance; its end and the post-roll
    assert len(packets(clip)) / 25 <= before_s + after_s + 0.1


def test_a_real_rtsp_camera_gives_a_clip_that_goes_on_until_its_incident_is_closed(
    watch: Any, link: Any, until: Any, serve_rtsp: Any, alert_about: Any, tmp_path: Path, shared: Path
) -> None:
    source = shared / "videos" / "pistol.mp4"
    server = serve_rtsp(source)
    _, ring = watch(server.url, keep_s=8, profile="all")
    recorder = Recorder(settings(tmp_path / "m"), {"cam": ring})
    until(lambda: len(link.frames["cam"]) > 60, 20)
    header = link.frames["cam"][50]
    recorder.handle(alert_about(header))
    clip = clip_of(tmp_path / "m", header)
    assert clip.with_suffix(".jpg").exists()

    def reached(frames: int) -> bool:
        recorder.tick()
        return len(link.frames["cam"]) > frames

    until(lambda: reached(110), 20)
    assert recorder.counts().clips_open == 1
    assert not clip.exists()  # a clip appears whole
    recorder.handle(alert_about(header, "closed", at_us=link.frames["cam"][100].event_us))
    drain(recorder, until)
    assert recorder.counts().clips == 1
    # The camera loops its file; the clip lies in its first round.
    of_source, of_clip = nal_units(source), nal_units(clip)
    first = of_source.index(of_clip[0])
    assert of_clip == of_source[first : first + len(of_clip)]
    assert packets(clip)[0].is_keyframe
    assert first / 25 <= 50 / 25 - 1
    assert first + len(of_clip) - 1 == pytest.approx(125, abs=3)


def test_a_camera_that_goes_down_completes_its_clip(
    watch: Any,
    link: Any,
    until: Any,
    serve_rtsp: Any,
    alert_about: Any,
    tmp_path: Path,
    write_clip: Callable[..., Path],
) -> None:
    server = serve_rtsp(write_clip(tmp_path / "a.mp4", frames=500))
    _, ring = watch(server.url)
    recorder = Recorder(settings(tmp_path / "m"), {"cam": ring})
    until(lambda: len(link.frames["cam"]) > 30)
    header = link.frames["cam"][-5]
    recorder.handle(alert_about(header))
    recorder.tick()
    server.faults.reset()
    drain(recorder, until)
    counts = recorder.counts()
    assert (counts.clips, counts.clips_cut) == (1, 1)
    assert len(pictures(clip_of(tmp_path / "m", header))) >= 25
    # The camera is back under another connection, and its alerts have pictures again.
    before = len(link.frames["cam"])
    until(lambda: len(link.frames["cam"]) > before + 10)
    recorder.handle(alert_about(link.frames["cam"][-1], incident="i2"))
    recorder.close()
    assert recorder.counts().clips == 2
    assert recorder.counts().snapshots == 2


def test_a_silent_camera_and_the_longest_clip_end_it_too(
    record: Any, link: Any, alert_about: Any, tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    ring = record(write_clip(tmp_path / "a.mp4", frames=100))
    ahead_s = [HOLD_S]

    def now_s() -> float:
        return time.monotonic() + ahead_s[0]

    recorder = Recorder(settings(tmp_path / "m", clip_max_s=1), {"cam": ring}, monotonic_s=now_s)
    header = link.frames["cam"][50]
    recorder.handle(alert_about(header))
    recorder.tick()
    assert recorder.counts().clips == 1  # what it needs was there already
    assert len(packets(clip_of(tmp_path / "m", header))) == 75 - 20

    recorder = Recorder(settings(tmp_path / "n"), {"cam": ring}, monotonic_s=now_s)
    ring.find(header.session, header.seq).segment.ended = False  # it hangs, connected
    recorder.handle(alert_about(header))
    recorder.tick()
    assert recorder.counts().clips == 0
    ahead_s[0] += STALL_S + 1
    recorder.tick()
    assert (recorder.counts().clips, recorder.counts().clips_cut) == (1, 1)


def test_an_alert_delivered_twice_makes_one_clip(
    record: Any, link: Any, until: Any, alert_about: Any, tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    ring = record(write_clip(tmp_path / "a.mp4", frames=100))
    recorder = Recorder(settings(tmp_path / "m"), {"cam": ring})
    for _ in range(3):
        recorder.handle(alert_about(link.frames["cam"][50]))
    drain(recorder, until)
    recorder.handle(alert_about(link.frames["cam"][50]))
    assert (recorder.counts().clips, recorder.counts().snapshots, recorder.counts().clips_open) == (1, 1, 0)
    assert not recorder.counts().missed


def test_what_mp4_does_not_take_costs_the_clip_and_not_the_snapshot(
    record: Any, link: Any, alert_about: Any, tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    source = write_clip(tmp_path / "a.avi", frames=20, codec="rawvideo")
    recorder = Recorder(settings(tmp_path / "m"), {"cam": record(source)})
    recorder.handle(alert_about(link.frames["cam"][10]))
    counts = recorder.counts()
    assert (counts.snapshots, counts.clips, counts.missed) == (1, 0, {("clip", "codec"): 1})
    assert [path.suffix for path in (tmp_path / "m").rglob("*.*")] == [".jpg"]


@pytest.mark.parametrize("codec", ["libx265", "mjpeg"])
def test_other_codecs_of_cameras_have_clips_too(
    record: Any, link: Any, until: Any, alert_about: Any, tmp_path: Path, write_clip: Callable[..., Path], codec: str
) -> None:
    options = (
        {"preset": "ultrafast", "x265-params": "keyint=10:open-gop=0:log-level=none"} if codec == "libx265" else {}
    )
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    source = write_clip(tmp_path / "a.mkv", frames=100, codec=codec, options=options, pix_fmt=pix_fmt)
    recorder = Recorder(settings(tmp_path / "m"), {"cam": record(source)})
    header = link.frames["cam"][50]
    recorder.handle(alert_about(header))
    drain(recorder, until)
    sources = [bytes(packet) for packet in packets(source)]
    clips = [bytes(packet) for packet in packets(clip_of(tmp_path / "m", header))]
    first = sources.index(clips[0])
    assert sources[first : first + len(clips)] == clips
    assert first <= 25


def test_pictures_that_refer_to_before_the_clip_are_left_out(
    record: Any, link: Any, until: Any, alert_about: Any, tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    options = {"bf": "3", "preset": "medium", "g": "12", "x264-params": "open-gop=1:scenecut=0"}
    source = write_clip(tmp_path / "a.mp4", frames=100, options=options)
    recorder = Recorder(settings(tmp_path / "m"), {"cam": record(source)})
    header = link.frames["cam"][60]
    recorder.handle(alert_about(header))
    drain(recorder, until)
    of_source, clip = packets(source), clip_of(tmp_path / "m", header)
    clips = [bytes(packet) for packet in packets(clip)]
    first = [bytes(packet) for packet in of_source].index(clips[0])
    # Reordered before their keyframe, and decodable only with the pictures of the group before.
    leading = [p for p in of_source[first : first + 5] if p.pts < of_source[first].pts]
    assert leading
    assert clips == [bytes(packet) for packet in of_source[first:] if packet not in leading]
    assert len(pictures(clip)) == len(clips)
