"""Logs read well for a person and for a machine, and hold no password."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import assume, given
from hypothesis import strategies as st

from wire.logs import LogFormat, redact, redact_value, setup_logs


@pytest.fixture(autouse=True)
def restored_logs() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, config = list(root.handlers), root.level, structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**config)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("rtsp://admin:s3cret@10.0.0.2:554/main", "rtsp://admin:***@10.0.0.2:554/main"),
        ("opening rtsps://a:b@h/x failed", "opening rtsps://a:***@h/x failed"),
        ("redis://:s3cret@cache:6379/0", "redis://:***@cache:6379/0"),
        ("rtsp://u:p@ss/w'rd@cam/1", "rtsp://u:***@cam/1"),
        ("http://cam/cgi?user=me&password=s3cret&ch=1", "http://cam/cgi?user=me&password=***&ch=1"),
        ("https://hook/x?token=abc", "https://hook/x?token=***"),
        ("http://cam/v.cgi?loginuse=me&loginpas=s3cret", "http://cam/v.cgi?loginuse=me&loginpas=***"),
        ("http://cam/v.cgi?usr=me&psw=s3cret", "http://cam/v.cgi?usr=me&psw=***"),
        ("https://store/x?X-Amz-Signature=ab12", "https://store/x?X-Amz-Signature=***"),
        (
            "cannot open rtsp://cam/user=me_password=s3c_ret_channel=1_stream=0.sdp: it is 1_password=2",
            "cannot open rtsp://cam/user=me_password=***_channel=1_stream=0.sdp: it is 1_password=2",
        ),
        ("rtsp://cam:554/main", "rtsp://cam:554/main"),
        ("mail me@home about http://cam/1", "mail me@home about http://cam/1"),
    ],
)
def test_passwords_of_urls_are_hidden(text: str, hidden: str) -> None:
    assert redact(text) == hidden


@given(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=6, max_size=20),
    st.sampled_from(["rtsp", "rtsps", "http", "redis", "mqtts"]),
)
def test_no_password_survives(password: str, scheme: str) -> None:
    password = f"Zq{password}Zq"
    assume("***" not in password)
    assert password not in redact(f"cannot open {scheme}://user:{password}@camera.lan/live: timed out")


def written(log_format: LogFormat, **fields: Any) -> str:
    out = io.StringIO()
    setup_logs("info", log_format, stream=out, process="ingest")
    structlog.get_logger().info("camera is up", **fields)
    return out.getvalue()


def test_json_is_one_object_a_line() -> None:
    event = json.loads(written("json", camera="door", fps=25.0))
    assert event["event"] == "camera is up"
    assert (event["camera"], event["fps"], event["level"], event["process"]) == (
        "door",
        25.0,
        "info",
        "ingest",
    )
    assert event["timestamp"].endswith("Z")


def test_the_console_has_no_colour_codes_off_a_terminal() -> None:
    line = written("console", camera="door")
    assert "camera is up" in line
    assert "camera=door" in line
    assert "\x1b" not in line


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_no_field_nested_value_or_traceback_shows_a_password(log_format: LogFormat) -> None:
    url = "rtsp://admin:hunter22@cam/1"
    out = io.StringIO()
    setup_logs("debug", log_format, stream=out)
    logger = structlog.get_logger()
    logger.info("opening " + url, source=url, nested={"urls": [url], url: 1}, password="hunter22", api_key="hunter22")
    logging.getLogger("redis").warning("cannot reach %s", url)
    try:
        raise OSError(f"cannot open {url}")
    except OSError as error:
        logger.exception("reader failed", error=error)
    text = out.getvalue()
    assert "hunter22" not in text
    assert text.count("admin:***@cam") >= 6
    assert "Traceback" in text


def test_the_standard_librarys_loggers_are_routed_in() -> None:
    out = io.StringIO()
    setup_logs("info", "json", stream=out)
    logging.getLogger("redis.connection").warning("lost %s", "it")
    logging.getLogger("redis.connection").debug("chatter")
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [("lost it", "warning")]


def test_the_level_is_kept() -> None:
    out = io.StringIO()
    setup_logs("error", "console", stream=out)
    structlog.get_logger().warning("not now")
    assert out.getvalue() == ""


def test_numbers_and_nothing_stay_as_they_are() -> None:
    assert redact_value({"a": 1, "b": None, "c": [1.5, True]}) == {"a": 1, "b": None, "c": [1.5, True]}
