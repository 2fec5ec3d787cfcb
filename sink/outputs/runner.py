"""When an output is tried: each alert in its turn, again after a failure, and not for ever.

Alerts go out in the order of the stream, one at a time. When the receiver cannot be reached all of them wait. One that
the receiver answers but does not take waits alone, and what follows of its incident waits behind it: nobody hears that
an incident is over before hearing that it began. Waits double from failure to failure, and are shortened by chance so
that many outputs do not come back in step.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import redis
import structlog

from sink.outputs.delivery import DeliveryError, Failed, Output, Refused, Unreachable
from sink.outputs.lease import Lease
from sink.outputs.reader import AlertReader, Entry
from sink.outputs.settings import CommonSettings
from wire.logs import redact
from wire.redis_link import Link, RedisAway, trouble_name
from wire.streams import id_order

log = structlog.get_logger()

# Alerts held at once: so many can wait alone while others pass them. The rest waits in the stream.
HELD_MOST = 256
# The longest wait for an alert: how soon `stop` and the loss of the lease are heard.
IDLE_WAIT_S = 0.25
# While another process runs the output: how soon it is heard that this one does.
STANDBY_WAIT_S = 0.1
REDIS_RETRY_S = 0.25
# How often the backlog is looked up: as often as anybody looks at metrics.
LOOK_EVERY_S = 1.0
# How often the output may bring its receiver up to date: a rule that is gone is no more shown a moment later.
REFRESH_EVERY_S = 2.0
# A receiver may ask to be left alone for so long (Retry-After) and no longer.
ASKED_WAIT_MOST_S = 3600.0


@dataclass(frozen=True)
class OutputCounts:
    """An output's counts since it started."""

    delivered: int = 0
    failures: int = 0  # attempts that failed
    unwanted: int = 0  # alerts that its settings leave out
    buried: int = 0  # put aside as dead letters
    shed: int = 0  # dead letters that made room for newer ones
    malformed: int = 0  # entries that are no alerts this build knows
    trimmed: int = 0  # cut off by the stream's length before they were delivered
    waiting: int = 0  # to be delivered: held now, and in the stream as of the last look
    reachable: bool = True  # whether the last attempt found the receiver


class OutputRunner:
    """Call `run` on a thread; `counts` from any. It delivers while it holds the `lease`; always without."""

    def __init__(
        self,
        name: str,
        settings: CommonSettings,
        output: Output,
        connect: Callable[[], redis.Redis],
        lease: Lease | None = None,
    ) -> None:
        self.name = name
        self._settings = settings
        self._output = output
        self._connect = connect
        self._lease = lease
        self._reader = AlertReader(name, settings.deadletters_maxlen)
        self._link: Link | None = None
        self._is_prepared = False  # whether Redis keeps alerts for the output
        self._held: dict[bytes, Entry] = {}  # in the order of the stream
        self._outages = 0  # attempts in a row that did not reach the receiver
        self._paused_until_s = 0.0
        self._look_s = self._refresh_s = 0.0
        self._delivered = self._failures = self._unwanted = 0

    def run(self, stop: threading.Event) -> None:
        """Deliver until `stop`."""
        told = False
        try:
            while not stop.is_set():
                try:
                    if self._is_ours():
                        self._round(self._link or self._resume(), stop)
                    else:
                        self._stand_by()
                        stop.wait(STANDBY_WAIT_S)
                    told = False
                except (redis.RedisError, RedisAway, OSError) as error:
                    if not told:
                        reason = redact(str(error))
                        log.warning(trouble_name(error), output=self.name, reason=reason, held=len(self._held))
                        told = True
                    self._drop_link()
                    stop.wait(REDIS_RETRY_S)
        finally:
            self._let_go()
            # A goodbye would be taken for that of the process that delivers now; without Redis there is none.
            if not self._is_ours() and not self._is_cut_off():
                self._output.release()
            self._output.close()

    def counts(self) -> OutputCounts:
        """The counts now."""
        met = self._reader.counts
        return OutputCounts(
            delivered=self._delivered,
            failures=self._failures,
            unwanted=self._unwanted,
            buried=met.buried,
            shed=met.shed,
            malformed=met.malformed,
            trimmed=met.trimmed,
            waiting=self._reader.waiting + len(self._held),
            reachable=self._outages == 0,
        )

    def _is_ours(self) -> bool:
        return self._lease is None or self._lease.held()

    def _is_anothers(self) -> bool:
        return self._lease is not None and self._lease.taken()

    def _is_cut_off(self) -> bool:
        return self._lease is not None and self._lease.silent()

    def _stand_by(self) -> None:
        self._let_go()
        if self._is_anothers():  # and not only cut off from Redis: then the output still speaks for us
            self._output.release()
        self._refresh_s = 0.0
        if not self._is_prepared:
            link = Link(self._connect())
            try:
                self._reader.prepare(link)
            finally:
                link.close()
            self._is_prepared = True

    def _resume(self) -> Link:
        link = Link(self._connect())
        try:
            self._take(self._reader.resume(link, self._held))
            self._held = dict(sorted(self._held.items(), key=lambda item: id_order(item[0])))
            self._reader.look(link)
        except BaseException:
            link.close()
            raise
        self._link = link
        self._is_prepared = True
        return link

    def _round(self, link: Link, stop: threading.Event) -> None:
        """Acknowledge, read, and make one attempt at most."""
        if time.monotonic() - self._look_s >= LOOK_EVERY_S:
            self._reader.look(link)
            self._look_s = time.monotonic()
        if not self._held and time.monotonic() >= max(self._refresh_s, self._paused_until_s):
            self._refresh()
        entry, wait_s = self._next()
        if len(self._held) < HELD_MOST:
            self._take(self._reader.read(link, HELD_MOST - len(self._held), wait_s))
        else:
            stop.wait(wait_s)
        self._reader.flush(link)
        if entry is not None and not stop.is_set():
            self._settle(link, entry, self._attempt(entry))
            self._reader.flush(link)

    def _refresh(self) -> None:
        self._refresh_s = time.monotonic() + REFRESH_EVERY_S
        try:
            if self._output.refresh():
                self._reached()
        except Unreachable as error:
            self._failures += 1
            self._pause(error, redact(str(error)))
        except Exception:  # as in `_attempt`
            log.exception("output met an error that nobody foresaw", output=self.name)

    def _next(self) -> tuple[Entry | None, float]:
        """The alert whose turn it is, or None and how long to wait (seconds)."""
        now_s = time.monotonic()
        if now_s < self._paused_until_s:
            return None, min(IDLE_WAIT_S, self._paused_until_s - now_s)
        wait_s = IDLE_WAIT_S
        behind: set[str] = set()  # incidents of which an earlier alert waits
        for entry in self._held.values():
            if entry.alert.incident not in behind:
                if entry.due_s <= now_s:
                    return entry, 0.0
                wait_s = min(wait_s, entry.due_s - now_s)
                behind.add(entry.alert.incident)
        return None, wait_s

    def _take(self, entries: list[Entry]) -> None:
        for entry in entries:
            if self._settings.wants(entry.alert):
                self._held[entry.id] = entry
            else:
                self._unwanted += 1
                self._reader.done(entry.id)

    def _attempt(self, entry: Entry) -> DeliveryError | None:
        """Deliver; returns what went wrong."""
        if entry.age_s() > self._settings.max_age_s:
            return Refused(f"older than max_age_s ({self._settings.max_age_s:g} s)")
        entry.attempts += 1
        try:
            self._output.deliver(entry.alert, entry.text)
        except DeliveryError as error:
            return error
        except Exception as error:  # an output's library may raise anything; its alert must not be lost by that
            log.exception("output met an error that nobody foresaw", output=self.name, id=entry.alert.id)
            return Failed(f"{type(error).__name__}: {error}")
        return None

    def _settle(self, link: Link, entry: Entry, error: DeliveryError | None) -> None:
        if error is None:
            self._reached()
            del self._held[entry.id]
            self._delivered += 1
            self._reader.done(entry.id)
            return
        reason = redact(str(error))
        self._failures += 1
        if isinstance(error, Unreachable):
            self._pause(error, reason)
        elif not isinstance(error, Refused):
            self._reached()
            entry.due_s = time.monotonic() + self._wait_s(entry.attempts)
            log.warning("alert not taken", output=self.name, id=entry.alert.id, attempts=entry.attempts, reason=reason)
        if isinstance(error, Refused) or entry.attempts >= self._settings.max_attempts:
            self._reader.bury(link, entry, reason)
            self._held.pop(entry.id)
            log.error("alert put aside", output=self.name, id=entry.alert.id, attempts=entry.attempts, reason=reason)
        else:
            self._reader.note_attempts(link, entry)

    def _pause(self, error: Unreachable, reason: str) -> None:
        if self._outages == 0:
            log.warning("output unreachable", output=self.name, reason=reason, held=len(self._held))
        self._outages += 1
        wait_s = max(self._wait_s(self._outages), min(error.wait_s, ASKED_WAIT_MOST_S))
        self._paused_until_s = time.monotonic() + wait_s

    def _reached(self) -> None:
        if self._outages:
            log.info("output reachable again", output=self.name, attempts=self._outages)
            self._outages = 0

    def _wait_s(self, failures: int) -> float:
        longest = min(self._settings.retry_most_s, self._settings.retry_first_s * 2.0 ** min(failures - 1, 30))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311  # chance, not a secret

    def _let_go(self) -> None:
        """Forget what is held: it stays pending in Redis, for whoever delivers next."""
        if self._link is not None:
            try:
                self._reader.flush(self._link)
            except (redis.RedisError, OSError) as error:
                name = f"{trouble_name(error)}: some alerts may come twice"
                log.warning(name, output=self.name, reason=redact(str(error)))
        self._held.clear()
        self._drop_link()

    def _drop_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
