"""Where an incident's snapshot and clip lie: ingest writes them there, the sink links to them in alerts."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Literal
from urllib.parse import quote

from wire.messages import WireError

Suffix = Literal["jpg", "mp4"]

# One part of a path, whatever somebody wrote into Redis: no separators, not hidden, not `..`.
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}")


def media_path(camera: str, incident: str, event_us: int, suffix: Suffix) -> str:
    """`<camera>/<YYYY-MM-DD>/<incident>.<suffix>`; the day is that of the frame that opened it, in UTC.

    Raises WireError for names that are no part of a path, and for times that are none.
    """
    for name in (camera, incident):
        if not _PART.fullmatch(name):
            raise WireError(f"{name!r} cannot name a file: expected letters, digits, dash, underscore and dot")
    try:
        day = datetime.fromtimestamp(event_us // 1_000_000, timezone.utc).date()
    except (ValueError, OverflowError, OSError) as error:
        raise WireError(f"event time {event_us} us: {error}") from None
    return f"{camera}/{day.isoformat()}/{incident}.{suffix}"


def media_links(base_url: str, camera: str, incident: str, event_us: int) -> tuple[str, str]:
    """Links to the snapshot and the clip of an incident opened at `event_us` (microseconds since the epoch).

    With an empty `base_url` they are paths relative to `media.dir`. Raises WireError as `media_path` does.
    """
    base = base_url.rstrip("/") + "/" if base_url else ""
    snapshot = quote(media_path(camera, incident, event_us, "jpg"))
    clip = quote(media_path(camera, incident, event_us, "mp4"))
    return base + snapshot, base + clip
