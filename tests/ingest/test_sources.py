from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ingest.errors import SourceError
from ingest.settings import CameraSettings, IngestSettings, MotionSettings, ReconnectSettings
from ingest.sources import parse


@pytest.mark.parametrize(
    ("text", "kind", "live"),
    [
        ("0", "webcam", True),
        ("/dev/video2", "webcam", True),
        ("rtsp://cam/stream", "rtsp", True),
        ("RTSPS://u:p@cam:322/s", "rtsp", True),
        ("http://cam/video.mjpg", "http", True),
        ("https://cdn/live/index.m3u8?token=x", "http", True),
        ("http://nas/film.MP4?x=1", "http", False),
        ("sim://street?seed=3", "sim", True),
        ("clip.mp4", "file", False),
        ("file:///data/my%20clip.mp4", "file", False),
        ("photo.JPG", "images", False),
    ],
)
def test_a_source_string_is_understood(text: str, kind: str, live: bool) -> None:
    source = parse(text)
    assert (source.kind, source.live) == (kind, live)
    assert parse(text, live=not live).live is not live


def test_a_folder_is_images(tmp_path: Path) -> None:
    assert parse(str(tmp_path)).kind == "images"
    assert parse(f"file://{tmp_path}").kind == "images"


@pytest.mark.parametrize(
    "text", ["", " ", "foo://x", "rtsp://", "rtsp://:554/x", "http://[bad/x", "rtsp://h:99999/", "a\nb"]
)
def test_nonsense_is_refused_with_what_would_do(text: str) -> None:
    with pytest.raises(SourceError) as caught:
        parse(text)
    assert caught.value.kind == "bad_url"
    assert "rtsp://" in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        parse(text)
    except SourceError as error:
        assert error.kind == "bad_url"


def test_a_parsed_source_shows_no_password() -> None:
    source = parse("rtsp://admin:hunter2@cam/s?token=Zq7x")
    assert "hunter2" not in repr(source) + str(source) and "Zq7x" not in repr(source)
    assert "hunter2" in source.url


@pytest.mark.parametrize(
    "bad",
    [
        {"source": "rtsp://u:hunter2@:5/x"},
        {"source": "rtsp://u:hunter2@cam/x", "fps": 0},
        {"source": "rtsp://u:hunter2@cam/x", "color": True},
        {"source": "rtsp://u:hunter2@cam/x", "rotate": 45},
        {"source": "rtsp://u:hunter2@cam/x", "reconnect": {"base_s": 5, "cap_s": 1}},
    ],
)
def test_bad_settings_are_refused_without_the_password(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as caught:
        CameraSettings.model_validate(bad)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(CameraSettings(source="rtsp://u:hunter2@cam/x"))


def test_every_setting_says_what_it_is() -> None:
    for model in (CameraSettings, IngestSettings, MotionSettings, ReconnectSettings):
        for name, field in model.model_fields.items():
            assert field.description and len(field.description) > 10, f"{model.__name__}.{name}"
            if name.endswith("_s") and name != "images_per_s":
                assert "seconds" in field.description, f"{model.__name__}.{name}"
