"""A job is worked on by one trainer at a time, is never lost before its end, and its history can be read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from wire import jobs
from wire.job_queue import JobQueue, Taken
from wire.jobs import Job, LogLine
from wire.messages import WireError, encode
from wire.redis_link import Link, RedisAway
from wire.valkey import EmbeddedValkey

Queue = Callable[..., JobQueue]


@pytest.fixture
def link(valkey: EmbeddedValkey) -> Iterator[Link]:
    client = redis.Redis.from_url(valkey.url, protocol=2)
    link = Link(client)
    yield link
    link.close()
    client.close()


@pytest.fixture
def queue(valkey: EmbeddedValkey) -> Iterator[Queue]:
    """Make a trainer's side of the queue; they are closed in the end."""
    made = []

    def make(name: str = "t1", takeover_s: float = 60.0) -> JobQueue:
        one = JobQueue(lambda: redis.Redis.from_url(valkey.url, protocol=2), name, takeover_s=takeover_s)
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()


def submitted(link: Link, **words: object) -> Job:
    job = Job(jobs.new_id(), {"data": "d.yaml", **words})
    jobs.submit(link, job)
    return job


def take(queue: JobQueue, tries: int = 5) -> Taken:
    for _ in range(tries):
        if taken := queue.take(0.2):
            return taken
    raise AssertionError("no job came")


def test_jobs_are_taken_in_order_and_their_state_followed(link: Link, queue: Queue) -> None:
    first, second = submitted(link, epochs=1), submitted(link, epochs=2)
    trainer = queue()
    taken = take(trainer)
    assert (taken.job, taken.attempts, taken.cancel) == (first, 1, False)
    assert trainer.say(taken, {"epoch": 3, "epochs": 7}, [LogLine("", "train", "hello")]) == "ours"
    now = jobs.status(link, first.id)
    assert now and (now.state, now.epoch, now.epochs, now.trainer) == ("running", 3, 7, "t1")
    assert now.started_us >= now.submitted_us > 0 == now.ended_us
    assert trainer.end(taken, "done", {"model": "m"}) == "ours"
    assert take(trainer).job == second
    states = [(one.id, one.state, one.arguments) for one in jobs.statuses(link, 10)]
    assert states == [(first.id, "done", first.arguments), (second.id, "running", second.arguments)]
    assert [(line.stage, line.line) for line in jobs.log_lines(link, first.id)] == [("train", "hello")]


def test_a_trainer_that_died_is_given_its_job_again_before_any_other(link: Link, queue: Queue) -> None:
    job = submitted(link)
    dead = take(queue())
    submitted(link)
    again = queue()
    taken = take(again)
    assert (taken.job, taken.attempts) == (job, 2)
    assert taken.owner != dead.owner
    again.end(taken, "done", {})
    assert take(again).job != job, "what has ended is not taken again"


def test_a_silent_trainers_job_goes_to_another_and_the_first_learns_it(
    link: Link, queue: Queue, wait_until: Callable[..., None]
) -> None:
    job = submitted(link)
    slow, other = queue("slow"), queue("other", takeover_s=0.3)
    old = take(slow)
    new: list[Taken] = []

    def taken_over() -> bool:
        new.extend(filter(None, [other.take(0.1)]))
        return bool(new)

    wait_until(taken_over)
    assert new[0].job == job
    assert slow.say(old, {"epoch": 99}) == "lost"
    assert slow.end(old, "failed", {}) == "lost"
    now = jobs.status(link, job.id)
    assert now and (now.state, now.epoch, now.trainer) == ("running", 0, "other")


def test_a_trainer_that_speaks_keeps_its_job(link: Link, queue: Queue, wait_until: Callable[..., None]) -> None:
    submitted(link)
    owner, other = queue("owner"), queue("other", takeover_s=0.5)
    taken = take(owner)
    for _ in range(10):
        assert owner.say(taken, {}) == "ours"
        assert other.take(0.1) is None


def test_a_cancelled_job_is_not_begun_and_a_running_one_hears_of_it(link: Link, queue: Queue) -> None:
    running, waiting = submitted(link), submitted(link)
    trainer = queue()
    taken = take(trainer)
    assert jobs.cancel(link, waiting.id) == "cancelled"
    assert jobs.cancel(link, running.id) == "running"
    assert trainer.say(taken, {}) == "cancel"
    trainer.end(taken, "cancelled", {})
    assert jobs.cancel(link, running.id) == "cancelled", "an end is final"
    assert trainer.take(0.05) is None
    assert trainer.take(0.05) is None
    assert link.send(("XPENDING", jobs.JOBS_KEY, jobs.GROUP))[0][0] == 0
    assert jobs.cancel(link, "nobody") is None


def test_a_job_cancelled_while_it_waited_is_remembered_until_a_trainer_has_seen_it(link: Link, queue: Queue) -> None:
    waiting = submitted(link)
    jobs.cancel(link, waiting.id)
    assert link.one("TTL", jobs.job_key(waiting.id)) == -1
    trainer = queue()
    assert trainer.take(0.05) is None
    assert 0 < link.one("TTL", jobs.job_key(waiting.id)) <= jobs.KEEP_S


def test_a_running_job_can_be_cancelled_after_redis_lost_it(link: Link, queue: Queue) -> None:
    job = submitted(link)
    trainer = queue()
    taken = take(trainer)
    link.one("DEL", jobs.job_key(job.id))
    assert trainer.say(taken, {"epoch": 1}) == "ours"
    assert jobs.cancel(link, job.id) == "running"
    assert trainer.say(taken, {}) == "cancel"


def test_a_dead_trainers_job_is_found_behind_many_that_are_worked_on(
    link: Link, queue: Queue, wait_until: Callable[..., None]
) -> None:
    owners = [queue(f"t{number}") for number in range(12)]
    for _ in owners:
        submitted(link)
    taken = [take(owner) for owner in owners]
    other = queue("other", takeover_s=0.5)
    found: list[Taken] = []

    def found_it() -> bool:
        for owner, one in zip(owners[:-1], taken[:-1], strict=True):
            owner.say(one, {})
        found.extend(filter(None, [other.take(0.01)]))
        return bool(found)

    wait_until(found_it)
    assert found[0].job == taken[-1].job


def test_after_an_outage_a_trainer_is_heard_of_before_its_job_is_taken(
    own_valkey: EmbeddedValkey, wait_until: Callable[..., None]
) -> None:
    def connect() -> redis.Redis:
        return redis.Redis.from_url(own_valkey.url, protocol=2)

    owner, other = JobQueue(connect, "owner", takeover_s=1), JobQueue(connect, "other", takeover_s=1)
    link = Link(connect())
    submitted(link)
    taken = take(owner)
    own_valkey.stop()
    with pytest.raises(RedisAway):
        other.take(0.01)
    time.sleep(1.5)  # longer than takeover_s
    own_valkey.start()
    back_s = time.monotonic()
    while time.monotonic() - back_s < 0.8:  # the owner has not spoken yet
        with suppress(RedisAway):
            assert other.take(0.01) is None

    def speaks() -> bool:
        with suppress(RedisAway):
            return owner.say(taken, {}) == "ours"
        return False

    wait_until(speaks)
    owner.close()
    other.close()
    link.close()


def test_rubbish_in_the_stream_is_dropped_and_counted(link: Link, queue: Queue) -> None:
    foreign = (("v", "1", "d", b"rubbish"), ("v", "9", "d", b""), ("what", "ever"))
    huge = ("v", "1", "d", encode(Job("big", {"data": "x" * (jobs.MAX_JOB_BYTES + 1)})))
    evil = ("v", "1", "d", encode(Job("../../etc", {})))
    for fields in (*foreign, huge, evil):
        link.send(("XADD", jobs.JOBS_KEY, "*", *fields))
    job = submitted(link)
    trainer = queue()
    assert take(trainer, tries=10).job == job
    assert trainer.malformed == 5
    assert [one.id for one in jobs.statuses(link, 10)] == [job.id]


def test_jobs_that_wait_are_counted(link: Link, queue: Queue) -> None:
    assert jobs.waiting(link, 100) == 0
    taken, wanted, unwanted = submitted(link), submitted(link), submitted(link)
    jobs.cancel(link, unwanted.id)
    assert jobs.waiting(link, 100) == 2
    assert take(queue()).job == taken
    assert jobs.waiting(link, 100) == 1
    jobs.cancel(link, wanted.id)
    assert jobs.waiting(link, 100) == 0


def test_an_id_is_used_once_and_a_job_that_is_too_large_refused(link: Link) -> None:
    job = submitted(link)
    with pytest.raises(WireError, match="already"):
        jobs.submit(link, job)
    with pytest.raises(WireError, match="at most"):
        submitted(link, hyp="x" * jobs.MAX_JOB_BYTES)


def test_redis_without_its_data_is_served_again(link: Link, queue: Queue, wait_until: Callable[..., None]) -> None:
    first = submitted(link)
    trainer = queue()
    taken = take(trainer)
    link.send(("FLUSHALL",))
    with pytest.raises(RedisAway):  # its group is gone
        trainer.say(taken, {"epoch": 5})
    wait_until(lambda: answered(lambda: trainer.end(taken, "done", {})))
    now = jobs.status(link, first.id)
    assert now and (now.state, now.epoch) == ("done", 5)
    submitted(link)
    assert take(trainer)


def answered(ask: Callable[[], object]) -> bool:
    try:
        return ask() == "ours"
    except RedisAway:
        return False


def test_a_redis_that_dies_is_found_again(own_valkey: EmbeddedValkey, wait_until: Callable[..., None]) -> None:
    queue = JobQueue(lambda: redis.Redis.from_url(own_valkey.url, protocol=2), "t", takeover_s=60)
    client = redis.Redis.from_url(own_valkey.url, protocol=2)
    link = Link(client)
    job = submitted(link)
    taken = take(queue)
    own_valkey.stop()
    with pytest.raises(RedisAway):
        queue.say(taken, {})
    assert not queue.connected
    own_valkey.start()

    wait_until(lambda: answered(lambda: queue.say(taken, {"epoch": 1})))
    queue.close()
    now = jobs.status(Link(client), job.id)
    assert now and now.epoch == 1
    client.close()


@given(st.text(max_size=80))
def test_no_id_makes_a_key_of_anything_else(text: str) -> None:
    try:
        key = jobs.job_key(text)
    except WireError:
        return
    assert key == f"sparsecam:job:{text}"
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")
