"""Of several sinks one runs an output: its lease passes on at once, and ends before another takes over."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from sink.outputs import lease as lease_module
from sink.outputs.lease import Lease
from wire.redis_link import connect
from wire.settings import RedisSettings
from wire.valkey import EmbeddedValkey


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "RENEW_EVERY_S", 0.1)
    monkeypatch.setattr(lease_module, "MARGIN_S", 0.1)


@pytest.fixture
def begin() -> Any:
    begun: list[tuple[threading.Event, threading.Thread]] = []

    def start(url: str, lease_s: float = 0.6, output: str = "a") -> tuple[Lease, Callable[[], None]]:
        lease = Lease(output, lambda: connect(RedisSettings(url=url, timeout_s=0.3)), lease_s)
        stop = threading.Event()
        thread = threading.Thread(target=lease.run, args=(stop,))
        thread.start()
        begun.append((stop, thread))

        def end() -> None:
            stop.set()
            thread.join(5)

        return lease, end

    yield start
    for stop, thread in begun:
        stop.set()
        thread.join(5)


def test_the_lease_is_held_by_one_and_passed_on_at_once(valkey: EmbeddedValkey, begin: Any, wait_until: Any) -> None:
    first, end_first = begin(valkey.url, 5.0)
    wait_until(first.held)
    second, _ = begin(valkey.url, 5.0)
    time.sleep(0.3)
    assert first.held() and not second.held()
    assert second.taken() and not first.taken()
    end_first()
    wait_until(second.held, 1.0)
    assert not first.held()


def test_the_leases_of_two_outputs_are_apart(valkey: EmbeddedValkey, begin: Any, wait_until: Any) -> None:
    first, _ = begin(valkey.url, 5.0, "a")
    wait_until(first.held)
    second, _ = begin(valkey.url, 5.0, "b")
    wait_until(second.held)
    assert first.held() and not first.taken() and not second.taken()


def test_the_lease_of_a_process_cut_off_ends_before_another_takes_over(
    own_valkey: EmbeddedValkey, begin: Any, wait_until: Any
) -> None:
    first, _ = begin(own_valkey.url)
    wait_until(first.held)
    assert own_valkey.pid is not None
    os.kill(own_valkey.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: not first.held(), 2.0)
        wait_until(first.silent, 2.0)
        assert not first.taken()  # nobody said so
    finally:
        os.kill(own_valkey.pid, signal.SIGCONT)
    wait_until(first.held)
    wait_until(lambda: not first.silent())


def test_the_lease_survives_a_restart_of_redis(own_valkey: EmbeddedValkey, begin: Any, wait_until: Any) -> None:
    first, _ = begin(own_valkey.url)
    wait_until(first.held)
    own_valkey.stop()
    own_valkey.start()
    wait_until(first.held)
    with redis.Redis.from_url(own_valkey.url) as client:
        client.flushall()
    wait_until(lambda: redis.Redis.from_url(own_valkey.url).exists(lease_module.owner_key("a")))
    wait_until(first.held)
