"""Leases on a real Valkey: every camera has one owner, soon after any owner dies."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sink.leases import Leases
from wire.redis_link import Link, connect
from wire.settings import RedisSettings
from wire.streams import lease_key
from wire.valkey import EmbeddedValkey

WaitUntil = Callable[..., None]

CAMERAS = ["a", "b", "c", "d", "e"]


@pytest.fixture
def link(valkey: EmbeddedValkey) -> Iterator[Link]:
    link = Link(connect(RedisSettings(), valkey.url))
    yield link
    link.close()


def settle(link: Link, *sinks: Leases) -> None:
    """As the sinks do it in a few seconds."""
    for _ in range(4):
        for sink in sinks:
            sink.release(link, sink.renew(link, 0.0).surplus)


def test_a_lone_sink_takes_all_cameras_at_once(link: Link) -> None:
    sink = Leases(CAMERAS, "one", 5.0)
    assert sink.renew(link, 0.0).gained == CAMERAS
    again = sink.renew(link, 1.0)
    assert (again.gained, again.lost, again.doubtful, again.surplus) == ([], [], [], [])


def test_a_second_sink_gets_its_share_and_a_leaving_one_gives_it_back(link: Link) -> None:
    one, two = Leases(CAMERAS, "one", 5.0), Leases(CAMERAS, "two", 5.0)
    settle(link, one, two)
    assert (len(one.owned), len(two.owned)) in {(3, 2), (2, 3)}
    assert one.owned | two.owned == set(CAMERAS)
    two.leave(link)
    settle(link, one)
    assert one.owned == set(CAMERAS)


def test_a_dead_sinks_cameras_are_taken_over_when_its_lease_is_out(link: Link, wait_until: WaitUntil) -> None:
    dead, heir = Leases(CAMERAS, "dead", 0.3), Leases(CAMERAS, "heir", 60.0)
    dead.renew(link, 0.0)
    assert heir.renew(link, 0.0).gained == []
    wait_until(lambda: heir.renew(link, 0.0).gained or heir.owned == set(CAMERAS), timeout_s=2)
    assert heir.owned == set(CAMERAS)
    changes = dead.renew(link, 1.0)
    assert (changes.lost, dead.owned) == (CAMERAS, set())


def test_a_sink_that_restarts_under_its_name_takes_its_cameras_at_once(link: Link) -> None:
    before = Leases(CAMERAS, "one", 60.0)
    before.renew(link, 0.0)
    after = Leases(CAMERAS, "one", 60.0)
    assert after.renew(link, 0.0).gained == CAMERAS
    assert before.renew(link, 1.0).lost == CAMERAS


def test_two_sinks_of_the_same_name_do_not_take_from_each_other_for_ever(link: Link) -> None:
    one, two = Leases(CAMERAS, "same", 60.0), Leases(CAMERAS, "same", 60.0)
    settle(link, one, two)
    assert (one.owned, two.owned) == (set(), set(CAMERAS))
    two.leave(link)
    settle(link, one)
    assert one.owned == set(CAMERAS)


def test_a_lease_that_ran_out_unnoticed_is_doubtful(link: Link, valkey: EmbeddedValkey) -> None:
    sink = Leases(CAMERAS, "one", 5.0)
    sink.renew(link, 0.0)
    assert sink.renew(link, 4.9).doubtful == []
    assert sink.renew(link, 9.9).doubtful == CAMERAS
    sink.doubt()
    assert sink.renew(link, 10.0).doubtful == CAMERAS
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    sink.doubt()
    changes = sink.renew(link, 11.0)
    assert (changes.doubtful, changes.lost, changes.gained) == (CAMERAS, [], [])


def test_sinks_of_other_cameras_are_not_counted_for_shares(link: Link) -> None:
    one, other = Leases(CAMERAS, "one", 5.0), Leases(["x", "y"], "two", 5.0)
    settle(link, one, other)
    assert (one.owned, other.owned) == (set(CAMERAS), {"x", "y"})


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["renew", "leave", "die"])), max_size=25))
def test_no_camera_ever_has_two_owners_and_none_stays_without(
    link: Link, valkey: EmbeddedValkey, turns: list[tuple[int, str]]
) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
        sinks = [Leases(CAMERAS, f"sink-{number}", 60.0) for number in range(3)]
        for number, what in turns:
            if what == "renew":
                sinks[number].release(link, sinks[number].renew(link, 0.0).surplus)
            elif what == "leave":
                sinks[number].leave(link)
            else:
                sinks[number] = Leases(CAMERAS, f"sink-{number}", 60.0)
            holders = [client.get(lease_key(camera)) for camera in CAMERAS]
            for sink in sinks:
                held = {camera for camera, one in zip(CAMERAS, holders, strict=True) if one == sink.owner.encode()}
                assert held <= sink.owned | held
                assert not any(held & other.owned for other in sinks if other is not sink and held & sink.owned)
        settle(link, *sinks)
        assert sorted(camera for sink in sinks for camera in sink.owned) == CAMERAS
