"""A webhook gets signed alerts; what it answers costs no more than its own time, and reaches nobody behind our door."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sink.outputs.address import connect_to, is_public
from sink.outputs.delivery import DeliveryError, Failed, Refused, Unreachable
from sink.outputs.settings import WebhookSettings
from sink.outputs.signature import signature, signing_key
from sink.outputs.webhook import ANSWER_BYTES, Webhook
from wire.alerts import Alert, to_json

PRIVATE = [
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "255.255.255.255",
    "224.0.0.1",
    "240.0.0.1",
    "192.0.2.1",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "ff02::1",
    "::",
    "::1",
    "64:ff9b::a00:1",
    "2002:a00:1::",
    "2001:db8::1",
]
Make = Callable[..., Alert]


def settings(url: str, **changes: Any) -> WebhookSettings:
    return WebhookSettings(**{"kind": "webhook", "url": url, "allow_private": True, "timeout_s": 5, **changes})


def send(alert: Alert, url: str, **changes: Any) -> None:
    Webhook(settings(url, **changes)).deliver(alert, to_json(alert))


def test_it_signs_as_the_published_example_does() -> None:
    # The example of Standard Webhooks' own libraries.
    key = signing_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    made = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_receiver_gets_the_alert_with_a_signature_it_can_check(receiver: Any, make_alert: Make) -> None:
    alert = make_alert(1)
    send(alert, receiver.url, secret="a key", headers={"Authorization": "Bearer 77"})
    (got,) = receiver.requests
    assert got.path == "/hook?key=1"
    assert got.body == to_json(alert)
    assert got.headers["content-type"] == "application/json"
    assert got.headers["authorization"] == "Bearer 77"
    assert got.headers["idempotency-key"] == got.headers["webhook-id"] == alert.id
    when = int(got.headers["webhook-timestamp"])
    assert abs(when - time.time()) < 10
    assert got.headers["webhook-signature"] == signature(b"a key", alert.id, when, got.body)


def test_user_and_password_of_the_url_are_sent_as_basic_authorization(receiver: Any, make_alert: Make) -> None:
    send(make_alert(1), f"http://me:p%40ss@127.0.0.1:{receiver.port}/")
    assert receiver.requests[0].headers["authorization"] == "Basic bWU6cEBzcw=="


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Refused),
        (422, Refused),
        (302, Refused),
        (500, Failed),
        (401, Unreachable),
        (404, Unreachable),
        (429, Unreachable),
        (503, Unreachable),
    ],
)
def test_the_answer_decides_what_happens_next(
    receiver: Any, answers: Any, make_alert: Make, status: int, kind: type[DeliveryError]
) -> None:
    receiver.habit = answers(status, b"because\r\n\x00of this", Location="http://127.0.0.1/")
    with pytest.raises(kind, match=f"HTTP {status}") as caught:
        send(make_alert(1), receiver.url)
    assert type(caught.value) is kind
    assert status == 302 or "becauseof this" in str(caught.value)


def test_a_receiver_says_how_long_it_wants_to_be_left_alone(receiver: Any, answers: Any, make_alert: Make) -> None:
    receiver.habit = answers(503, Retry_After="7")
    with pytest.raises(Unreachable) as caught:
        send(make_alert(1), receiver.url)
    assert caught.value.wait_s == 7
    when = datetime.now(timezone.utc) + timedelta(seconds=100)
    receiver.habit = answers(429, Retry_After=f"{when:%a, %d %b %Y %H:%M:%S} GMT")
    with pytest.raises(Unreachable) as caught:
        send(make_alert(1), receiver.url)
    assert 95 < caught.value.wait_s <= 100


@pytest.mark.parametrize("status", [200, 500])
def test_a_huge_answer_is_not_read(receiver: Any, make_alert: Make, status: int) -> None:
    written = []

    def huge(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.end_headers()
        try:
            for _ in range(2000):
                handler.wfile.write(b"x" * 1_000_000)
                written.append(1)
        except OSError:
            written.append(0)

    receiver.habit = huge
    begun = time.monotonic()
    if status == 200:
        send(make_alert(1), receiver.url)
    else:
        with pytest.raises(Failed, match=r"x{400}") as caught:
            send(make_alert(1), receiver.url)
        assert len(str(caught.value)) < 600
    assert time.monotonic() - begun < 2
    assert len(written) < 50


@pytest.mark.parametrize("slow_in", ["nothing", "headers", "body"])
def test_a_slow_receiver_costs_the_time_limit_and_no_more(receiver: Any, make_alert: Make, slow_in: str) -> None:
    gone = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        if slow_in == "body":
            handler.send_response(500)
            handler.end_headers()
        elif slow_in == "headers":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        try:
            while not gone.wait(0.05):  # each byte well within a socket's own time limit
                if slow_in != "nothing":
                    handler.wfile.write(b"x")
        except OSError:
            pass

    receiver.habit = drip
    begun = time.monotonic()
    with pytest.raises((Unreachable, Failed)):
        send(make_alert(1), receiver.url, timeout_s=0.5)
    took_s = time.monotonic() - begun
    gone.set()
    assert 0.4 < took_s < 1.5


@pytest.mark.parametrize(
    ("answer", "kept_open", "kind", "text"),
    [
        (b"400 X\r\nTransfer-Encoding: chunked\r\n\r\n100\r\nno /services/Xk9h", False, Refused, "HTTP 400"),
        (b"400 X\r\nContent-Length: 900\r\n\r\nno /services/Xk9h", False, Refused, "HTTP 400"),
        (b"422 X\r\nContent-Length: 900\r\n\r\nno /services/Xk9h", True, Refused, "HTTP 422"),
        (b"400 X\r\n\r\nno /services/Xk9h", True, Refused, "HTTP 400"),
        (b"500 X\r\nTransfer-Encoding: chunked\r\n\r\nrubbish\r\n", False, Failed, "HTTP 500"),
        (b"503 X\r\nRetry-After: 7\r\n\r\n", True, Unreachable, "HTTP 503"),
        (b"422 X\r\n\r\nwhole", False, Refused, "HTTP 422: whole"),
    ],
)
def test_an_answer_counts_though_its_body_is_cut_or_does_not_end(
    receiver: Any, make_alert: Make, answer: bytes, kept_open: bool, kind: type[DeliveryError], text: str
) -> None:
    """The reason is left out then; so is a part of a key that it may end with."""
    gone = threading.Event()

    def habit(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 " + answer)
        if kept_open:
            gone.wait(30)

    receiver.habit = habit
    begun = time.monotonic()
    try:
        with pytest.raises(kind) as caught:
            send(make_alert(1), f"http://127.0.0.1:{receiver.port}/services/Xk9hunter22xx", timeout_s=20)
    finally:
        gone.set()
    assert (type(caught.value), str(caught.value)) == (kind, text)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("first", [b"100 Continue", b"102 Processing", b"103 Early Hints\r\nLink: </a>"])
def test_an_answer_that_announces_another_is_none(receiver: Any, make_alert: Make, first: bytes) -> None:
    final = [b"204 X", b"422 X\r\nContent-Length: 3\r\n\r\nwhy"]
    receiver.habit = lambda handler: handler.wfile.write(
        b"HTTP/1.1 " + first + b"\r\n\r\nHTTP/1.1 103 X\r\n\r\nHTTP/1.1 " + final.pop(0) + b"\r\n\r\n"
    )
    send(make_alert(1), receiver.url)
    with pytest.raises(Refused, match="HTTP 422: why"):
        send(make_alert(2), receiver.url)


def test_headers_without_end_are_not_read_for_ever(receiver: Any, make_alert: Make) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        try:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
            for number in range(100_000):
                handler.wfile.write(b"X-%d: y\r\n" % number)
        except OSError:
            pass

    receiver.habit = endless
    with pytest.raises(Unreachable, match="headers"):
        send(make_alert(1), receiver.url)


def test_nobody_there_is_unreachable(receiver: Any, make_alert: Make) -> None:
    receiver.stop()
    with pytest.raises(Unreachable, match="refused"):
        send(make_alert(1), receiver.url)


class TestPrivateAddresses:
    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "127.1"])
    def test_are_refused_unless_allowed(self, receiver: Any, make_alert: Make, host: str) -> None:
        with pytest.raises(Refused, match="private address"):
            send(make_alert(1), f"http://{host}:{receiver.port}/", allow_private=False)
        assert receiver.requests == []

    def test_are_refused_for_a_name_that_leads_to_one_meanwhile(
        self, receiver: Any, make_alert: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What counts is the address that is connected to: the name is looked up once."""
        looked_up = []

        def rebinding(*_: object, **__: object) -> list[Any]:
            looked_up.append(1)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", receiver.port))]

        monkeypatch.setattr(socket, "getaddrinfo", rebinding)
        with pytest.raises(Refused, match=r"10\.0\.0\.1"):
            send(make_alert(1), "http://hook.example/", allow_private=False)
        assert len(looked_up) == 1

    def test_are_refused_when_a_redirect_leads_there(
        self, receiver: Any, answers: Any, make_alert: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first receiver counts as public here, the second does not; both really listen."""
        inner = type(receiver)()
        inner.start()
        try:
            receiver.habit = answers(307, Location=f"http://127.0.0.2:{inner.port}/latest/meta-data")
            monkeypatch.setattr("sink.outputs.address.is_public", lambda address: address == "127.0.0.1")
            with pytest.raises(Refused, match=r"127\.0\.0\.2.*private"):
                send(make_alert(1), receiver.url, allow_private=False)
            assert len(receiver.requests) == 1
            assert inner.requests == []
        finally:
            inner.stop()

    @pytest.mark.parametrize(
        "address",
        ["8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808"],
    )
    def test_public_ones_are_not(self, address: str) -> None:
        assert is_public(address)

    @pytest.mark.parametrize(
        "address",
        PRIVATE,
    )
    def test_all_kinds_are_known(self, address: str) -> None:
        assert not is_public(address)

    @given(st.ip_addresses(v=4))
    def test_hiding_an_address_in_ipv6_makes_it_no_more_public(self, address: IPv4Address) -> None:
        for prefix in (0xFFFF << 32, 0x64_FF9B << 96):
            assert is_public(str(IPv6Address(prefix | int(address)))) <= is_public(str(address))
        if ip_address(str(address)).is_private:
            assert not is_public(str(address))

    def test_of_several_addresses_only_the_public_ones_are_tried(
        self, receiver: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, receiver.port)) for host in ("127.0.0.2", "127.0.0.1")
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        monkeypatch.setattr("sink.outputs.address.is_public", lambda address: address == "127.0.0.1")
        with connect_to("h", 1, allow_private=False, until_s=time.monotonic() + 2) as link:
            assert link.getpeername()[0] == "127.0.0.1"


class TestRedirects:
    def test_that_keep_the_method_are_followed_without_our_own_headers(
        self, receiver: Any, answers: Any, make_alert: Make
    ) -> None:
        other = type(receiver)()
        other.start()
        try:
            receiver.habit = answers(308, Location=f"http://127.0.0.1:{other.port}/new")
            send(make_alert(1), receiver.url, headers={"X-Key": "k"})
            (got,) = other.requests
            assert got.path == "/new"
            assert got.body == to_json(make_alert(1))
            assert "x-key" not in got.headers
            assert receiver.requests[0].headers["x-key"] == "k"
        finally:
            other.stop()

    def test_are_followed_without_waiting_for_their_body(self, receiver: Any, make_alert: Make) -> None:
        gone = threading.Event()

        def habit(handler: BaseHTTPRequestHandler) -> None:
            if handler.path == "/new":
                handler.wfile.write(b"HTTP/1.1 204 X\r\n\r\n")
                return
            handler.wfile.write(b"HTTP/1.1 307 X\r\nLocation: /new\r\n\r\n")
            gone.wait(30)

        receiver.habit = habit
        begun = time.monotonic()
        try:
            send(make_alert(1), receiver.url, timeout_s=20)
        finally:
            gone.set()
        assert [one.path for one in receiver.requests] == ["/hook?key=1", "/new"]
        assert time.monotonic() - begun < 10

    def test_in_a_circle_end(self, receiver: Any, answers: Any, make_alert: Make) -> None:
        receiver.habit = answers(307, Location="/hook")
        with pytest.raises(Refused, match="more than 3 redirects"):
            send(make_alert(1), receiver.url)
        assert len(receiver.requests) == 4

    @pytest.mark.parametrize("where", ["file:///etc/passwd", "ftp://h/", "http://h:99999/", "http://[::/"])
    def test_to_anything_else_are_refused(self, receiver: Any, answers: Any, make_alert: Make, where: str) -> None:
        receiver.habit = answers(307, Location=where)
        with pytest.raises(Refused, match="no http"):
            send(make_alert(1), receiver.url)


def test_secrets_appear_in_no_message(receiver: Any, answers: Any, make_alert: Make) -> None:
    one = settings(receiver.url + "&x=hunter22", secret="hunter22", headers={"X-Key": "hunter22"})
    assert "hunter22" not in repr(one) + str(one.model_dump(mode="json"))
    receiver.habit = answers(500, b"you sent hunter22")
    with pytest.raises(Failed, match=r"you sent \*\*\*"):
        Webhook(one).deliver(make_alert(1), b"{}")
    for wrong in ({"url": "hunter22"}, {"secret": "whsec_hunter22!"}, {"headers": {"X-Key": "hunter22\n"}}):
        with pytest.raises(ValidationError) as caught:
            settings(**{"url": receiver.url, **wrong})
        assert "hunter22" not in str([error["msg"] for error in caught.value.errors()])


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/services/T024/Xk9hunter22xx", "<pre>Cannot POST /services/T024/Xk9hunter22xx</pre>"),
        ("/gate/T024/Xk9hunter22xx", "behind the gate: no /T024/Xk9hunter22xx"),
        ("/hook?key=Xk9hunter22&x=1", "Cannot POST /hook?key=Xk9hunter22&amp;x=1"),
        ("/hook?key=Xk9%20hunter22", "no key 'Xk9 hunter22', no Xk9%20hunter22"),
        # Cut off within the key.
        ("/services/T024/Xk9hunter22xx", f"{'-' * (ANSWER_BYTES - 25)}/services/T024/Xk9hunter22xx"),
    ],
)
@pytest.mark.parametrize("redirected", [False, True])
def test_what_a_receiver_repeats_of_the_url_shows_no_key(
    receiver: Any, answers: Any, make_alert: Make, path: str, answer: str, redirected: bool
) -> None:
    def echo(handler: BaseHTTPRequestHandler) -> None:
        moved = handler.path == "/moved"
        (answers(307, Location=path) if moved else answers(404, answer.encode()))(handler)

    receiver.habit = echo
    with pytest.raises(Unreachable, match="HTTP 404: ") as caught:
        send(make_alert(1), f"http://127.0.0.1:{receiver.port}{'/moved' if redirected else path}")
    assert "Xk9" not in str(caught.value)
    assert "hunter" not in str(caught.value)


def test_an_answer_that_is_no_http_shows_no_key(receiver: Any, make_alert: Make) -> None:
    receiver.habit = lambda handler: handler.wfile.write(f"what is {handler.path}?\r\n".encode())
    with pytest.raises(Unreachable, match=r"what is \*\*\*") as caught:
        send(make_alert(1), f"http://127.0.0.1:{receiver.port}/services/Xk9hunter22xx")
    assert "hunter" not in str(caught.value)


def test_https_works_and_checks_the_certificate(
    certificate: tuple[Path, Path], make_alert: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    class Server(HTTPServer):
        def handle_error(self, *_: object) -> None: ...

    server = Server(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        url = f"https://localhost:{server.server_port}/"
        with pytest.raises(Unreachable, match="not to be trusted"):
            send(make_alert(1), url)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        send(make_alert(2), url)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert taken == [to_json(make_alert(2))]
