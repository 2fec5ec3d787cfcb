"""Webhook: an HTTP POST of the alert's JSON, signed so that the receiver can tell it from anybody's.

Identification and signature are those of Standard Webhooks (standardwebhooks.com): the headers `webhook-id` (the same
for the same alert, to leave out repetitions), `webhook-timestamp` (seconds since the epoch, of this attempt) and
`webhook-signature` (`v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`). `Idempotency-Key` is the id again.
Any 2xx answer means taken.
"""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import unquote, unquote_plus, urljoin, urlsplit

from sink.outputs.address import PrivateAddress, connect_to
from sink.outputs.delivery import Failed, Output, Refused, Unreachable
from sink.outputs.settings import WebhookSettings
from sink.outputs.signature import signature, signing_key
from wire.alerts import Alert
from wire.logs import without
from wire.metrics import package_version

# Redirects followed: a receiver that moved has one, one behind a gateway two; more is a loop.
REDIRECTS_MOST = 3
# Of the body of a failure: enough for a reason. What a receiver sends beyond is never read.
ANSWER_BYTES = 500
# So long the reason is waited for. What it is the reason of is known by then, and is not to hang on it.
EXCERPT_S = 1.0
# A piece of a path from this length may be a key; shorter ones are words such as "services", of use in a reason.
KEY_LENGTH = 12

# About this alert: the same again would be refused again.
_NEVER = (400, 410, 413, 414, 415, 422, 431)
# About this alert too, but it may pass another time. All other failures are about the receiver: all alerts wait.
_NOT_THIS = (409, 500, 501)
# Redirects that keep the method; the others would make a GET of the POST.
_SAME_METHOD = (307, 308)


@dataclass(frozen=True)
class _Answer:
    status: int
    location: str
    retry_after: str
    excerpt: str  # the body's first bytes, where it is a failure and they came


class _FinalResponse(http.client.HTTPResponse):
    """Reads on past answers that only announce another one (102, 103; the library does so for 100 alone)."""

    def begin(self) -> None:
        super().begin()
        while 100 <= self.status < 200 and self.status != 101:  # 101 ends HTTP, and we never ask for it
            self.headers = self.msg = None  # type: ignore[assignment]  # as before `begin`, which does nothing otherwise
            super().begin()


class Webhook(Output):
    """Each attempt is a connection of its own. `name` is the output's in the config, for messages."""

    def __init__(self, settings: WebhookSettings, name: str = "NAME") -> None:
        self._settings = settings
        self._name = name
        self._url = settings.url.get_secret_value()
        self._key = signing_key(settings.secret.get_secret_value())
        self._own = {name: value.get_secret_value() for name, value in settings.headers.items()}
        parts = urlsplit(self._url)
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            self._own["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        self._tls = ssl.create_default_context()

    def deliver(self, alert: Alert, text: bytes) -> None:
        """POST it, redirects included within the time limit."""
        until_s = time.monotonic() + self._settings.timeout_s
        url, headers = self._url, self._headers(alert, text)
        for _ in range(REDIRECTS_MOST + 1):
            own = self._own if _origin(url) == _origin(self._url) else {}
            answer = self._post(url, {**own, **headers}, text, until_s)
            if answer.status not in _SAME_METHOD or not answer.location:
                _judge(answer)
                return
            url = _redirected(url, answer.location)
        raise Refused(f"more than {REDIRECTS_MOST} redirects")

    def close(self) -> None:
        """Nothing stays open."""

    def _headers(self, alert: Alert, text: bytes) -> dict[str, str]:
        now_s = int(time.time())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"sparsecam/{package_version()}",
            "Idempotency-Key": alert.id,
            "webhook-id": alert.id,
            "webhook-timestamp": str(now_s),
        }
        if self._key:
            headers["webhook-signature"] = signature(self._key, alert.id, now_s, text)
        return headers

    def _post(self, url: str, headers: dict[str, str], body: bytes, until_s: float) -> _Answer:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        host, port = parts.hostname or "", parts.port or (443 if secure else 80)
        secrets = self._secrets(url)
        try:
            link = connect_to(host, port, allow_private=self._settings.allow_private, until_s=until_s)
        except PrivateAddress as error:
            raise Refused(
                f"{error}: if alerts are meant to go there, set `outputs.{self._name}.allow_private: true`, start the "
                f"sink again, and send what was put aside with `sparsecam deadletters replay {self._name}`"
            ) from None
        if secure:
            link = self._tls.wrap_socket(link, server_hostname=host, do_handshake_on_connect=False)
        try:
            with link, _hung_up_at(until_s, link):
                if isinstance(link, ssl.SSLSocket):
                    link.do_handshake()
                return _exchange(link, url, headers, body, secrets=secrets, until_s=until_s)
        except ssl.SSLCertVerificationError as error:
            raise Unreachable(f"the certificate of {host} is not to be trusted: {error.verify_message}") from None
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() >= until_s:
                raise Unreachable(f"{host} did not answer in {self._settings.timeout_s:g} s") from None
            # An answer that is no HTTP is quoted in the error.
            what = without(f"{host}: {type(error).__name__}: {error}", secrets)[:ANSWER_BYTES]
            raise Unreachable(what) from None

    def _secrets(self, url: str) -> set[str]:
        """What a receiver at `url` was sent that nobody else is to know."""
        own = {piece for value in self._own.values() for piece in (value, value.rpartition(" ")[2])}  # "Bearer KEY"
        return {*_url_secrets(self._url), *_url_secrets(url), *own}


def _url_secrets(url: str) -> set[str]:
    """What of a URL may be its key: many receivers have it in the path, others in the query."""
    parts = urlsplit(url)
    found = {url, parts.path, f"{parts.path}?{parts.query}", parts.query, parts.password or ""}
    found |= {piece for piece in parts.path.split("/") if len(piece) >= KEY_LENGTH}
    found |= {piece.partition("=")[2] for piece in parts.query.split("&")}
    return {secret for one in found for secret in (one, unquote(one), unquote_plus(one))} - {"", "/", "?", "/?"}


def _exchange(
    link: socket.socket, url: str, headers: dict[str, str], body: bytes, *, secrets: set[str], until_s: float
) -> _Answer:
    """One request and its answer, without `secrets`, on an open connection."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port)
    connection.response_class = _FinalResponse
    connection.sock = link  # so that it makes none of its own, to an address that nobody checked
    try:
        path = parts.path or "/"
        connection.request("POST", f"{path}?{parts.query}" if parts.query else path, body, headers)
        with connection.getresponse() as answer:
            if time.monotonic() >= until_s:
                raise TimeoutError  # headers that we cut short look like ones that ended there
            excerpt = _read_excerpt(answer, link, secrets, until_s) if answer.status >= 400 else ""
            location, retry_after = (answer.headers[name] or "" for name in ("location", "retry-after"))
            return _Answer(answer.status, location, retry_after, excerpt)
    finally:
        connection.close()


def _read_excerpt(answer: http.client.HTTPResponse, link: socket.socket, secrets: set[str], until_s: float) -> str:
    """The reason for a failure, where it comes soon and whole: one that is cut may end within a secret."""
    until_s = min(until_s, time.monotonic() + EXCERPT_S)
    with suppress(OSError, http.client.HTTPException, ValueError), _hung_up_at(until_s, link):
        body = answer.read(ANSWER_BYTES)
        is_cut = time.monotonic() >= until_s or (answer.length and len(body) < ANSWER_BYTES)
        return "" if is_cut else _excerpt(body, secrets)
    return ""


def _judge(answer: _Answer) -> None:
    """Return if it is taken; what else the receiver says decides whether it is tried again."""
    if 200 <= answer.status < 300:
        return
    reason = f"HTTP {answer.status}" + (f": {answer.excerpt}" if answer.excerpt else "")
    if 300 <= answer.status < 400:
        raise Refused(f"HTTP {answer.status} would make a GET of the POST: set the output's url to where it points")
    if answer.status in _NEVER:
        raise Refused(reason)
    if answer.status in _NOT_THIS:
        raise Failed(reason)
    raise Unreachable(reason, _wait_s(answer.retry_after))


def _redirected(url: str, location: str) -> str:
    """Where a redirect leads; raises Refused for what is no web address, or no longer encrypted."""
    try:
        target = urljoin(url, location)
        parts = urlsplit(target)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or any(ord(character) <= 32 or ord(character) > 126 for character in target):
        raise Refused("the redirect leads to no http:// or https:// URL")
    if urlsplit(url).scheme == "https" and parts.scheme == "http":
        raise Refused(f"the redirect to {parts.hostname} leads from https to http")
    return target


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _wait_s(retry_after: str) -> float:
    """Seconds of a Retry-After header, a number or a date; 0 where it says nothing."""
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after[:9])
    with suppress(ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    return 0.0


def _excerpt(body: bytes, secrets: set[str]) -> str:
    """The first bytes of a body as text, without the secrets that receivers like to repeat."""
    text = "".join(character for character in body.decode(errors="replace") if character.isprintable()).strip()
    if len(body) == ANSWER_BYTES:
        # A secret that was cut off there is not found whole.
        begun = (length for secret in secrets for length in range(1, len(secret)) if text.endswith(secret[:length]))
        text = text[: len(text) - max(begun, default=0)]
    return without(text, secrets)


@contextmanager
def _hung_up_at(until_s: float, link: socket.socket) -> Iterator[None]:
    """End what is read of the connection then (monotonic).

    A receiver that sends a byte now and then keeps a socket's own time limit from ever being reached.
    """
    limit = threading.Timer(max(0.0, until_s - time.monotonic()), _hang_up, [link])
    limit.daemon = True
    limit.start()
    try:
        yield
    finally:
        limit.cancel()


def _hang_up(link: socket.socket) -> None:
    # Of the socket itself, not of the TLS around it: another thread is inside that.
    with suppress(OSError):
        socket.socket.shutdown(link, socket.SHUT_RDWR)
