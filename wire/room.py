"""Room in a Redis whose memory is full: the oldest detections make way, so that new ones, and alerts, go on.

Redis then refuses every write, also the one whose MAXLEN would cut a stream, so by itself it would stay full for ever.
A plain XTRIM it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing, suppress

import redis
import structlog

from wire.redis_link import Link, RedisAway
from wire.streams import detections_key

log = structlog.get_logger()

# A sink reads within milliseconds; so many frames leave one that is behind for seconds what it has not read.
LEAST_KEPT = 100
# Much at once, because every refusal costs its writer another round trip; the rest for those who look back.
KEPT_SHARE = 3 / 4
# Servers before 7 wrap the refusal inside a script in other words, and redis-py takes its code (OOM) off.
FULL_WORDS = "used memory > 'maxmemory'"


def is_full(reply: object) -> bool:
    """Whether a reply, or an error, is Redis's refusal to write because its memory is full."""
    return isinstance(reply, redis.ResponseError) and FULL_WORDS in str(reply)


class Room:
    """Makes room, counts what that cost, and says once how to do without. Not thread-safe."""

    def __init__(self) -> None:
        self.cut = 0  # detections removed before redis.detections_maxlen would have

    def make(self, link: Link, cameras: Iterable[str]) -> bool:
        """Cut the cameras' streams by a quarter, never below LEAST_KEPT; False where there was nothing to cut.

        Raises redis.RedisError or OSError when the connection is lost.
        """
        streams = [detections_key(camera) for camera in dict.fromkeys(cameras)]
        if not streams:
            return False
        lengths = link.send(*(("XLEN", stream) for stream in streams))
        # An error: the key is no stream, or we may not look at it; then it is left as it is.
        keep = {
            stream: max(LEAST_KEPT, int(length * KEPT_SHARE))
            for stream, length in zip(streams, lengths, strict=True)
            if isinstance(length, int) and length > LEAST_KEPT
        }
        if not keep:
            return False
        # By length and not by number: several processes that do this at once do it once.
        replies = link.send(*(("XTRIM", stream, "MAXLEN", most) for stream, most in keep.items()))
        cut = sum(reply for reply in replies if isinstance(reply, int))
        if cut and not self.cut:
            log.warning(
                "the memory of redis is full: the oldest detections make way for new ones",
                cut=cut,
                mend="lower redis.detections_maxlen, or give redis more memory (its maxmemory)",
            )
        self.cut += cut
        return cut > 0

    def try_make(self, connect: Callable[[], redis.Redis], cameras: Iterable[str]) -> None:
        """As `make`, on a connection of its own; where that fails, the caller's next attempt tells of it."""
        with suppress(redis.RedisError, RedisAway, OSError), closing(Link(connect())) as link:
            self.make(link, cameras)
