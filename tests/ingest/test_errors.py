"""What FFmpeg says of real servers' refusals, and what we make of it."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from ipaddress import IPv4Address
from pathlib import Path
from typing import get_args

import pytest

from ingest.errors import STUBBORN, ErrorKind, SourceError
from ingest.reader import open_reader
from ingest.settings import CameraSettings
from ingest.sim.rtsp_server import Credentials


def open_error(source: str, **settings: object) -> SourceError:
    camera = CameraSettings.model_validate({"source": source, "open_timeout_s": 1, "read_timeout_s": 1} | settings)
    begun_s = time.monotonic()
    with pytest.raises(SourceError) as caught:
        _, reader = open_reader(camera, 8192 * 8192)
        try:
            for _ in reader.deliveries():
                pass
        finally:
            reader.close()
    assert time.monotonic() - begun_s < 6
    return caught.value


def test_every_kind_says_how_to_mend_it() -> None:
    for kind in get_args(ErrorKind):
        assert len(SourceError(kind, "x").mend) > 5
    assert set(get_args(ErrorKind)) >= STUBBORN


@pytest.fixture
def clip(tmp_path: Path, write_clip: Callable[..., Path]) -> Path:
    return write_clip(tmp_path / "a.mp4", frames=50)


@pytest.mark.parametrize("scheme", ["basic", "digest"])
def test_wrong_credentials_are_auth_failed_and_right_ones_work(
    clip: Path, serve_rtsp: Callable[..., object], scheme: str
) -> None:
    server = serve_rtsp(clip, credentials=Credentials("admin", "p@ss:w/rd", scheme))
    host = server.url.removeprefix("rtsp://")
    for userinfo in ("", "admin:Zq7xwrong@", "root:p%40ss%3Aw%2Frd@"):
        error = open_error(f"rtsp://{userinfo}{host}")
        assert error.kind == "auth_failed" and error.stubborn
        assert "Zq7x" not in str(error) and "rd@" not in str(error)
    _, reader = open_reader(CameraSettings(source=f"rtsp://admin:p%40ss%3Aw%2Frd@{host}"), 8192 * 8192)
    assert next(iter(reader.deliveries()))
    reader.close()


@pytest.mark.parametrize(("status", "kind"), [(401, "auth_failed"), (404, "not_found"), (503, "server_error")])
def test_an_rtsp_servers_refusal_is_typed(
    clip: Path, serve_rtsp: Callable[..., object], status: int, kind: str
) -> None:
    server = serve_rtsp(clip)
    server.faults.answer(status)
    assert open_error(server.url).kind == kind


@pytest.mark.parametrize(
    ("status", "kind"), [(401, "auth_failed"), (403, "auth_failed"), (404, "not_found"), (500, "server_error")]
)
def test_an_http_servers_refusal_is_typed_and_hides_the_token(
    serve_http: Callable[..., str], status: int, kind: str
) -> None:
    address = serve_http(lambda request: request.send_error(status))
    error = open_error(f"{address.replace('//', '//user:Zq7x@')}/video?token=Zq7y")
    assert error.kind == kind
    assert "Zq7" not in str(error)


def test_a_web_page_is_no_stream(serve_http: Callable[..., str]) -> None:
    def page(request):  # type: ignore[no-untyped-def]
        request.send_response(200)
        request.end_headers()
        request.wfile.write(b"<html>hello</html>" * 100)

    assert open_error(serve_http(page) + "/index").kind == "bad_reply"


@pytest.fixture
def listener() -> Iterator[Callable[[bytes | None], int]]:
    """Listens; answers whatever comes with the given bytes, or (None) with silence."""
    opened: list[socket.socket] = []

    def listen(answer: bytes | None) -> int:
        server = socket.create_server(("127.0.0.1", 0))
        opened.append(server)

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                opened.append(connection)
                if answer is not None:
                    # A reader that has gone already wants no answer; or the test is over and its sockets are closed.
                    with contextlib.suppress(OSError):
                        connection.recv(4096)
                        connection.sendall(answer)
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        return int(server.getsockname()[1])

    yield listen
    for each in opened:
        each.close()


def test_nobody_listening_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, so that no other test gets it, and not listening
        port = taken.getsockname()[1]
        assert open_error(f"rtsp://127.0.0.1:{port}/x").kind == "refused"
        assert open_error(f"http://127.0.0.1:{port}/x").kind == "refused"


def test_silence_is_a_timeout(listener: Callable[[bytes | None], int]) -> None:
    port = listener(None)
    assert open_error(f"rtsp://127.0.0.1:{port}/x").kind == "timeout"
    assert open_error(f"http://127.0.0.1:{port}/x").kind == "timeout"


def test_a_strange_answer_is_a_bad_reply(listener: Callable[[bytes | None], int]) -> None:
    assert open_error(f"rtsp://127.0.0.1:{listener(b'SSH-2.0-OpenSSH_9.2' + bytes(2))}/x").kind == "bad_reply"


def test_a_name_that_does_not_resolve_is_unreachable() -> None:
    # `.invalid` is reserved for names that never resolve (RFC 2606).
    assert open_error("rtsp://camera.invalid/x").kind == "unreachable"


def test_plain_text_where_tls_belongs_is_tls_failed(listener: Callable[[bytes | None], int]) -> None:
    assert open_error(f"rtsps://127.0.0.1:{listener(b'RTSP/1.0 400 Bad Request')}/x").kind == "tls_failed"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A camera's self-signed certificate for 127.0.0.1, with its key."""
    x509 = pytest.importorskip("cryptography.x509", reason="cryptography makes the test's certificate")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "camera")])
    now = datetime.now(timezone.utc)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path_factory.mktemp("tls") / "camera.pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    return pem


@pytest.fixture
def self_signed(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_rtsps_is_read_and_a_self_signed_certificate_is_refused_on_request(
    clip: Path,
    serve_rtsp: Callable[..., object],
    self_signed: ssl.SSLContext,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = serve_rtsp(clip, tls=self_signed)
    assert server.url.startswith("rtsps://")
    _, reader = open_reader(CameraSettings(source=server.url), 8192 * 8192)
    assert next(iter(reader.deliveries()))
    reader.close()
    assert open_error(server.url, tls_verify=True).kind == "tls_failed"
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))  # the operator trusts it
    _, reader = open_reader(CameraSettings(source=server.url, tls_verify=True), 8192 * 8192)
    assert next(iter(reader.deliveries()))
    reader.close()


def test_a_stalled_camera_is_frozen_within_its_limit(clip: Path, serve_rtsp: Callable[..., object]) -> None:
    server = serve_rtsp(clip)
    _, reader = open_reader(CameraSettings(source=server.url, read_timeout_s=1), 8192 * 8192)
    deliveries = iter(reader.deliveries())
    next(deliveries)
    server.faults.stall()
    stalled_s = time.monotonic()
    with pytest.raises(SourceError) as caught:
        for _ in deliveries:
            pass
    reader.close()
    assert caught.value.kind == "frozen"
    assert 0.5 < time.monotonic() - stalled_s < 3


def test_a_reset_connection_is_no_end_of_file(clip: Path, serve_rtsp: Callable[..., object]) -> None:
    server = serve_rtsp(clip)
    _, reader = open_reader(CameraSettings(source=server.url), 8192 * 8192)
    deliveries = iter(reader.deliveries())
    next(deliveries)
    server.faults.reset()
    with pytest.raises(SourceError) as caught:
        for _ in deliveries:
            pass
    reader.close()
    assert caught.value.kind in {"reset", "ended"}
