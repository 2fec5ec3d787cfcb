"""The plan: its arithmetic holds for every load, it refuses nonsense in words, and it runs on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.idle_clips import ENCODINGS, encode
from detector.cores import Core, Topology
from ingest.frames import Picture
from ingest.reader import open_reader
from ingest.settings import CameraSettings
from ingest.sim.scene_url import parse as parse_scene
from ingest.wakefulness import Wakefulness
from services.bench.bare import BareResult, placements
from services.bench.costs import BUILT_IN, costs_of
from services.bench.decode_cost import (
    Camera,
    DecodeCost,
    Load,
    Profile,
    asleep_keyframes_per_s,
    camera_load,
    decode_cost,
    write_clip,
)
from services.bench.errors import PlanError
from services.bench.pipeline import engine_cpu_ms
from services.bench.plan import BUSY_LIMIT, Point, Wish, batched_share, best, check, make_plan
from wire.messages import InputSpec

CAMERA = Camera(1920, 1080, 25.0, 2.0)
DECODE = DecodeCost(packet_ms=0.2, frame_ms=4.0, keyframe_ms=8.0, look_ms=1.0, letterbox_ms=0.5)
POINT = Point(1, 2, 1, 400.0, 5.0, 5.0)
WISH = Wish(4, 5.0, CAMERA, "all", 0.125)

costs = st.floats(0.01, 50)
profiles = st.sampled_from(["all", "keyframes", "adaptive"])


@st.composite
def loads(draw: st.DrawFn) -> tuple[Wish, Point, DecodeCost, int]:
    """Sensible wishes on machines of any speed and size."""
    source_fps = draw(st.floats(1, 60))
    camera = Camera(1920, 1080, source_fps, draw(st.floats(0.5, 10)))
    wish = Wish(
        draw(st.integers(1, 200)), draw(st.floats(0.1, 1)) * source_fps, camera, draw(profiles), draw(st.floats(0, 1))
    )
    decode = DecodeCost(draw(st.floats(0, 0.5)), draw(costs), draw(costs), draw(st.floats(0, 1)), draw(costs))
    size = draw(st.integers(1, 4))
    usable = draw(st.integers(size, 128))
    return wish, Point(size, usable // size, 1, 100.0, 5.0, draw(costs)), decode, usable


@given(loads())
def test_as_many_cameras_as_it_says_are_held_and_not_one_more(load: tuple[Wish, Point, DecodeCost, int]) -> None:
    wish, point, decode, usable = load
    held = make_plan(wish, point, decode, BUILT_IN, usable).cameras_held
    for cameras, holds in ((held, True), (held + 1, False)):
        if cameras:
            plan = make_plan(replace(wish, cameras=cameras), point, decode, BUILT_IN, usable)
            assert plan.holds is holds and plan.cameras_held == held
            if holds:
                assert plan.utilisation <= BUSY_LIMIT + 1e-9
                assert all(plan.cores[part] <= BUSY_LIMIT + 1e-3 for part in ("broker", "valkey", "sink"))


@given(loads())
def test_workers_fit_the_machine_and_hold_the_frames_where_cores_are_to_spare(
    load: tuple[Wish, Point, DecodeCost, int],
) -> None:
    wish, point, decode, usable = load
    plan = make_plan(wish, point, decode, BUILT_IN, usable)
    assert 1 <= plan.workers * plan.cores_per_worker <= usable
    if plan.workers < usable // plan.cores_per_worker:
        inference = plan.cores["engine"] + plan.cores["worker"]
        assert inference <= BUSY_LIMIT * plan.workers * plan.cores_per_worker + 1e-3


@pytest.mark.parametrize("quota", [0.5, 0.1, 1.5])
def test_a_quota_of_a_part_of_a_core_holds_that_part_of_the_cameras(quota: float) -> None:
    whole, part = (make_plan(WISH, POINT, DECODE, BUILT_IN, usable) for usable in (20, 20 * quota))
    assert part.cameras_held == pytest.approx(quota * whole.cameras_held, abs=1)
    small = make_plan(replace(WISH, cameras=1), POINT, DECODE, BUILT_IN, quota)
    assert small.workers == 1 and small.utilisation == small.used / quota
    assert small.holds is (small.used <= BUSY_LIMIT * quota)
    assert f"{BUSY_LIMIT:g} x {quota:g} cores" in small.lines[-1]


@given(loads(), st.floats(0, 1))
def test_adaptive_lies_between_asleep_and_awake_by_its_busy_share(
    load: tuple[Wish, Point, DecodeCost, int], share: float
) -> None:
    wish, _, decode, _ = load

    def cost(profile: Profile, busy: float) -> Load:
        return camera_load(decode, wish.camera, profile, wish.fps, busy)

    awake, asleep, mixed, whole = cost("adaptive", 1.0), cost("adaptive", 0.0), cost("adaptive", share), cost("all", 0)
    for part in ("decode", "letterbox", "detections_per_s"):
        one, other = getattr(awake, part), getattr(asleep, part)
        assert getattr(mixed, part) == pytest.approx(share * one + (1 - share) * other)
    # Awake it is `all` and two looks a second; every packet is received, asleep or not.
    assert 0 <= awake.decode - whole.decode <= 2 * decode.look_ms / 1e3 + 1e-9
    assert awake.detections_per_s == whole.detections_per_s
    assert awake.receive == asleep.receive == whole.receive


@pytest.mark.parametrize(("interval_s", "every_s"), [(2.0, 10.0), (0.1, 10.0), (4.0, 12.0), (10.0, 10.0), (30.0, 30.0)])
def test_asleep_a_camera_decodes_the_first_keyframe_after_ten_seconds(interval_s: float, every_s: float) -> None:
    asleep = camera_load(DECODE, Camera(1920, 1080, 25.0, interval_s), "adaptive", 5.0, 0.0)
    assert asleep.detections_per_s == pytest.approx(1 / every_s)
    assert asleep.decode == pytest.approx((8.0 + 1.0) / 1e3 / every_s)


def test_what_the_plan_takes_a_sleeping_camera_to_decode_is_what_it_decodes(tmp_path: Path) -> None:
    """The real reader on a minute of a still street: how often its keyframes come out while it sleeps."""
    (clip,) = encode(parse_scene("sim://street?seed=3&size=320x240&objects=0&noise=4"), 1500, tmp_path, ENCODINGS[:1])
    settings = CameraSettings.model_validate({"source": str(clip), "profile": "adaptive"})
    wakefulness = Wakefulness("still")
    _, reader = open_reader(settings, 10**7, wakefulness=wakefulness)
    shown_s = []
    try:
        for delivery in reader.deliveries():
            if isinstance(delivery, Picture) and wakefulness.snapshot().decoding == "asleep":
                shown_s.append(delivery.pts_s or 0.0)
    finally:
        reader.close()
    with av.open(str(clip)) as container:
        keys_s = [float(packet.pts * packet.time_base) for packet in container.demux(video=0) if packet.is_keyframe]
    assert len(shown_s) >= 4, "it slept for most of the minute"
    expected_s = 1 / asleep_keyframes_per_s(Camera(320, 240, 25.0, keys_s[1] - keys_s[0]))
    assert {round(b - a, 3) for a, b in pairwise(shown_s)} == {round(expected_s, 3)}


def test_the_arithmetic_by_hand() -> None:
    # A second of a camera: 25 x (0.2 ms receive + 4 decode), 5 x (0.5 letterbox + 5 engine + the rest).
    rest_ms = BUILT_IN.send + BUILT_IN.broker + BUILT_IN.worker + BUILT_IN.valkey + BUILT_IN.sink
    each = (25 * 4.2 + 5 * (0.5 + 5.0 + rest_ms)) / 1e3
    plan = make_plan(WISH, POINT, DECODE, BUILT_IN, 2)
    assert plan.used == pytest.approx(4 * each) and plan.cameras_held == int(0.85 * 2 / each)
    assert "25 packets x 0.200 ms = 5.0 ms" in plan.lines[0] and "25 frames x 4.00 ms = 100.0 ms" in plan.lines[1]
    assert BUILT_IN.source in "\n".join(plan.lines)


def test_one_thread_of_the_broker_bounds_a_machine_of_many_cores() -> None:
    cheap = Point(1, 128, 1, 1e6, 0.1, 0.1)
    plan = make_plan(WISH, cheap, replace_decode(frame_ms=0.01, packet_ms=0.01), BUILT_IN, 128)
    assert plan.limited_by == "broker" and plan.cameras_held == int(BUSY_LIMIT / (5 * BUILT_IN.broker / 1e3))


@pytest.mark.parametrize(
    ("profile", "frame_ms", "busy_share", "held"),
    [
        ("all", 30.0, 0.125, True),  # 25 x (0.2 + 30) + 5 x 0.5 = 757 ms a second
        ("all", 34.0, 0.125, False),  # 857
        ("adaptive", 33.6, 0.125, True),  # 847, and two looks of 1 ms
        ("adaptive", 33.8, 0.0, False),  # however long it sleeps
        ("keyframes", 34.0, 0.125, True),
    ],
)
def test_nothing_is_held_where_one_camera_needs_more_than_its_thread(
    profile: Profile, frame_ms: float, busy_share: float, held: bool
) -> None:
    wish = replace(WISH, cameras=1, profile=profile, busy_share=busy_share, fps=0.5 if profile == "keyframes" else 5.0)
    plan = make_plan(wish, POINT, replace_decode(frame_ms=frame_ms), BUILT_IN, 64)
    assert plan.holds is (plan.cameras_held > 0) is held
    assert (plan.limited_by == "one camera's decoding thread") is not held
    words = "use the camera's substream, lower its frames a second, or decode its `keyframes` alone"
    assert (words in plan.lines[-1]) is not held


def test_too_many_keyframes_for_a_thread_are_to_be_fewer() -> None:
    wish = replace(WISH, profile="keyframes", camera=Camera(1920, 1080, 25.0, 0.04))
    plan = make_plan(wish, POINT, replace_decode(keyframe_ms=40.0), BUILT_IN, 64)
    assert plan.cameras_held == 0 and "set it to fewer keyframes" in plan.lines[-1]


def replace_decode(**changes: float) -> DecodeCost:
    return DecodeCost(**{**{name: getattr(DECODE, name) for name in DECODE.__struct_fields__}, **changes})


@pytest.mark.parametrize(
    ("core_ms", "size"), [((10.0, 9.6, 9.6), 1), ((10.0, 9.4, 9.3), 2), ((10.0, 9.6, 9.2), 4), ((10.0, 11.0, 13.0), 1)]
)
def test_larger_workers_are_taken_only_for_a_gain_of_over_five_percent(core_ms: tuple[float, ...], size: int) -> None:
    curve = [Point(cores, 4 // cores, 1, 400, 10, ms) for cores, ms in zip((1, 2, 4), core_ms, strict=True)]
    assert best(curve).cores_per_worker == best(curve[::-1]).cores_per_worker == size


@given(loads(), st.floats(0.5, 1), st.integers(2, 8))
def test_batches_help_as_far_as_frames_wait_for_workers(
    load: tuple[Wish, Point, DecodeCost, int], gain: float, batch: int
) -> None:
    wish, point, decode, usable = load
    batched = replace(point, batch=batch, core_ms=gain * point.core_ms)
    single, several = (make_plan(wish, point, decode, BUILT_IN, usable, batched=one) for one in (None, batched))
    assert gain * single.cores["engine"] - 1e-3 <= several.cores["engine"] <= single.cores["engine"]
    assert several.batch == batch and single.batch == 1 and several.cores["worker"] == single.cores["worker"]
    assert batched_share(0.0, batch) == 0 and batched_share(1.0, batch) < BUSY_LIMIT


def test_a_worker_costs_something_although_batches_are_cheaper_than_the_bare_engine_alone(tmp_path: Path) -> None:
    batched = BareResult(1000, [], cpu_s=4.0, runs=250, others_cores=0.0)  # 1000 frames, 4 ms each
    assert engine_cpu_ms(5.0, batched, 4, 0.75) == pytest.approx(4.25)
    assert engine_cpu_ms(5.0, None, 1, 0.0) == 5.0
    document = {
        "cpu_ms_per_frame": {"broker": 0.2, "detector": 4.9, "valkey": 0.1, "sink": 0.1},
        "ceiling_cpu_ms_per_frame": 5.0,
        "engine_cpu_ms_per_frame": 4.25,
        "others_cores": 0.0,
        "frames": 1000,
        "command": "sparsecam bench pipeline",
    }
    costs = costs_of(document)
    assert costs is not None and costs.worker == pytest.approx(0.65)
    assert costs_of({**document, "frames": 499}) is None and costs_of({**document, "others_cores": 0.3}) is None


@pytest.mark.parametrize(
    ("changes", "cores", "words"),
    [
        ({"cameras": 0}, None, "at least one camera"),
        ({"fps": 0.0}, None, "above 0"),
        ({"fps": float("nan")}, None, "above 0"),
        ({"fps": 30.0}, None, "25 frames a second has no more to detect"),
        ({"profile": "keyframes"}, None, "0.5 detections a second, fewer than --fps 5"),
        ({"busy_share": 1.5}, None, "a share of the time"),
        ({"camera": Camera(0, 1080, 25.0, 2.0)}, None, "64 to 8192 pixels"),
        ({"camera": Camera(1920, 1080, 25.0, 0.0)}, None, "0.04 to 60 seconds"),
        ({"camera": Camera(1920, 1080, 0.0, 2.0)}, None, "frames a second from 1 to 240"),
        ({}, 3, "--cores 3: this process may use 2 cores"),
        ({}, 0, "--cores 0"),
    ],
)
def test_nonsense_is_refused_in_words(changes: dict[str, object], cores: int | None, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        check(replace(WISH, **changes), cores, usable=2)  # type: ignore[arg-type]  # any field


def test_workers_are_measured_on_one_socket_each_as_they_claim_their_cores(tmp_path: Path) -> None:
    for node, cpus in ((0, "0,2,4"), (1, "1,3,5")):  # numbered by turns
        folder = tmp_path / f"sys/devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(cpus)
    six = Topology(tuple(Core(number, (number,)) for number in range(6)), None)
    assert placements(six, 3, 2, tmp_path) == [[0, 2], [1, 3], [4, 5]]
    assert placements(six, 2, 3, tmp_path) == [[0, 2, 4], [1, 3, 5]]


def test_decoding_is_measured_and_a_keyframe_costs_more_than_a_frame(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", Camera(322, 182, 12.5, 2.0))  # sizes that the scene and the encoder round
    cost = decode_cost(tmp_path / "clip.mp4", InputSpec(320, 320, 32, True))
    assert cost.packet_ms > 0 and cost.frame_ms > 0 and cost.keyframe_ms > 0 and cost.letterbox_ms > 0


def test_a_plan_of_this_machine(bright_box_model: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "services.cli",
        "plan",
        "--model",
        str(bright_box_model),
        "--engine",
        "onnxruntime",
    ]
    camera = ["--width", "320", "--height", "192", "--source-fps", "10", "--seconds", "0.2"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}

    def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
        whole = [*command, *camera, "--cores", "1", *arguments]
        return subprocess.run(whole, env=environment, capture_output=True, text=True, timeout=60, check=False)

    done = plan("--cameras", "1", "--fps", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("measuring onnxruntime at 320x320, 1 of 1 (kept for the next start)\n")
    assert "measuring decoding 320x192 (kept for the next plan), 1 of " in done.stderr
    assert "measuring 1 worker of 1 core, batch 1, 2 of " in done.stderr
    found = json.loads(done.stdout)
    assert found["holds"] and found["cameras_held"] >= 1 and found["workers"] == 1 and found["usable_cores"] == 1
    assert found["shape"] == [192, 320] and found["cameras_held_by_profile"].keys() == {"all", "keyframes", "adaptive"}
    assert [point["batch"] for point in found["curve"]] == sorted({1, found["batch"]})
    too_many = plan("--cameras", "100000", "--fps", "10")
    assert too_many.returncode == 1 and "does NOT hold 100000 cameras" in too_many.stdout
    assert "a camera    " in too_many.stdout, "the arithmetic is shown"
    nonsense = plan("--cameras", "0", "--fps", "5")
    assert nonsense.returncode == 78 and "at least one camera" in nonsense.stderr
