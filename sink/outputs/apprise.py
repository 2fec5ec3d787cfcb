"""Apprise: mail, chat and push services, each a URL of the Apprise library (see its documentation).

A message is one title and a few lines of text. Apprise has time limits of its own (the URL's `cto` and `rto`).
"""

from __future__ import annotations

import logging

import apprise

from sink.outputs.delivery import Failed, Output, Refused
from sink.outputs.settings import AppriseSettings
from wire.alerts import Alert

_TITLES = {"opened": "", "updated": "Still: ", "closed": "Over: "}


class Apprise(Output):
    """Sends by the service that the URL names."""

    def __init__(self, settings: AppriseSettings) -> None:
        # When told to log everything these print URLs, with the keys in them; one that it cannot read even as an error.
        logging.getLogger("urllib3").setLevel(logging.WARNING)
        logging.getLogger("apprise").setLevel(logging.CRITICAL)
        self._service = apprise.Apprise()
        self._known = self._service.add(_with_limits(settings))
        logging.getLogger("apprise").setLevel(logging.WARNING)

    def deliver(self, alert: Alert, text: bytes) -> None:  # noqa: ARG002  # people get words, not JSON
        """Send it; what exactly went wrong is in Apprise's own log lines."""
        if not self._known:
            raise Refused(
                "the url is none that Apprise knows: see its list of services, or install what this one needs"
            )
        kind = apprise.NotifyType.INFO if alert.event == "closed" else apprise.NotifyType.WARNING
        if not self._service.notify(title=title(alert), body=body(alert), notify_type=kind):
            raise Failed("Apprise could not send it (its own log lines have the reason)")

    def close(self) -> None:
        """Nothing stays open."""


def title(alert: Alert) -> str:
    """The subject of a mail, the headline of a push message."""
    return f"{_TITLES[alert.event]}{alert.text}"


def body(alert: Alert) -> str:
    """A few lines."""
    lines = [alert.text, f"Camera {alert.camera}, rule {alert.rule}, {alert.event} at {alert.event_time}"]
    if alert.label is not None and alert.score is not None:
        lines.append(f"{alert.label}, {alert.score:.0%} sure")
    if alert.suppressed:
        lines.append(f"{alert.suppressed} more incidents were kept back")
    lines += [link for link in (alert.snapshot, alert.clip) if link]
    lines.append(f"Incident {alert.incident}")
    return "\n".join(lines)


def _with_limits(settings: AppriseSettings) -> str:
    """The URL with half of timeout_s for connecting and half for the answer, unless it says so itself."""
    url = settings.url.get_secret_value()
    half = max(0.5, settings.timeout_s / 2)
    for name in ("cto", "rto"):
        if f"{name}=" not in url:
            url += f"{'&' if '?' in url else '?'}{name}={half:g}"
    return url
