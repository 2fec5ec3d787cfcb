from __future__ import annotations

import random

import av
from hypothesis import given
from hypothesis import strategies as st

from ingest.sizes import LEARNED, SizeWatch, median_and_spread, payload_bytes

KEYFRAME = 100_000


def watch_of(sizes: list[int], reordered: bool = False) -> SizeWatch:
    """A watch that has seen a few equal keyframes and these packets of a quiet scene."""
    watch = SizeWatch()
    for _ in range(4):
        watch.keyframe(KEYFRAME)
    for size in sizes:
        watch.learn(size, reordered)
    return watch


def noisy(count: int, usual: float, sigma: float, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [max(1, round(rng.gauss(usual, sigma))) for _ in range(count)]


@given(st.integers(30, 2000), st.integers(0, 2**32))
def test_a_quiet_scene_alarms_at_most_once_in_a_hundred_packets(usual: int, seed: int) -> None:
    sizes = noisy(328, usual, usual * 0.15, seed)
    watch = watch_of(sizes[:128])
    assert sum(watch.score(size) >= 1 for size in sizes[128:]) <= 2


@given(st.integers(30, 2000), st.integers(0, 2**32))
def test_two_per_cent_of_a_keyframe_more_alarms_at_once(usual: int, seed: int) -> None:
    watch = watch_of(noisy(128, usual, min(150, usual * 0.15), seed))
    assert watch.blindness is None
    assert watch.score(usual + KEYFRAME // 50) >= 1


def test_a_small_but_steady_excess_alarms_within_five_packets() -> None:
    watch = watch_of(noisy(128, 500, 60))
    quiet = [watch.score(500) for _ in range(5)]
    scores = [watch.score(500 + KEYFRAME // 250) for _ in range(5)]
    assert max(quiet) < 1 and scores[0] < 1 <= scores[-1]


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=200), st.integers(1, 100))
def test_scores_do_not_depend_on_the_unit_of_sizes_but_for_the_smallest(sizes: list[int], factor: int) -> None:
    middle, spread = median_and_spread(sizes)
    scaled_middle, scaled_spread = median_and_spread([size * factor for size in sizes])
    assert abs(scaled_middle - factor * middle) <= 1e-6 * scaled_middle
    assert abs(scaled_spread - factor * spread) <= 1e-6 * max(1.0, scaled_spread)


def test_a_tenth_of_wild_packets_does_not_bend_what_is_usual() -> None:
    sizes = [500, 520, 480, 510, 490, 505, 495, 515, 485, 60_000] * 12
    watch = watch_of(sizes)
    assert watch.score(505) < 1 <= watch.score(5_000)


def test_reordered_frames_have_a_usual_size_of_their_own() -> None:
    watch = watch_of(noisy(128, 900, 40))
    for size in noisy(128, 60, 5):
        watch.learn(size, reordered=True)
    assert watch.score(900) < 1 <= watch.score(900, reordered=True)


def test_it_judges_nothing_before_it_has_learned_and_after_it_forgot() -> None:
    watch = watch_of([500] * (LEARNED - 1))
    assert not watch.learned and watch.score(10**6) == 0
    watch.learn(500)
    assert watch.learned and watch.score(10**6) >= 1
    watch.forget()
    assert not watch.learned and watch.score(10**6) == 0


def test_sizes_that_tell_nothing_say_why() -> None:
    assert "scatter" in str(watch_of(noisy(128, 2000, 800)).blindness)
    assert "constant bitrate" in str(watch_of(noisy(128, 6000, 20)).blindness)
    assert watch_of(noisy(128, 500, 80)).blindness is None


def test_an_unusual_keyframe_is_told_from_the_noise_of_others() -> None:
    watch = SizeWatch()
    assert all(watch.keyframe(size) for size in (100_000, 100_500, 99_700))  # too few to know
    assert not any(watch.keyframe(size) for size in (100_400, 99_500, 100_100))
    assert watch.keyframe(108_000)


def test_filler_of_constant_bitrate_encoders_is_not_counted() -> None:
    slice_nal = b"\x00\x00\x00\x01\x41" + bytes(range(1, 200))
    filler = b"\x00\x00\x00\x01\x0c" + b"\xff" * 5_000 + b"\x80"
    assert payload_bytes(av.Packet(slice_nal)) == len(slice_nal)
    assert len(slice_nal) < payload_bytes(av.Packet(slice_nal + filler)) <= len(slice_nal) + 5
    assert payload_bytes(av.Packet(b"\x80")) == 1
