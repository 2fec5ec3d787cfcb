"""What the sink writes to Redis, all of it in one transaction: alerts, how far it has come, and the acknowledgements.

So a sink that dies at any moment has either delivered an alert, remembers it and will not see its frames again, or none
of this; it takes the frames up again and finds the same. When the answer is lost the same commit is sent again: an
alert's id keeps it from appearing twice. The transaction is done only while the cameras' leases are the sink's own
(sink/fence.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import redis
import structlog
from msgspec import Struct

from sink.camera import WorkState
from sink.fence import Fence
from sink.incidents import IncidentsState
from sink.system import SystemState
from wire.alerts import Alert, alert_once
from wire.messages import WireError, decode, decoder, encode
from wire.redis_link import Link
from wire.streams import detections_key, sink_key

log = structlog.get_logger()

GROUP = "sink"  # of consumers of the detections

# A camera that left the configuration leaves nothing behind for longer; one that is off for a holiday goes on.
STATE_TTL_S = 30 * 86_400


class CameraState(Struct, tag="camera.2"):
    """How far the sink has come with a camera: the frames up to here are acknowledged, and their alerts delivered."""

    next_orders: dict[str, int] = msgspec.field(default_factory=dict)  # broker: number of the next frame
    work: WorkState = msgspec.field(default_factory=WorkState)
    system: SystemState = msgspec.field(default_factory=SystemState)
    system_incidents: IncidentsState = msgspec.field(default_factory=IncidentsState)
    writer: str = ""  # the sink's run that wrote it


@dataclass
class Commit:
    """What has been worked out and is not in Redis yet."""

    alerts: list[Alert] = field(default_factory=list)
    acks: dict[str, list[bytes]] = field(default_factory=dict)  # camera whose state changed: entries done with

    @property
    def frames(self) -> int:
        """Entries to acknowledge."""
        return sum(map(len, self.acks.values()))

    def urgent(self) -> Commit:
        """The part that cannot wait: the cameras that have alerts. The state of a camera is kilobytes."""
        alerting = {alert.camera for alert in self.alerts}
        return Commit(self.alerts, {camera: ids for camera, ids in self.acks.items() if camera in alerting})

    def settle(self, part: Commit) -> None:
        """A part of it is in Redis."""
        self.alerts = self.alerts[len(part.alerts) :]
        self.acks = {camera: ids for camera, ids in self.acks.items() if camera not in part.acks}

    def drop(self, camera: str) -> None:
        """Forget a camera: it is another sink's."""
        self.acks.pop(camera, None)
        self.alerts = [alert for alert in self.alerts if alert.camera != camera]


class LeaseLost(Exception):
    """A camera of the commit is no longer ours; nothing was written."""


_decoder = decoder(CameraState)


def load_state(link: Link, camera: str) -> CameraState:
    """The state of the last run; a fresh one where there is none, or none that this build can read."""
    blob = link.one("GET", sink_key(camera))
    if blob is None:
        return CameraState()
    try:
        return decode(_decoder, blob)
    except WireError as error:
        log.warning("rules begin anew: unknown state", camera=camera, reason=str(error))
        return CameraState()


def send_commit(
    link: Link,
    commit: Commit,
    states: dict[str, CameraState],
    *,
    fence: Fence,
    alerts_maxlen: int,
    also: Iterable[tuple[Any, ...]] = (),
) -> list[bool]:
    """Write it all; returns for each alert whether it is new. `states` are those of the cameras in `commit.acks`.

    `also` are commands to be done with it, or not at all.

    Raises LeaseLost when the lease of one of them is not ours, and redis.RedisError or OSError when not all of it was
    done for certain; then send the same commit again.
    """
    if not fence.holds(commit.acks):
        raise LeaseLost
    commands: list[tuple[Any, ...]] = [("MULTI",)]
    commands += [alert_once(alert, alerts_maxlen) for alert in commit.alerts]
    for camera, ids in commit.acks.items():
        commands.append(("SET", sink_key(camera), encode(states[camera]), "EX", STATE_TTL_S))
        if ids:
            commands.append(("XACK", detections_key(camera), GROUP, *ids))
    commands += [*also, ("EXEC",)]
    watch = fence.commands()
    replies = link.send(*commands, *watch)
    *queued, done = replies[: len(commands)]
    # The refusal of a command explains that of the EXEC after it, so it is the better one to tell of.
    for reply in (*queued, done, *(done if isinstance(done, list) else ())):
        if isinstance(reply, redis.RedisError):
            raise reply
    fence.armed(replies[len(commands) :])
    if done is None:
        raise LeaseLost
    return [reply is not None for reply in done[: len(commit.alerts)]]
