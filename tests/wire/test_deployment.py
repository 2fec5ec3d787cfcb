"""The record of deployments: of several writers one succeeds, and counts tell what was counted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from wire.deployment import (
    FORGOTTEN_S,
    WORKERS,
    Deployment,
    ModelRef,
    Tally,
    WorkerReport,
    figures,
    leave,
    read_standing,
    replace,
    report,
    total,
)
from wire.dispatch import Dispatcher
from wire.messages import FrameHeader, InputSpec
from wire.redis_link import Link
from wire.valkey import EmbeddedValkey

NEW = ModelRef("new.onnx", "/models/new.onnx", "ab" * 32)


@pytest.fixture
def link(valkey: EmbeddedValkey) -> Iterator[Link]:
    made = Link(redis.Redis.from_url(valkey.url, protocol=2))
    yield made
    made.close()


def test_of_two_who_change_what_they_read_one_succeeds(link: Link) -> None:
    first, second = read_standing(link), read_standing(link)
    assert first.deployment is None
    assert replace(link, first, Deployment(id="a", wanted=NEW))
    assert not replace(link, second, Deployment(id="b", wanted=None))
    seen = read_standing(link)
    assert seen.deployment == Deployment(id="a", wanted=NEW)
    assert replace(link, seen, Deployment(id="b", wanted=None))


def test_reports_are_kept_until_a_worker_leaves_or_is_long_dead(link: Link) -> None:
    now = read_standing(link)
    for name, age_s in (("alive", 0), ("silent", 60), ("dead", FORGOTTEN_S + 1)):
        mine = WorkerReport(name, "h", now.now_us - int(age_s * 1e6), "m", "00", "", Tally(3, 1, 4))
        report(link, mine, now)
    link.send(("HSET", WORKERS, "stranger", b"\xff"))
    seen = read_standing(link)
    assert set(seen.reports) == {"alive", "silent", "dead"}
    assert {name for name, one in seen.reports.items() if one.is_fresh(seen.now_us)} == {"alive"}
    report(link, seen.reports["alive"], seen)
    leave(link, "silent")
    assert set(read_standing(link).reports) == {"alive"}


@given(st.lists(st.floats(0.1, 90_000), min_size=1, max_size=200), st.floats(0, 1))
def test_quantiles_are_true_to_a_bucket(times_ms: list[float], share: float) -> None:
    tally = Tally()
    for ms in times_ms:
        tally.add(ms, 1, 0)
    exact = sorted(times_ms)[max(0, -(-int(share * len(times_ms) * 1e9) // 10**9) - 1)]
    neighbours = sorted(times_ms)
    place = neighbours.index(exact)
    least, most = neighbours[max(0, place - 1)], neighbours[min(len(neighbours) - 1, place + 1)]
    assert least / 1.06 <= tally.quantile_ms(share) <= most * 1.06


def test_counts_add_up_and_forget_by_half() -> None:
    tally = Tally()
    for _ in range(9_999):
        tally.add(5.0, 1, 2)
    both = total([tally, tally])
    assert (both.frames, both.detections) == (19_998, 39_996)
    tally.add(5.0, 4, 8)
    assert 4_900 < tally.frames < 5_100
    assert figures(tally).detections_per_frame == pytest.approx(2, abs=0.01)
    assert figures(total([])).p50_ms == 0


@given(st.lists(st.integers(1, 6), max_size=12))
def test_a_worker_that_changes_its_capacity_gets_that_many_frames(capacities: list[int]) -> None:
    dispatcher: Dispatcher[None] = Dispatcher(500)
    spec = InputSpec(32, 32, 32, False)
    for seq in range(200):
        header = FrameHeader("film", "s", seq, True, 0, 0, "i420", 32, 32, 32, 32, 1.0, 0, 0)
        dispatcher.frame(b"i", header, None)
    held: list[int] = []
    for capacity in [2, *capacities]:
        dispatcher.ready(b"w", spec, capacity, 1e9)
        while isinstance(step := dispatcher.next_work(0), tuple):
            held.append(step[1].order)
        assert len(held) == max(capacity, len(held)) and len(dispatcher.workers[b"w"].holds) == len(held)
        while len(held) > capacity // 2:
            dispatcher.done(b"w", "film", held.pop(0), "detected", 0)
