"""Which incidents are open stands beside the alerts, and never says anything else than they do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.crc import key_slot

from wire.alerts import ALERTS, OPEN_INCIDENTS, Alert, alert_once, rfc3339, to_json
from wire.open_incidents import names_of, opened_of, read_all_opened, read_names, read_opened
from wire.redis_link import Link, connect
from wire.settings import RedisSettings
from wire.valkey import EmbeddedValkey


def alert(event: str, incident: str, number: int = 0, camera: str = "door") -> Alert:
    return Alert(
        version=1,
        id=f"{camera}/{incident}/{event}/{number}",
        incident=incident,
        event=event,  # type: ignore[arg-type]  # one of the three
        camera=camera,
        rule="armed",
        text="pistol at door",
        event_time=rfc3339(number),
        opened_time=rfc3339(0),
    )


@pytest.fixture
def link(valkey: EmbeddedValkey) -> Iterator[Link]:
    link = Link(connect(RedisSettings(), valkey.url))
    yield link
    link.close()


def publish(link: Link, *alerts: Alert) -> None:
    replies = link.send(*(alert_once(one, 1000) for one in alerts))
    assert not any(isinstance(reply, Exception) for reply in replies)


def test_an_incident_is_there_from_its_beginning_to_its_end_under_the_alert_that_opened_it(link: Link) -> None:
    begun, other = alert("opened", "a"), alert("opened", "b", camera="yard")
    publish(link, begun, other, alert("updated", "a", 1))
    assert names_of(link.send(read_names())[0]) == {"door": {"a"}, "yard": {"b"}}
    names = [("door", "a"), ("door", "gone"), ("yard", "b")]
    assert opened_of(link.send(read_opened(names))[0]) == [begun, other]
    publish(link, alert("closed", "a"), begun)  # the beginning sent again, as after a lost answer
    assert opened_of(link.send(read_all_opened())[0]) == [other]


def test_one_whose_beginning_redis_lost_is_there_again_with_its_next_alert(link: Link) -> None:
    publish(link, alert("opened", "a"))
    link.send(("DEL", OPEN_INCIDENTS))
    publish(link, alert("updated", "a", 1))
    assert opened_of(link.send(read_all_opened())[0]) == [alert("updated", "a", 1)]


def test_one_whose_end_was_told_without_it_is_gone_when_the_end_is_told_again(link: Link) -> None:
    """As by a sink of a version that did not keep it."""
    publish(link, alert("opened", "a"), alert("closed", "a"))
    link.send(("HSET", OPEN_INCIDENTS, '["door","a"]', to_json(alert("opened", "a"))))
    publish(link, alert("closed", "a"))
    assert names_of(link.send(read_names())[0]) == {}


def test_what_is_none_of_ours_is_left_out(link: Link) -> None:
    link.send(("HSET", OPEN_INCIDENTS, "rubbish", "{}", b'["\xff","a"]', "x", '["door","a"]', b'{"id":"\xff"}'))
    assert names_of(link.send(read_names())[0]) == {"door": {"a"}}
    assert opened_of(link.send(read_all_opened())[0]) == []


def test_an_alert_that_the_stream_refuses_leaves_no_trace_that_lasts(link: Link) -> None:
    link.send(("SET", ALERTS, "not a stream"))
    (refused,) = link.send(alert_once(alert("opened", "a"), 1000))
    assert isinstance(refused, redis.ResponseError)
    link.send(("DEL", ALERTS))
    publish(link, alert("opened", "a"), alert("closed", "a"))
    assert names_of(link.send(read_names())[0]) == {}


def test_it_lies_beside_the_alerts_in_a_cluster() -> None:
    assert key_slot(OPEN_INCIDENTS.encode()) == key_slot(f"sparsecam:seen:{{{ALERTS}}}:x".encode())


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=30))
def test_whatever_is_sent_again_it_is_what_the_stream_tells(link: Link, turns: list[tuple[str, int]]) -> None:
    link.send(("FLUSHALL",))
    sent: dict[str, list[Alert]] = {}
    for incident, what in turns:
        so_far = sent.setdefault(incident, [])
        if what == 0 and so_far:
            publish(link, so_far[-1])  # again
        elif not so_far or so_far[-1].event != "closed":
            so_far.append(
                alert("closed" if what == 3 and so_far else "updated" if so_far else "opened", incident, len(so_far))
            )
            publish(link, so_far[-1])
    still_open = {incident for incident, alerts in sent.items() if alerts and alerts[-1].event != "closed"}
    assert names_of(link.send(read_names())[0]).get("door", set()) == still_open
