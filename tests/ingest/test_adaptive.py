"""The adaptive profile on real encoded streams: quiet, then something moves, then quiet again."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from ingest.decoder import Decoder
from ingest.errors import SourceError
from ingest.fleet import Fleet
from ingest.frames import Picture
from ingest.reader import VideoReader
from ingest.settings import CameraSettings, IngestSettings
from ingest.sources import parse
from ingest.wakefulness import Wakefulness, WakefulnessSnapshot

FPS, GOP, FRAMES = 25, 25, 300
MOVES = range(160, 200)  # frames in which a figure walks; six seconds of quiet before, four after
ZEROLATENCY = {"preset": "ultrafast", "tune": "zerolatency", "crf": "25", "g": str(GOP), "sc_threshold": "0"}


@functools.cache
def noise(index: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 7, (height, width, 1), np.uint8)


def street(index: int, height: int, width: int) -> np.ndarray:
    """A textured, noisy street; a dark figure crosses it in the frames `MOVES`."""
    texture = np.random.default_rng(7).integers(60, 180, (height // 8, width // 8), np.uint8)
    rgb = np.repeat(np.kron(texture, np.ones((8, 8), np.uint8))[..., None], 3, 2) + noise(index % 8, height, width)
    if index in MOVES:
        left = (index - MOVES.start) * 5
        rgb[height // 3 : height // 3 + 40, left : left + 16] = 10
    return rgb


def noisy_street(index: int, height: int, width: int) -> np.ndarray:
    return np.clip(street(index, height, width) + np.int16(4) * noise(index % 8, height, width), 0, 255).astype(
        np.uint8
    )


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory, write_clip: Callable[..., Path]) -> Callable[..., Path]:
    """A clip of the street; encoded once a session for each set of options."""

    @functools.cache
    def make(changes: tuple[tuple[str, str], ...], suffix: str, codec: str, draw: Any, frames: int) -> Path:
        path = tmp_path_factory.mktemp("clip") / f"a.{suffix}"
        options = {**ZEROLATENCY, **dict(changes)} if codec == "libx264" else dict(changes)
        pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        return write_clip(path, frames, 256, 144, FPS, codec, pix_fmt, options, draw)

    def of(
        options: dict[str, str] | None = None,
        suffix: str = "mp4",
        codec: str = "libx264",
        draw: Any = street,
        frames: int = FRAMES,
    ) -> Path:
        return make(tuple((options or {}).items()), suffix, codec, draw, frames)

    return of


class Seen:
    """What a reader made of a clip."""

    def __init__(self, path: Path, live: bool = False, wanted: Callable[[], bool] = lambda: True, **settings: Any):
        wakefulness = Wakefulness()
        options = {"source": str(path), "profile": "adaptive", "adaptive": {"quiet_s": 1}} | settings
        camera = CameraSettings.model_validate(options)
        reader = VideoReader(parse(str(path), live), camera, 10**8, wanted, wakefulness=wakefulness)
        self.fates: Counter[str] = Counter()
        self.frames: list[int] = []  # numbers of those that became pictures
        self.log: list[tuple[str, str]] = []
        try:
            for delivery in reader.deliveries():
                if isinstance(delivery, Picture):
                    self.fates["picture"] += 1
                    self.frames.append(round((delivery.pts_s or 0) * FPS))
                else:
                    self.fates[delivery.cause] += delivery.count
                state = wakefulness.snapshot()
                if not self.log or self.log[-1] != (state.decoding, state.why):
                    self.log.append((state.decoding, state.why))
        except SourceError as error:
            assert live and error.kind == "ended"
        reader.close()
        self.decoding: WakefulnessSnapshot = wakefulness.snapshot()


def counted_once(seen: Seen, frames: int = FRAMES) -> None:
    assert sum(seen.fates.values()) == frames, seen.fates
    assert all(a < b for a, b in itertools.pairwise(seen.frames))


REORDERED = {"bf": "3", "preset": "medium", "tune": "film"}


@pytest.mark.parametrize(
    ("options", "codec"),
    [
        ({}, "libx264"),
        (REORDERED, "libx264"),
        (REORDERED | {"x264-params": "open-gop=1"}, "libx264"),
        ({"preset": "ultrafast", "crf": "28", "x265-params": "keyint=25:min-keyint=25:log-level=none"}, "libx265"),
    ],
    ids=["h264", "h264-b-frames", "h264-open-gop", "h265-b-frames"],
)
def test_a_file_sleeps_while_it_is_still_and_loses_nothing_of_what_moves(
    clip: Callable[..., Path], options: dict[str, str], codec: str
) -> None:
    seen = Seen(clip(options, codec=codec))
    counted_once(seen)
    assert set(seen.fates) == {"picture", "asleep"}
    assert set(MOVES) <= set(seen.frames)
    # All of the group of pictures in which it began, back to its keyframe; a file has no hurry.
    assert set(range(MOVES.start // GOP * GOP + 3, MOVES.start)) <= set(seen.frames)
    assert seen.fates["asleep"] > 60
    assert seen.decoding.wakes == {"size": 1}
    why = [why for _, why in seen.log if "times the usual" in why]
    assert len(why) == 1 and "of the picture changed" in why[0]


def test_a_live_camera_sends_of_what_it_held_only_what_is_fresh(clip: Callable[..., Path]) -> None:
    seen = Seen(clip(), live=True)
    counted_once(seen)
    assert set(MOVES) <= set(seen.frames)
    before = [frame for frame in seen.frames if frame < MOVES.start]
    # It slept before: half a second of held pictures was sent, and the keyframes that it looked at.
    assert before[-1] == MOVES.start - 1
    sent_of_held = list(itertools.takewhile(lambda n: n in before, range(MOVES.start - 1, 0, -1)))
    assert len(sent_of_held) <= 13


def test_asleep_a_keyframe_is_sent_every_max_quiet_s(clip: Callable[..., Path]) -> None:
    path = clip(draw=lambda index, height, width: street(0, height, width))
    seen = Seen(path, live=True, adaptive={"quiet_s": 1, "max_quiet_s": 2})
    counted_once(seen)
    slept = [frame for frame in seen.frames if frame > 100]
    assert slept == list(range(slept[0], FRAMES, 2 * GOP))
    assert seen.decoding.wakes == {}
    assert seen.decoding.awake_share < 0.4


def test_what_the_packet_sizes_did_not_say_a_keyframe_does(
    clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.sizes.SizeWatch.score", lambda *_: 0.0)  # an encoder that hides it
    seen = Seen(clip(), live=True, adaptive={"quiet_s": 1, "max_quiet_s": 0.5})
    counted_once(seen)
    assert seen.decoding.wakes == {"pixels": 1}
    assert min(frame for frame in seen.frames if frame in MOVES) == 175  # the first keyframe after it came


def walks_often(index: int, height: int, width: int) -> np.ndarray:
    return street(MOVES.start + index % 150 if index % 150 < len(MOVES) else 0, height, width)


def dusk(index: int, height: int, width: int) -> np.ndarray:
    """Nothing moves, and from frame 140 on the sensor is noisier."""
    quiet = np.random.default_rng(7).integers(60, 180, (height // 8, width // 8), np.uint8)
    rgb = np.repeat(np.kron(quiet, np.ones((8, 8), np.uint8))[..., None], 3, 2).astype(np.int16)
    strength = 0.0 if index < 140 else 2.5
    return np.clip(rgb + np.random.default_rng(index).normal(0, strength, rgb.shape), 0, 255).astype(np.uint8)


def test_noise_that_rises_is_not_decoded_from_the_keyframe_on_at_every_packet(
    clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    look = Decoder.look
    monkeypatch.setattr(Decoder, "look", lambda self, held: decoded.append(len(held)) or look(self, held))
    options = {"bf": "2", "b-adapt": "0", "g": "100", "keyint_min": "100", "tune": "film"}
    seen = Seen(clip(options, draw=dusk), live=True)
    counted_once(seen)
    assert seen.decoding.false_alarms >= 2  # the noise was met asleep
    assert sum(decoded) <= 2 * 100  # two looks at most at what a keyframe's packets hold


def test_sizes_that_were_silent_three_times_are_not_trusted_any_more(
    clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.sizes.SizeWatch.score", lambda *_: 0.0)
    seen = Seen(clip(draw=walks_often, frames=750), live=True, adaptive={"quiet_s": 1, "max_quiet_s": 0.5})
    counted_once(seen, 750)
    assert seen.decoding.wakes == {"pixels": 3}
    assert seen.decoding.decoding == "always_awake" and "did not tell" in seen.decoding.why


def test_a_keyframe_too_large_to_hold_wakes_it(clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.adaptive.MAX_BYTES", 1000)
    seen = Seen(clip())
    counted_once(seen)
    assert set(seen.decoding.wakes) == {"long_gop"} and seen.fates == {"picture": FRAMES}


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda clip: clip({"g": "1"}), "every packet is a keyframe"),
        (lambda clip: clip({"g": "1000"}, frames=400), "no keyframe among 300 packets"),
        (lambda clip: clip({"x264-params": "intra-refresh=1"}), "cannot be decoded alone"),
        (lambda clip: clip({"qscale": "5"}, "mkv", "mjpeg", frames=50), "mjpeg"),
        (lambda clip: clip({"g": "25"}, "h264"), "timestamps"),
    ],
    ids=["intra-only", "no-keyframes", "intra-refresh", "mjpeg", "no-timestamps"],
)
def test_a_stream_that_cannot_be_watched_undecoded_stays_awake_and_says_why(
    clip: Callable[..., Path], make: Callable[[Any], Path], why: str
) -> None:
    path = make(clip)
    with av.open(str(path)) as container:
        frames = sum(packet.size > 0 for packet in container.demux(video=0))
    seen = Seen(path)
    assert sum(seen.fates.values()) == frames
    assert any(state == "always_awake" and why in said for state, said in seen.log), seen.log
    assert seen.fates["picture"] >= frames - 2 * GOP  # what it cost to find out


@pytest.mark.parametrize("hrd", ["none", "cbr"], ids=["cbr", "cbr-with-filler"])
def test_constant_bitrate_spent_on_noise_stays_awake(clip: Callable[..., Path], hrd: str) -> None:
    rate = {"x264-params": f"bitrate=300:vbv-maxrate=300:vbv-bufsize=300:nal-hrd={hrd}", "preset": "veryfast"}
    seen = Seen(clip(rate | {"crf": "-1"}, draw=noisy_street))
    counted_once(seen)
    assert set(MOVES) <= set(seen.frames)
    assert any(state == "always_awake" and "of a keyframe" in why for state, why in seen.log), seen.log


def test_a_leap_of_the_camera_clock_wakes_it_and_loses_no_count(clip: Callable[..., Path]) -> None:
    path = clip(draw=lambda index, height, width: street(0, height, width))
    camera = CameraSettings.model_validate({"source": str(path), "profile": "adaptive", "adaptive": {"quiet_s": 1}})
    for leap_s in (-3600, 3600):
        wakefulness = Wakefulness()
        reader = VideoReader(parse(str(path)), camera, 10**8, wakefulness=wakefulness)
        packets = reader._packets

        def leaping(packets: Any = packets, leap_s: int = leap_s) -> Any:
            for number, packet in enumerate(packets()):
                if number >= 210:
                    packet.pts += round(leap_s / packet.time_base)
                yield packet

        reader._packets = leaping  # type: ignore[method-assign]  # between demuxer and decoder, as a camera would
        total = sum(1 if isinstance(each, Picture) else each.count for each in reader.deliveries())
        reader.close()
        assert total == FRAMES
        assert wakefulness.snapshot().wakes == {"clock": 1}


def test_a_detector_that_leaves_while_the_camera_sleeps_costs_no_count(clip: Callable[..., Path]) -> None:
    calls = itertools.count()
    seen = Seen(clip(), live=True, wanted=lambda: not 130 <= next(calls) < 140)
    assert seen.fates["no_model"] == 10
    counted_once(seen)


def test_damage_while_asleep_is_survived_and_counted(clip: Callable[..., Path], tmp_path: Path) -> None:
    data = bytearray(clip(suffix="ts").read_bytes())
    for at in range(20_000, len(data), 7_001):
        data[at] ^= 0xFF
    path = tmp_path / "damaged.ts"
    path.write_bytes(data)
    with av.open(str(path)) as container:
        frames = sum(packet.size > 0 for packet in container.demux(video=0))
    seen = Seen(path)
    # A damaged container may end an access unit early or late, so pictures may be one more or fewer than packets.
    assert abs(sum(seen.fates.values()) - frames) <= 2
    assert seen.fates["picture"] > 50


def test_the_default_profile_is_adaptive_for_live_and_all_for_files(clip: Callable[..., Path]) -> None:
    assert Seen(clip(), profile=None).fates == {"picture": FRAMES}
    assert Seen(clip(), live=True, profile=None).fates["asleep"] > 60
    assert Seen(clip({"qscale": "5"}, "mkv", "mjpeg", frames=50), live=True, profile=None).decoding.decoding == "all"


def test_a_simulated_camera_sleeps_wakes_and_balances(link: Any, until: Any) -> None:
    source = "sim://street?seed=2&size=320x240&objects=3&quiet=7/8&gop=0.5"
    camera = CameraSettings.model_validate({"source": source, "fps": 5, "adaptive": {"quiet_s": 1}})
    fleet = Fleet({"c": camera}, link, IngestSettings())

    def gaps_s(apart: int = 1) -> list[float]:
        frames = link.frames.get("c", ())
        return [(b.event_us - a.event_us) / 1e6 for a, b in zip(frames, frames[apart:], strict=False)]

    fleet.start()
    try:
        # The wake is counted before its first frame comes, and that frame ends the gap.
        until(lambda: fleet.snapshots()[0].decoding.wakes and max(gaps_s(), default=0) > 0.4, 40, "slept and woke")
    finally:
        fleet.stop()
    decoding = fleet.snapshots()[0].decoding
    assert decoding.asleep_s > 0.4 and set(decoding.wakes) <= {"size", "pixels"}
    ledger = link.ports["c"].ledger.snapshot()
    assert ledger.balanced and ledger.dropped["asleep"] > 0
    # Frames are as old as they say, and fresh enough for a broker.
    ages_s = [at - frame.captured_ns / 1e9 for frame, at in zip(link.frames["c"], link.arrived_s["c"], strict=True)]
    assert min(ages_s) >= 0 and max(ages_s) < 1
    assert max(gaps_s()) > 0.4  # asleep
    assert min(gaps_s(apart=2)) > 0.2  # five a second, and no burst of more than two: a busy machine's frames come late
