"""The street is a pure function of seed and index, and its truth lies on what is drawn."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
import pytest

from ingest.sim.scene import LABELS, Street, TruthBox
from ingest.sim.scene_url import SceneSpec, parse


def digest(street: Street, index: int) -> str:
    picture, truth = street.render(index)
    return hashlib.sha256(picture.tobytes() + repr(truth).encode()).hexdigest()


@pytest.fixture(scope="module")
def street(spec: SceneSpec) -> Street:
    return Street(spec)


@pytest.fixture(scope="module")
def busy() -> Street:
    """No noise, so that a pixel differs only where something is drawn."""
    return Street(parse("sim://street?seed=3&size=640x360&objects=14&noise=0"))


def test_the_same_seed_and_index_give_the_same_frame_in_any_order(spec: SceneSpec, street: Street) -> None:
    indices = [0, 40, 41, 5000, 90_001]
    forwards = [digest(street, index) for index in indices]
    again = Street(spec)
    assert [digest(again, index) for index in reversed(indices)] == forwards[::-1]


def test_another_seed_is_another_street(street: Street) -> None:
    other = Street(parse("sim://street?seed=8&size=320x180"))
    assert np.abs(street.render(0)[0].astype(int) - other.render(0)[0]).mean() > 10


def test_frames_have_the_shape_of_the_url_and_a_plain_layout(street: Street) -> None:
    picture, _ = street.render(0)
    assert (picture.shape, picture.dtype, picture.flags.c_contiguous) == ((180, 320, 3), np.uint8, True)


def test_truth_alone_equals_truth_with_the_picture(busy: Street) -> None:
    assert all(busy.truth(index) == busy.render(index)[1] for index in (0, 77, 400))


@pytest.mark.parametrize("index", [10, 222, 1234])
def test_each_box_holds_its_object_and_no_less(busy: Street, index: int) -> None:
    with_all, truth = busy.render(index)
    assert truth
    for object_id in {box.object_id for box in truth}:
        boxes = [box for box in truth if box.object_id == object_id]  # two for a rider
        without, others = busy.render(index, hidden={object_id})
        assert object_id not in {box.object_id for box in others}
        changed = np.abs(with_all.astype(int) - without).max(axis=2) > 12
        rows, columns = np.nonzero(changed)
        inside = np.zeros_like(changed)
        for left, top, right, bottom in (box.box for box in boxes):
            inside[max(0, top - 2) : bottom + 2, max(0, left - 2) : right + 2] = True
        assert not (changed & ~inside).any(), boxes  # nothing of it is drawn outside
        if all(box.visible > 0.95 for box in boxes) and len(rows) > 50:
            left, top = min(box.box[0] for box in boxes), min(box.box[1] for box in boxes)
            right, bottom = max(box.box[2] for box in boxes), max(box.box[3] for box in boxes)
            # The drawn thing reaches the box's sides, but for parts that look like what is behind them.
            assert columns.min() - left < 0.3 * (right - left) and right - columns.max() < 0.3 * (right - left)
            assert rows.min() - top < 0.3 * (bottom - top) and bottom - rows.max() < 0.3 * (bottom - top)


def test_boxes_lie_in_the_picture_and_shares_between_zero_and_one(busy: Street) -> None:
    for index in range(0, 3000, 197):
        for box in busy.truth(index):
            left, top, right, bottom = box.box
            assert 0 <= left < right <= 640 and 0 <= top < bottom <= 360
            assert 0 < box.visible <= 1 and box.label in LABELS


def test_hiding_one_object_never_makes_another_less_visible(busy: Street) -> None:
    _, truth = busy.render(500)
    for hidden in {box.object_id for box in truth}:
        _, left = busy.render(500, hidden={hidden})
        before = {(box.object_id, box.label): box.visible for box in truth}
        after = {(box.object_id, box.label): box.visible for box in left}
        assert all(after[key] >= visible for key, visible in before.items() if key[0] != hidden)


def test_a_minute_shows_every_class_moving_occluded_and_at_many_sizes(busy: Street) -> None:
    seen: list[TruthBox] = [box for index in range(0, 1500, 25) for box in busy.truth(index)]
    assert {box.label for box in seen} == set(LABELS)
    assert any(box.visible < 0.8 for box in seen)
    heights = [box.box[3] - box.box[1] for box in seen if box.label == "person" and box.visible == 1]
    assert max(heights) > 1.8 * min(heights)
    places: dict[int, set[int]] = {}
    for box in seen:
        places.setdefault(box.object_id, set()).add(box.box[0])
    assert sum(len(lefts) > 3 for lefts in places.values()) > len(places) / 2


def test_nothing_but_noise_changes_in_a_quiet_period() -> None:
    street = Street(parse("sim://street?seed=1&size=320x180&fps=10&quiet=6/10&noise=0"))
    quiet = [street.is_quiet(index) for index in range(200)]
    assert sum(quiet) in range(116, 123)  # 6 of every 10 s, give or take the frames at the ends
    assert all(street.truth(index) == street.truth(41) for index in range(41, 100))
    assert street.truth(39) != street.truth(20) and street.truth(120) != street.truth(99)
    moved = np.abs(street.render(60)[0].astype(int) - street.render(61)[0]).max()
    assert moved <= 2  # the slow change of the light


def test_an_empty_street_has_no_truth() -> None:
    street = Street(parse("sim://street?objects=0&size=320x180"))
    assert street.render(100)[1] == []


@pytest.mark.parametrize(
    "url", ["sim://street?size=160x96", "sim://street?size=360x640", "sim://street?size=1000x400&light=dusk"]
)
def test_odd_sizes_are_drawn(url: str) -> None:
    spec = parse(url)
    assert Street(spec).render(30)[0].shape == (spec.height, spec.width, 3)


def test_night_is_darker_than_day() -> None:
    means = [
        Street(parse(f"sim://street?size=320x180&light={light}")).render(0)[0].mean()
        for light in ("night", "dusk", "day")
    ]
    assert means == sorted(means)


def test_cars_of_one_lane_never_drive_through_each_other() -> None:
    street = Street(parse("sim://street?seed=5&size=640x360&objects=40"))
    for index in range(0, 2000, 91):
        present = [p for p in street._traffic.at(street.scene_time_s(index)) if p.kind == "car"]
        for direction in (1, -1):
            middles = sorted(p.x_m for p in present if p.direction == direction)
            assert all(b - a > 5.0 for a, b in pairwise(middles))
