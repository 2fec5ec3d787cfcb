"""The plan: its arithmetic holds for every load, it refuses nonsense in words, and it runs on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.bench.costs import BUILT_IN
from services.bench.decode_cost import Camera, DecodeCost, Profile, camera_load, decode_cost, write_clip
from services.bench.errors import PlanError
from services.bench.plan import BUSY_LIMIT, Point, Wish, best, check, make_plan
from wire.messages import InputSpec

CAMERA = Camera(1920, 1080, 25.0, 2.0)
DECODE = DecodeCost(frame_ms=4.0, keyframe_ms=8.0, packet_ms=0.05, letterbox_ms=0.5)
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
    decode = DecodeCost(draw(costs), draw(costs), draw(st.floats(0, 0.5)), draw(costs))
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


@given(loads(), st.floats(0, 1))
def test_adaptive_lies_between_keyframes_and_all_by_its_busy_share(
    load: tuple[Wish, Point, DecodeCost, int], share: float
) -> None:
    wish, _, decode, _ = load

    def cost(profile: Profile, busy: float) -> float:
        return camera_load(decode, wish.camera, profile, wish.fps, busy).decode

    awake, asleep = cost("all", share), cost("keyframes", share)
    assert cost("adaptive", share) == pytest.approx(share * awake + (1 - share) * asleep)
    assert cost("adaptive", 1.0) == pytest.approx(awake) and cost("adaptive", 0.0) == pytest.approx(asleep)


def test_the_arithmetic_by_hand() -> None:
    # A second of a camera: 25 x 4 ms decode, 5 x (0.5 letterbox + 5 engine + the rest).
    rest_ms = BUILT_IN.send + BUILT_IN.broker + BUILT_IN.worker + BUILT_IN.valkey + BUILT_IN.sink
    each = (25 * 4.0 + 5 * (0.5 + 5.0 + rest_ms)) / 1e3
    plan = make_plan(WISH, POINT, DECODE, BUILT_IN, 2)
    assert plan.used == pytest.approx(4 * each) and plan.cameras_held == int(0.85 * 2 / each)
    assert "25 frames x 4.00 ms = 100.0 ms" in plan.lines[0] and BUILT_IN.source in "\n".join(plan.lines)


def test_one_thread_of_the_broker_bounds_a_machine_of_many_cores() -> None:
    cheap = Point(1, 128, 1, 1e6, 0.1, 0.1)
    plan = make_plan(WISH, cheap, replace_decode(frame_ms=0.01), BUILT_IN, 128)
    assert plan.limited_by == "broker" and plan.cameras_held == int(BUSY_LIMIT / (5 * BUILT_IN.broker / 1e3))


def replace_decode(**changes: float) -> DecodeCost:
    return DecodeCost(**{**{name: getattr(DECODE, name) for name in DECODE.__struct_fields__}, **changes})


def test_the_best_point_is_the_cheapest_and_of_equals_the_quickest() -> None:
    one, two, four = Point(1, 4, 1, 400, 10, 10.0), Point(2, 2, 1, 395, 5.1, 10.1), Point(4, 1, 1, 300, 3.3, 13.3)
    assert best([one, two, four]) == two


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


def test_decoding_is_measured_and_a_keyframe_costs_more_than_a_frame(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", Camera(322, 182, 12.5, 2.0))  # sizes that the scene and the encoder round
    cost = decode_cost(tmp_path / "clip.mp4", InputSpec(320, 320, 32, True))
    assert 0 < cost.packet_ms < cost.frame_ms and cost.keyframe_ms > 0 and cost.letterbox_ms > 0


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
    found = json.loads(done.stdout)
    assert found["holds"] and found["cameras_held"] >= 1 and found["workers"] == 1 and found["usable_cores"] == 1
    assert found["shape"] == [192, 320] and found["cameras_held_by_profile"].keys() == {"all", "keyframes", "adaptive"}
    assert [point["batch"] for point in found["curve"]] == [1, 4]
    too_many = plan("--cameras", "100000", "--fps", "10")
    assert too_many.returncode == 1 and "does NOT hold 100000 cameras" in too_many.stdout
    assert "a camera    " in too_many.stdout, "the arithmetic is shown"
    nonsense = plan("--cameras", "0", "--fps", "5")
    assert nonsense.returncode == 78 and "at least one camera" in nonsense.stderr
