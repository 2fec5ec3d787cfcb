from __future__ import annotations

from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingest.redact import hide, safe_url, secrets_of

# Passwords as people have them; the secret is told apart from the rest of the URL by a part that occurs nowhere else.
ODD = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_characters="\x7f"), max_size=8)


@given(ODD, ODD)
@example("p@", "/ss?#")
@example("", ":@")
def test_an_escaped_password_shows_nowhere(before: str, after: str) -> None:
    password = f"{before}Zq7x{after}"
    escaped = quote(password, safe="")
    url = f"rtsp://admin:{escaped}@10.0.0.7:554/stream?channel=1"
    for text in (safe_url(url), hide(f"error: '{url}' said {password} and {escaped}", url)):
        assert "Zq7x" not in text
    assert safe_url(url) == "rtsp://admin:***@10.0.0.7:554/stream?channel=1"


@given(ODD, ODD)
@example("p@", "/ss?#")
@example("a/b", "?c#d")
def test_a_pasted_unescaped_password_shows_nowhere(before: str, after: str) -> None:
    password = f"{before}Zq7x{after}"
    url = f"rtsp://admin:{password}@cam.local/stream"
    assert "Zq7x" not in safe_url(url)
    assert "Zq7x" not in hide(f"[Errno 5] cannot open {url}; tried {password}", url)


NAMES = ["password", "token", "pwd", "api_key", "access_token", "sig", "PASSWORD", "loginpas", "psw", "X-Amz-Signature"]


@given(st.sampled_from(NAMES), st.booleans())
def test_query_secrets_are_hidden(name: str, first: bool) -> None:
    query = f"{name}=Zq7x&channel=2" if first else f"channel=2&{name}=Zq7x"
    shown = safe_url(f"http://cam/mjpeg?{query}")
    assert "Zq7x" not in shown
    assert "channel=2" in shown


@pytest.mark.parametrize("password", ["Zq7x", "Zq7x_a", "a/Zq7x", "a%26Zq7x", ""])
def test_a_password_in_the_path_shows_nowhere(password: str) -> None:
    """As XMEye and its many relabelled kin have it."""
    url = f"rtsp://10.0.0.7:554/user=admin_password={password}_channel=1_stream=0.sdp?real_stream"
    shown = "rtsp://10.0.0.7:554/user=admin_password=***_channel=1_stream=0.sdp?real_stream"
    assert safe_url(url) == shown
    assert hide(f"error: '{url}'", url) == f"error: '{shown}'"
    assert "Zq7x" not in hide(f"refused {unquote(password)}", url)


def test_plain_urls_and_paths_are_untouched() -> None:
    for url in (
        "rtsp://cam:8554/a/b?x=1",
        "http://cam/a@b",
        "/data/a:b@c.mp4",
        "/data/key=1/a_pass=2.mp4",
        "sim://street?seed=1",
        "0",
    ):
        assert safe_url(url) == url


def test_a_lone_user_name_may_be_a_token() -> None:
    assert safe_url("rtsp://Zq7x@relay/live") == "rtsp://***@relay/live"


def test_a_short_password_does_not_eat_ordinary_words() -> None:
    url = "rtsp://u:a@cam/s"
    assert hide("a camera at rtsp://u:a@cam/s said a", url) == "*** camera at rtsp://u:***@cam/s said ***"


def test_longest_secret_is_replaced_first() -> None:
    assert secrets_of("http://u:abc@h/?token=abcdef")[0] == "abcdef"
    assert "def" not in hide("leak abcdef", "http://u:abc@h/?token=abcdef")
