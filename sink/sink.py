"""The sink: reads detections, puts them in order, works them into alerts, delivers these.

Several sinks share the cameras by leases (sink/leases.py).
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable

import redis
import structlog

from sink.camera import Plan, plausible
from sink.delivery import GROUP, Commit, LeaseLost, load_state, send_commit
from sink.fence import Fence
from sink.leases import Leases
from sink.orphans import Orphans, close_lost, read_standing, say_watched
from sink.settings import SinkSettings
from sink.snapshot import SinkSnapshot
from sink.watched import WatchedCamera
from wire.alerts import Alert
from wire.arming import disarmed_of, read_disarmed
from wire.cameras import read_status, status_of
from wire.eviction import warn_of_eviction
from wire.logs import redact
from wire.messages import WireError
from wire.redis_link import Link, RedisAway, connect, trouble_name
from wire.room import Room, is_full
from wire.settings import RedisSettings
from wire.streams import Entry, Reader, detections_key

log = structlog.get_logger()

# Of all sinks: whoever takes a camera over also takes up the entries that the one before had read and not finished.
CONSUMER = "sink"
# Entries of a camera in one read: after an outage the reading is done in few round trips, and beats go on between them.
READ_COUNT = 512
# The longest wait for a frame: how soon `stop` is heard.
IDLE_WAIT_S = 0.2
# While a missing frame is waited for: how exactly its time limit is kept.
HELD_WAIT_S = 0.02
RETRY_S = 0.25
# Between two readings: a busy stream then brings several entries at once. Reading one by one cost four times the CPU,
# 5 ms no less than 2 and half of an alert's latency at 1,000 records a second; an alert is at most this much later.
GATHER_S = 0.002
# After `stop` what lies in the streams is still worked through, for at most this long.
DRAIN_S = 1.0
# Acknowledge at the latest after as many, so that neither memory nor a commit grows without bound.
COMMIT_FRAMES = 5000
# Between two looks at how the cameras are doing: as often as ingest says it.
SYSTEM_S = 1.0


class Sink:
    """Call `run` on one thread; `snapshot` from any."""

    def __init__(
        self,
        settings: SinkSettings,
        plan: Plan,
        cameras: Iterable[str],
        redis_settings: RedisSettings,
        default_url: str = "",
    ) -> None:
        self._settings = settings
        self._plan = plan
        self._redis = redis_settings
        self._default_url = default_url
        self._leases = Leases(cameras, settings.name or socket.gethostname(), settings.lease_s)
        self._fence = Fence(self._leases.owner)
        self._orphans = Orphans(plan, settings, self._leases, self._fence, redis_settings.alerts_maxlen)
        self._reader = Reader((), group=GROUP, consumer=CONSUMER)
        self._cameras: dict[str, WatchedCamera] = {}  # those whose lease is ours
        self._disarmed: dict[str, frozenset[str]] = {}  # camera: rules
        self._link: Link | None = None
        self._room = Room()
        self._trouble = self._evicts = ""
        self._commit = Commit()
        self._uncommitted_since_s = 0.0
        self._renew_at_s = self._system_at_s = -math.inf
        self._last_good_s = time.monotonic()
        self._away_s = 0.0
        self._listening_us: int | None = None  # since when reports of cameras can reach us, by the server's clock
        self._lock = threading.Lock()  # over all counts, for `snapshot`
        self._counts: Counter[str] = Counter()
        self._delivered: Counter[tuple[str, str]] = Counter()

    def run(self, stop: threading.Event, beat: Callable[[], None] = lambda: None) -> None:
        """Work until `stop`; `beat` is called several times a second, also while Redis is away.

        Raises RedisUrlError for a redis.url that cannot be used.
        """
        while not stop.is_set():
            beat()
            try:
                entries = self._round(self._link or self._connect())
                self._trouble = ""
                if entries:
                    stop.wait(GATHER_S)
            except (redis.RedisError, RedisAway, OSError) as error:
                name, reason = trouble_name(error), redact(str(error))
                if not self._trouble:
                    log.warning(name, reason=reason, alerts_waiting=len(self._commit.alerts))
                self._trouble = f"{name}: {reason}"
                self._drop_link()
                if is_full(error):  # alerts must not wait for a memory that any camera's detections may have filled
                    self._room.try_make(lambda: connect(self._redis, self._default_url), self._leases.cameras)
                stop.wait(RETRY_S)
        self._finish()

    def snapshot(self) -> SinkSnapshot:
        """The counts now."""
        with self._lock:
            now = self._counts.copy()
            for camera in self._cameras.values():
                now.update(camera.counts())
            return SinkSnapshot(
                connected=self._link is not None,
                trouble=self._trouble,
                evicts=self._evicts,
                read=self._reader.counts.read,
                malformed=self._reader.counts.malformed + now["bad"],
                trimmed=self._reader.counts.trimmed,
                held=sum(camera.reorder.held for camera in self._cameras.values()),
                unacknowledged=self._commit.frames,
                alerts=dict(self._delivered),
                alerts_waiting=len(self._commit.alerts),
                reconnects=max(0, now["connects"] - 1),
                cut=self._room.cut,
                cameras=len(self._cameras),
                sinks=self._leases.sinks,
                disarmed=sum(len(camera.work.disarmed) for camera in self._cameras.values()),
                alerts_repeated=now["repeated"],
                **{name: now[name] for name in ("taken_over", "lost", "reread", *WatchedCamera.COUNTS)},
            )

    def _connect(self) -> Link:
        link = Link(connect(self._redis, self._default_url))
        try:
            self._reader.resume(link)
            # While Redis is away no frame can come, so that time does not count for those that are waited for.
            now_s = time.monotonic()
            self._away_s += now_s - self._last_good_s
            self._last_good_s = now_s
            self._listening_us = None
            self._leases.doubt()
            self._orphans.reset()
            self._look_at_arming(link)  # before the first frame, and before the cameras are taken
            self._share(link)
        except BaseException:
            link.close()
            raise
        with self._lock:
            self._link = link
            self._counts["connects"] += 1
        log.info("redis connected", cameras=len(self._cameras), sinks=self._leases.sinks)
        return link

    def _round(self, link: Link) -> int:
        """Read, work, deliver; returns how many entries there were."""
        if time.monotonic() >= self._renew_at_s:
            self._share(link)
        if self._commit.alerts:  # a commit that failed goes first
            self._send(link)
        entries = self._reader.read(link, count=READ_COUNT, block_s=self._wait_s())
        now_s = time.monotonic() - self._away_s
        with self._lock:
            for entry in entries:
                self._take(entry, now_s)
            for camera in self._cameras.values():
                # As long as there is more to read, a missing frame may be in it.
                if camera.name not in self._reader.behind:
                    self._work(camera, camera.reorder.expire(now_s))
                    self._tell(camera.name, camera.close_idle(now_s))
        if time.monotonic() >= self._system_at_s:
            self._system_at_s = time.monotonic() + SYSTEM_S
            self._look_at_arming(link)
            self._look_at_cameras(link)
            self._look_at_incidents(link)
        done = self._commit
        due = time.monotonic() - self._uncommitted_since_s >= self._settings.commit_s
        if (done.acks and due) or done.frames >= COMMIT_FRAMES:
            self._send(link)
        elif done.alerts:
            self._send(link, done.urgent())
        self._last_good_s = time.monotonic()
        return len(entries)

    def _wait_s(self) -> float:
        wait_s = IDLE_WAIT_S
        if any(camera.reorder.held for camera in self._cameras.values()):
            wait_s = HELD_WAIT_S
        now_s = time.monotonic()
        until_s = min(self._renew_at_s, self._system_at_s)
        if self._commit.acks:
            until_s = min(until_s, self._uncommitted_since_s + self._settings.commit_s)
        return min(wait_s, max(0.0, until_s - now_s))

    # ---- which cameras are ours

    def _share(self, link: Link) -> None:
        """Renew the leases, and do what their changes ask for."""
        now_s = time.monotonic()
        changes = self._leases.renew(link, now_s)
        self._evicts = warn_of_eviction(link, self._evicts)
        self._renew_at_s = now_s + self._leases.renew_s
        self._fence.arm(link, self._leases.owned)
        for camera in changes.lost:
            self._forget(camera)
            log.warning("camera lost to another sink", camera=camera)
        for camera in changes.doubtful:
            writer = load_state(link, camera).writer
            if writer not in ("", self._leases.owner):  # another had it, and went on from what it found
                self._forget(camera)
                self._adopt(link, camera)
        # Not only what was gained now: the connection may have been lost amid an earlier round's.
        taken = sorted(self._leases.owned - self._cameras.keys())
        for camera in taken:
            self._adopt(link, camera)
        if taken:
            log.info("cameras taken", cameras=taken, sinks=self._leases.sinks)
        if changes.surplus:
            self._release(link, changes.surplus)
        self._find_stray_entries(link)

    def _adopt(self, link: Link, name: str) -> None:
        """Go on with a camera where its last sink stopped."""
        self._reader.add(link, name)
        camera = WatchedCamera(name, self._plan, self._settings, load_state(link, name))
        camera.heard_s = time.monotonic() - self._away_s
        camera.work.disarmed = self._disarmed.get(name, frozenset())
        with self._lock:
            self._cameras[name] = camera
            self._counts["taken_over"] += 1
            self._tell(name, camera.close_removed_rules())

    def _forget(self, name: str) -> None:
        """Another sink has the camera, and finds again what we had not delivered."""
        with self._lock:
            camera = self._cameras.pop(name, None)
            if camera is not None:
                self._counts.update(camera.counts())
                self._counts["lost"] += 1
            self._commit.drop(name)
            self._reader.drop(name)

    def _release(self, link: Link, names: list[str]) -> None:
        """Leave cameras to other sinks: what is done is committed, the rest stays unacknowledged for them."""
        if self._commit.acks:
            self._send(link)
        for name in names:
            self._forget(name)
        self._counts["lost"] -= len(names)
        self._leases.release(link, names)
        self._fence.arm(link, self._leases.owned)
        log.info("cameras left to other sinks", cameras=names, sinks=self._leases.sinks)

    def _find_stray_entries(self, link: Link) -> None:
        """Begin anew with cameras of which more was read than we hold.

        A sink that slept through its lease may read once more before it knows; what it read nobody else is given.
        """
        names = [name for name in self._cameras if not self._reader.resuming(name)]
        if not names:
            return
        replies = link.send(*(("XPENDING", detections_key(name), GROUP) for name in names))
        for name, reply in zip(names, replies, strict=True):
            # An error: Redis has lost the group, and the next reading mends that.
            if isinstance(reply, redis.ResponseError) or reply[0] <= self._in_hand(name):
                continue
            if self._commit.acks:
                self._send(link)
            self._forget(name)
            self._adopt(link, name)
            with self._lock:
                self._counts["reread"] += 1
                self._counts["lost"] -= 1
                self._counts["taken_over"] -= 1

    def _in_hand(self, name: str) -> int:
        return self._cameras[name].reorder.held + len(self._commit.acks.get(name, ()))

    # ---- from entries to alerts

    def _take(self, entry: Entry, now_s: float) -> None:
        camera, record = self._cameras[entry.camera], entry.record
        if record is not None and not plausible(record):
            self._counts["bad"] += 1
            record = None
        camera.heard_s = now_s
        if record is None or camera.reorder.is_duplicate(record):
            self._ack(entry)
        else:
            self._work(camera, camera.reorder.push(record, entry, now_s))

    def _work(self, camera: WatchedCamera, entries: list[Entry]) -> None:
        for entry in entries:
            assert entry.record is not None  # only readable entries are put in order
            self._commit.alerts += camera.step(entry.record)
            self._ack(entry)

    def _look_at_arming(self, link: Link) -> None:
        """What people have switched off. Should Redis refuse to tell, it stays as it was."""
        (reply,) = link.send(read_disarmed())
        if isinstance(reply, redis.ResponseError):
            return
        disarmed: dict[str, set[str]] = {}
        for camera, rule in disarmed_of(reply):
            disarmed.setdefault(camera, set()).add(rule)
        self._disarmed = {camera: frozenset(rules) for camera, rules in disarmed.items()}
        for name, one in self._cameras.items():
            one.work.disarmed = self._disarmed.get(name, frozenset())

    def _look_at_cameras(self, link: Link) -> None:
        """Incidents about the cameras themselves."""
        names = list(self._cameras)
        if not self._plan.incidents.system.enabled or not names:
            return
        (seconds, microseconds), *replies = link.send(("TIME",), *map(read_status, names))
        now_us = int(seconds) * 1_000_000 + int(microseconds)
        if self._listening_us is None:
            self._listening_us = now_us
        with self._lock:
            for name, reply in zip(names, replies, strict=True):
                try:
                    status = None if isinstance(reply, redis.ResponseError) else status_of(reply)
                except WireError as error:
                    log.warning("camera status skipped", camera=name, reason=str(error))
                    continue
                alerts = self._cameras[name].look(now_us, status, self._listening_us)
                if self._cameras[name].troubled:
                    self._touch(name)
                self._tell(name, alerts)

    def _look_at_incidents(self, link: Link) -> None:
        """Say which cameras are ours; close incidents that nobody goes on with."""
        standing = read_standing(link)
        say_watched(link, standing, self._leases.name, self._cameras.values())
        waiting = {alert.incident for alert in self._commit.alerts}
        for name, camera in self._cameras.items():
            lost = close_lost(link, name, standing.open.get(name, set()) - camera.open_ids - waiting)
            with self._lock:
                self._tell(name, lost)
        for name in self._orphans.find(link, standing, time.monotonic()):
            self._count(*self._orphans.end(link, name, standing.open.get(name, ())))

    def _tell(self, camera: str, alerts: list[Alert]) -> None:
        """Alerts that no frame brought go into the next commit, and the camera's state with them."""
        if alerts:
            self._touch(camera)
            self._commit.alerts += alerts

    def _ack(self, entry: Entry) -> None:
        self._touch(entry.camera).append(entry.id)

    def _touch(self, camera: str) -> list[bytes]:
        """The camera's state has changed: it goes into the next commit. Returns the entries to acknowledge with it."""
        if not self._commit.acks:
            self._uncommitted_since_s = time.monotonic()
        return self._commit.acks.setdefault(camera, [])

    def _send(self, link: Link, part: Commit | None = None) -> None:
        """Commit what is done, or a part of it."""
        part = part or self._commit
        states = {name: self._cameras[name].state(self._leases.owner) for name in part.acks}
        try:
            new = send_commit(
                link,
                part,
                states,
                fence=self._fence,
                alerts_maxlen=self._redis.alerts_maxlen,
            )
        except LeaseLost:
            # What is still ours after that is committed in the next round.
            self._leases.doubt()
            self._renew_at_s = -math.inf
            return
        self._count(part.alerts, new)
        with self._lock:
            self._commit.settle(part)

    def _count(self, alerts: list[Alert], new: list[bool]) -> None:
        with self._lock:
            for alert, is_new in zip(alerts, new, strict=True):
                self._delivered[alert.rule, alert.event] += is_new
                self._counts["repeated"] += not is_new

    def _finish(self) -> None:
        """Work through what is there, say how far we have come, leave the cameras to others, and hang up."""
        until_s = time.monotonic() + DRAIN_S
        try:
            link = self._link or self._connect()
            while (self._round(link) or self._reader.behind) and time.monotonic() < until_s:
                pass
            if self._commit.acks:
                self._send(link)
            self._leases.leave(link)
        except (redis.RedisError, RedisAway, OSError) as error:
            log.warning(
                "stopped without redis: these frames are taken up at the next start",
                reason=redact(str(error)),
                frames=self._commit.frames,
                alerts=len(self._commit.alerts),
            )
        self._drop_link()

    def _drop_link(self) -> None:
        with self._lock:
            link, self._link = self._link, None
        if link is not None:
            link.close()


def run_sink(
    settings: SinkSettings,
    plan: Plan,
    cameras: Iterable[str],
    redis_settings: RedisSettings,
    stop: threading.Event,
    *,
    default_url: str = "",
    beat: Callable[[], None] = lambda: None,
) -> SinkSnapshot:
    """Run a sink until `stop`; returns its final counts."""
    sink = Sink(settings, plan, cameras, redis_settings, default_url)
    sink.run(stop, beat)
    return sink.snapshot()
