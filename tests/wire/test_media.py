"""Links and files of an incident's pictures have the same, harmless names everywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.media import media_links, media_path
from wire.messages import WireError

OPENED_US = 1_700_000_000_123_456  # 2023-11-14T22:13:20Z


def test_links_are_the_base_and_the_path() -> None:
    assert media_path("front-door", "ab12", OPENED_US, "jpg") == "front-door/2023-11-14/ab12.jpg"
    assert media_links("https://h/media", "front-door", "ab12", OPENED_US) == (
        "https://h/media/front-door/2023-11-14/ab12.jpg",
        "https://h/media/front-door/2023-11-14/ab12.mp4",
    )
    assert media_links("https://h/media/", "d", "i", 0)[0] == "https://h/media/d/1970-01-01/i.jpg"
    assert media_links("", "d", "i", 0) == ("d/1970-01-01/i.jpg", "d/1970-01-01/i.mp4")


@pytest.mark.parametrize("event_us", [10**30, -(10**30)])
def test_a_time_that_is_none_is_refused(event_us: int) -> None:
    with pytest.raises(WireError, match="event time"):
        media_path("d", "i", event_us, "jpg")


@given(camera=st.text(max_size=8), incident=st.text(max_size=8))
def test_a_path_has_three_parts_or_is_refused(camera: str, incident: str) -> None:
    try:
        path = media_path(camera, incident, OPENED_US, "mp4")
    except WireError:
        return
    parts = path.split("/")
    assert len(parts) == 3
    assert all(part and not part.startswith(".") and part.isascii() for part in parts)
