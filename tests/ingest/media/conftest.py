"""What tests of snapshots and clips share: a fleet with a ring, and alerts about its frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest.fleet import Fleet
from ingest.media.ring import PacketRing
from ingest.settings import CameraSettings, IngestSettings
from wire.alerts import Alert, rfc3339
from wire.messages import FrameHeader


@pytest.fixture
def watch(link: Any) -> Iterator[Callable[..., tuple[Fleet, PacketRing]]]:
    """Starts a camera `cam` with a ring: `watch(source, keep_s=..., max_bytes=..., setting=...)`."""
    fleets: list[Fleet] = []

    def start(source: Path | str, keep_s: float = 3600, max_bytes: int = 10**9, **settings: Any) -> Any:
        ring = PacketRing(keep_s, max_bytes)
        camera = CameraSettings.model_validate({"source": str(source)} | settings)
        fleets.append(Fleet({"cam": camera}, link, IngestSettings(), rings={"cam": ring}))
        fleets[-1].start()
        return fleets[-1], ring

    yield start
    for fleet in fleets:
        fleet.stop()


@pytest.fixture
def record(watch: Any, until: Any) -> Callable[..., PacketRing]:
    """Reads a file to its end; returns its ring."""

    def read(source: Path | str, **settings: Any) -> PacketRing:
        fleet, ring = watch(source, **settings)
        until(lambda: fleet.finished, 60)
        return ring

    return read


@pytest.fixture
def alert_about() -> Callable[..., Alert]:
    """`alert_about(header, event="opened", at_us=..., incident=..., field=value)`: what the sink would say."""

    def make(
        header: FrameHeader, event: str = "opened", incident: str = "i1", at_us: int | None = None, **changes: Any
    ) -> Alert:
        fields: dict[str, Any] = {
            "version": 1,
            "id": f"{incident}-{event}",
            "incident": incident,
            "event": event,
            "camera": header.camera,
            "rule": "r",
            "text": "person",
            "event_time": rfc3339(header.event_us if at_us is None else at_us),
            "opened_time": rfc3339(header.event_us),
            "session": header.session,
            "seq": header.seq,
        }
        return Alert(**(fields | changes))

    return make
