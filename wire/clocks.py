"""Stamps of another host's clock, brought onto this one's as they arrive.

CLOCK_MONOTONIC counts from each host's own start, so stamps of two hosts differ by anything. What comes over ipc:// is
of this host; what comes over tcp:// may not be, and is stamped anew: the time on the way is then left out, whatever is
measured afterwards (age, queue, latency) is of one clock.
"""

from __future__ import annotations

import msgspec

from wire.messages import FrameHeader, Work


def on_this_host(endpoint: str) -> bool:
    """Whether whoever speaks by this endpoint is surely on this host, and has its clock."""
    return endpoint.startswith("ipc://")


def arrived(header: FrameHeader, now_ns: int) -> FrameHeader:
    """A frame that came from another host: as if it had been captured now."""
    return msgspec.structs.replace(header, captured_ns=now_ns)


def received(work: Work, now_ns: int) -> Work:
    """Work of a broker on another host: as if it had been dispatched now, as old as it was there."""
    captured_ns = now_ns - (work.dispatched_ns - work.frame.captured_ns)
    return msgspec.structs.replace(work, dispatched_ns=now_ns, frame=arrived(work.frame, captured_ns))
