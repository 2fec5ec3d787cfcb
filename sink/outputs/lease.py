"""Which process delivers to an output: one of all sinks that have it, so that each alert goes out once and in order.

One key in Redis an output, `sparsecam:outputs:owner:<output>`, that its holder renews and that runs out when the holder
dies. A holder that is cut off from Redis stops delivering before the key runs out. A process that was frozen in the
middle of an attempt may still deliver that one alert a second time, under the same key: no receiver can be made to
check a lease.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import redis
import structlog
from redis.exceptions import LockError
from redis.lock import Lock

from wire.logs import redact
from wire.redis_link import RedisAway, trouble_name

log = structlog.get_logger()

# How soon another process takes over after a crash. Several renewals fit in, so that one that is late loses nothing.
LEASE_S = 5.0
RENEW_EVERY_S = 1.0
# A holder stops this long before the key runs out: the two clocks differ a little, and its threads need to hear of it.
MARGIN_S = 1.0


def owner_key(output: str) -> str:
    """Which process runs an output."""
    return f"sparsecam:outputs:owner:{output}"


class Lease:
    """Of one output. Call `run` on a thread; `held` from any."""

    def __init__(self, output: str, connect: Callable[[], redis.Redis], lease_s: float = LEASE_S) -> None:
        self._output = output
        self._connect = connect
        self._lease_s = lease_s
        self._until_s = 0.0
        self._taken = self._silent = False

    def taken(self) -> bool:
        """Whether Redis, when it last answered, said that another process is the one."""
        return self._taken

    def silent(self) -> bool:
        """Whether Redis did not answer when it was asked last."""
        return self._silent

    def held(self) -> bool:
        """Whether this process is the one to deliver."""
        return time.monotonic() < self._until_s

    def run(self, stop: threading.Event) -> None:
        """Get the lease and keep it until `stop`."""
        client: redis.Redis | None = None
        lock: Lock | None = None
        told = False
        while not stop.is_set():
            try:
                if client is None or lock is None:
                    client = self._connect()
                    lock = client.lock(owner_key(self._output), timeout=self._lease_s, thread_local=False)
                self._renew(lock)
                told = self._silent = False
            except (redis.RedisError, RedisAway, OSError) as error:
                self._silent = True
                if not told:
                    log.warning(f"{trouble_name(error)}: output waits", output=self._output, reason=redact(str(error)))
                    told = True
            stop.wait(RENEW_EVERY_S if self.held() else RENEW_EVERY_S / 4)
        self._release(client, lock)

    def _renew(self, lock: Lock) -> None:
        asked_s = time.monotonic()
        was_held = self.held()
        try:
            got = lock.reacquire() if lock.local.token is not None else lock.acquire(blocking=False)
        except LockError:  # it ran out: another process may have it
            lock.local.token = None
            got = lock.acquire(blocking=False)
        self._taken = not got
        if got:
            self._until_s = asked_s + self._lease_s - MARGIN_S
            if not was_held:
                log.info("this process runs the output", output=self._output)

    def _release(self, client: redis.Redis | None, lock: Lock | None) -> None:
        """So that another process need not wait for it to run out."""
        self._until_s = 0.0
        try:
            if lock is not None and lock.local.token is not None:
                lock.release()
        except (redis.RedisError, OSError):
            pass  # it runs out by itself
        if client is not None:
            client.close()
