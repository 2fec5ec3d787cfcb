"""Apprise: words for people, sent by the real library to a real receiver."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from sink.outputs.apprise import Apprise, body, title
from sink.outputs.delivery import Failed, Refused
from sink.outputs.settings import AppriseSettings
from wire.alerts import Alert

Make = Callable[..., Alert]


def apprise(url: str) -> Apprise:
    return Apprise(AppriseSettings(kind="apprise", url=url, timeout_s=2))


def test_a_message_says_what_where_and_when(receiver: Any, make_alert: Make) -> None:
    alert = make_alert(1, snapshot="https://cam.example/a.jpg")
    apprise(f"json://127.0.0.1:{receiver.port}/").deliver(alert, b"")  # Apprise's plainest service: JSON by POST
    sent = json.loads(receiver_body(receiver))
    assert sent["title"] == "pistol at door"
    assert sent["type"] == "warning"
    for part in ("door", "armed", "93% sure", alert.event_time, "https://cam.example/a.jpg", alert.incident):
        assert part in sent["message"]


def receiver_body(receiver: Any) -> bytes:
    (request,) = receiver.requests
    body_: bytes = request.body
    return body_


def test_what_the_service_does_not_take_is_tried_again(receiver: Any, answers: Any, make_alert: Make) -> None:
    receiver.habit = answers(500)
    with pytest.raises(Failed, match="could not send"):
        apprise(f"json://127.0.0.1:{receiver.port}/").deliver(make_alert(1), b"")
    receiver.stop()
    with pytest.raises(Failed):
        apprise(f"json://127.0.0.1:{receiver.port}/").deliver(make_alert(1), b"")


def test_a_url_that_apprise_does_not_know_is_refused_without_showing_it(make_alert: Make) -> None:
    with pytest.raises(Refused, match="none that Apprise knows") as caught:
        apprise("nosuch://hunter22@h").deliver(make_alert(1), b"")
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["tgram://hunter22/555", "ifttt://hunter22", "discord://hunter22", "nosuch://hunter22@h"]
)
def test_no_key_of_a_url_that_cannot_be_read_comes_into_a_log(url: str, caplog: pytest.LogCaptureFixture) -> None:
    apprise(url)
    assert "hunter22" not in caplog.text


def test_the_end_of_an_incident_sounds_like_one(make_alert: Make) -> None:
    assert title(make_alert(1, "closed")) == "Over: pistol at door"
    assert "3 more incidents" in body(make_alert(1, rule="system.suppressed", suppressed=3, label=None, score=None))


def test_no_key_comes_into_a_log(receiver: Any, make_alert: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        apprise(f"json://me:hunter22@127.0.0.1:{receiver.port}/hunter22").deliver(make_alert(1), b"")
    assert receiver.requests
    assert "hunter22" not in caplog.text
