"""Incidents that nobody goes on with: found and closed, so that whoever heard of a beginning hears of an end.

Of a camera of ours that is an incident which is told as open and of which its state knows nothing: that was lost. And
there are cameras that nobody watches any more, because they left the configuration. Sinks share a Redis without sharing
a configuration, so a camera that one does not know may be another's, who is only away. It is taken for gone when nobody
has its lease and no ingest tells of it, for `idle_s`, once the sink that watched it last was this very one, under
another configuration, or has not been there for `unwatched_s`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from sink.camera import Plan
from sink.delivery import Commit, LeaseLost, load_state, send_commit
from sink.fence import Fence
from sink.leases import Leases
from sink.messages import over_since_unknown
from sink.settings import SinkSettings
from sink.watched import WatchedCamera
from sink.watchers import Watcher, forget_watcher, read_watchers, watchers_of, write_watchers
from wire.alerts import Alert
from wire.cameras import read_status, status_of
from wire.messages import WireError
from wire.open_incidents import forget, names_of, opened_of, read_names, read_opened
from wire.redis_link import Link
from wire.streams import is_camera_name, lease_key

log = structlog.get_logger()


@dataclass(frozen=True)
class Standing:
    """What Redis says of all cameras, whosever they are."""

    now_us: int  # the server's time
    open: dict[str, set[str]]  # camera: its open incidents
    watchers: dict[str, Watcher]


def read_standing(link: Link) -> Standing:
    """Raises redis.RedisError or OSError."""
    (seconds, microseconds), names, watchers = link.ask(("TIME",), read_names(), read_watchers())
    now_us = int(seconds) * 1_000_000 + int(microseconds)
    return Standing(now_us, names_of(names), watchers_of(watchers))


def say_watched(link: Link, standing: Standing, sink: str, cameras: Iterable[WatchedCamera]) -> None:
    """Write that `sink` watches these, where that is news. Raises redis.RedisError or OSError."""
    watchers = [(one.name, Watcher(sink, standing.now_us, one.work.rules)) for one in cameras]
    news = [(camera, one) for camera, one in watchers if one.is_news(standing.watchers.get(camera))]
    if news:
        link.ask(write_watchers(news))


def close_lost(link: Link, camera: str, incidents: Iterable[str]) -> list[Alert]:
    """Alerts that close incidents of which there is nothing but the alert that opened them."""
    lost = [(camera, incident) for incident in sorted(incidents)]
    if not lost:
        return []
    (reply,) = link.ask(read_opened(lost))
    found = opened_of(reply)
    unreadable = [name for name, text in zip(lost, reply, strict=True) if text is not None and not opened_of([text])]
    if found:
        log.warning("incidents closed: their state is lost", camera=camera, incidents=len(found))
    if unreadable:
        log.warning("incidents forgotten: nothing of them can be read", camera=camera, incidents=len(unreadable))
        link.ask(forget(unreadable))
    return [over_since_unknown(opened, "state_lost") for opened in found]


class Orphans:
    """Finds the cameras that nobody watches any more, and ends them; of one sink."""

    def __init__(self, plan: Plan, settings: SinkSettings, leases: Leases, fence: Fence, alerts_maxlen: int) -> None:
        self._plan = plan
        self._settings = settings
        self._leases = leases
        self._fence = fence
        self._alerts_maxlen = alerts_maxlen
        self._alone_since_s: dict[str, float] = {}

    def reset(self) -> None:
        """Redis was away: nobody could renew a lease, and nobody is gone for that."""
        self._alone_since_s.clear()

    def find(self, link: Link, standing: Standing, now_s: float) -> list[str]:
        """Those to be ended now; `now_s` is any clock that rises. Raises redis.RedisError or OSError."""
        others = sorted((standing.watchers.keys() | standing.open.keys()) - self._leases.cameras)
        # First what is known: nearly all are another sink's, who was there a moment ago.
        given_up = [camera for camera in others if is_camera_name(camera) and self._is_given_up(standing, camera)]
        alone = self._alone(link, standing, given_up)
        self._alone_since_s = {camera: self._alone_since_s.get(camera, now_s) for camera in alone}
        idle_s = self._plan.incidents.idle_s
        return [camera for camera, since_s in self._alone_since_s.items() if now_s - since_s >= idle_s]

    def end(self, link: Link, name: str, told: Iterable[str]) -> tuple[list[Alert], list[bool]]:
        """Take a camera for the moment that it takes to close all of it, also what is `told` as open and not known.

        Returns the alerts, and for each whether it is new; none where another sink has the camera now. Raises
        redis.RedisError or OSError; then it is done later, here or elsewhere.
        """
        if not self._leases.borrow(link, name):
            return [], []
        self._fence.arm(link, [*self._leases.owned, name])
        camera = WatchedCamera(name, self._plan, self._settings, load_state(link, name))
        lost = set(told) - camera.open_ids
        commit = Commit(camera.end() + close_lost(link, name, lost), {name: []})
        states = {name: camera.state(self._leases.owner)}
        new: list[bool] = []
        try:
            new = send_commit(
                link,
                commit,
                states,
                fence=self._fence,
                alerts_maxlen=self._alerts_maxlen,
                also=[forget_watcher(name)],
            )
            log.info("nobody watches the camera any more: closed", camera=name, incidents=sum(new))
        except LeaseLost:
            commit = Commit()
        self._leases.release(link, [name])
        self._fence.arm(link, self._leases.owned)
        return commit.alerts, new

    def _alone(self, link: Link, standing: Standing, cameras: list[str]) -> list[str]:
        """Those that no sink works on and no ingest tells of."""
        replies = link.ask(*(ask for camera in cameras for ask in (("GET", lease_key(camera)), read_status(camera))))
        heard_since_us = standing.now_us - self._plan.incidents.system.ingest_silent_s * 1e6
        return [
            camera
            for camera, holder, status in zip(cameras, replies[::2], replies[1::2], strict=True)
            if holder is None and _written_us(status) <= heard_since_us
        ]

    def _is_given_up(self, standing: Standing, camera: str) -> bool:
        watcher = standing.watchers.get(camera, Watcher())
        away_us = standing.now_us - watcher.at_us
        return watcher.sink in ("", self._leases.name) or away_us >= self._plan.incidents.unwatched_s * 1e6


def _written_us(reply: list[bytes]) -> float:
    """When an ingest told of a camera last, by the server's clock; one that is not understood is there all the same."""
    try:
        status = status_of(reply)
    except WireError:
        status = None
    if status is None:
        return math.inf if reply else -math.inf
    return status.written_us
