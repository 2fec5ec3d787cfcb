"""What `sparsecam alerts` prints of an alert."""

from __future__ import annotations

import pytest

from services.commands.alerts import line
from wire.alerts import Alert, alert_id, rfc3339


@pytest.mark.parametrize(
    ("event", "held_s", "told"),
    [("opened", 0.2, False), ("opened", 5.0, True), ("closed", 5.0, False)],
)
def test_an_incident_that_was_held_back_is_told_with_its_beginning(event: str, held_s: float, told: bool) -> None:
    now_us = 1_700_000_000_000_000
    alert = Alert(
        version=1,
        id=alert_id("door", "armed", "pistol", "s1", 1),
        incident="i1",
        event=event,
        camera="door",
        rule="armed",
        text="pistol at door",
        event_time=rfc3339(now_us),
        opened_time=rfc3339(now_us - int(held_s * 1e6)),
        seq=1,
    )
    assert ("since " in line(alert)) == told
