"""Alerts, a real HTTP receiver with every bad habit, a real MQTT broker, and outputs running on threads."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from amqtt.broker import Broker
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from sink.outputs.delivery import Output
from sink.outputs.runner import OutputRunner
from sink.outputs.settings import CommonSettings, MqttSettings
from sink.watchers import WATCHED, Watcher, write_watchers
from wire.alerts import Alert, Box, alert_id, alert_once, rfc3339
from wire.redis_link import Link, connect
from wire.settings import RedisSettings

AUTH = "amqtt.plugins.authentication"
DAY_US = 1_700_000_000_000_000


@pytest.fixture(scope="session")
def make_alert() -> Callable[..., Alert]:
    """`make_alert(seq, event="opened", incident="i0", camera="door", ...)`."""

    def make(seq: int, event: str = "opened", **changes: object) -> Alert:
        facts: dict[str, object] = {
            "id": alert_id("door", "armed", event, "s1", seq),
            "incident": f"incident-{seq}",
            "camera": "door",
            "rule": "armed",
            "text": "pistol at door",
            "event_time": rfc3339(DAY_US + seq),
            "opened_time": rfc3339(DAY_US),
            "label": "pistol",
            "score": 0.93,
            "box": Box(1.0, 2.0, 30.5, 40.0),
            "seq": seq,
        }
        return Alert(version=1, event=event, **{**facts, **changes})

    return make


@pytest.fixture(scope="session")
def publish() -> Callable[..., None]:
    """`publish(url, *alerts)`: as the sink does."""

    def send(url: str, *alerts: Alert) -> None:
        link = Link(connect(RedisSettings(url=url)))
        replies = link.send(*(alert_once(alert, 100_000) for alert in alerts))
        link.close()
        assert not any(isinstance(reply, Exception) for reply in replies)

    return send


@dataclass
class Request:
    """What the receiver was sent."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """A real HTTP server. `habit(handler)` answers; by default 204."""

    requests: list[Request] = field(default_factory=list)
    habit: Callable[[BaseHTTPRequestHandler], None] | None = None
    port: int = 0
    _server: ThreadingHTTPServer | None = None
    _thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?key=1"

    @property
    def ids(self) -> list[str]:
        return [one.headers["idempotency-key"] for one in list(self.requests)]

    def start(self) -> None:
        """Listen; on the same port as before."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.requests.append(Request(self.path, headers, body))
                if receiver.habit is not None:
                    receiver.habit(self)
                    return
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        class Server(ThreadingHTTPServer):
            allow_reuse_address = True
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_: object) -> None: ...  # clients that hang up are what is tested

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def stop(self) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = None


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    server.start()
    yield server
    server.stop()


def answer(status: int, body: bytes = b"", **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    """A habit: always this."""

    def habit(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return habit


@pytest.fixture(scope="session")
def answers() -> Callable[..., Callable[[BaseHTTPRequestHandler], None]]:
    return answer


class Running:
    """An output at work."""

    def __init__(self, name: str, settings: CommonSettings, output: Output, url: str) -> None:
        redis_settings = RedisSettings(url=url, timeout_s=0.5)
        self.runner = OutputRunner(name, settings, output, lambda: connect(redis_settings))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.runner.run, args=(self._stop,))
        self._thread.start()
        # A new output hears of what comes after it: wait until its group is there.
        until_s = time.monotonic() + 10
        while self.runner._link is None and time.monotonic() < until_s:
            time.sleep(0.002)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(15)
        assert not self._thread.is_alive()


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    """`start(name, settings, output, url)`: runs until the test ends, or `.stop()`."""
    running: list[Running] = []

    def begin(name: str, settings: CommonSettings, output: Output, url: str) -> Running:
        running.append(Running(name, settings, output, url))
        return running[-1]

    yield begin
    for one in running:
        one.stop()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost that nobody signed but itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return folder / "cert.pem", folder / "key.pem"


class RunningBroker:
    """amqtt on a thread of its own; `stop` and `start` on the same port."""

    def __init__(self, password_file: Path | None = None, certificate: tuple[Path, Path] | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._auth: dict[str, dict[str, object]] = {f"{AUTH}.AnonymousAuthPlugin": {"allow_anonymous": True}}
        self._certificate = certificate
        if password_file is not None:
            self._auth = {f"{AUTH}.FileAuthPlugin": {"password_file": str(password_file)}}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._broker: Broker | None = None
        self.start()

    def start(self) -> None:
        self._do(self._start())

    def stop(self) -> None:
        if self._broker is not None:
            self._do(self._broker.shutdown())
            self._broker = None

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _start(self) -> None:
        listener: dict[str, object] = {"type": "tcp", "bind": f"127.0.0.1:{self.port}"}
        if self._certificate is not None:
            certfile, keyfile = map(str, self._certificate)
            listener |= {"ssl": True, "certfile": certfile, "keyfile": keyfile}
        self._broker = Broker({"listeners": {"default": listener}, "plugins": self._auth})
        await self._broker.start()

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)


@pytest.fixture
def start_broker() -> Iterator[Callable[..., RunningBroker]]:
    """`start_broker(password_file=None, certificate=None)`."""
    running: list[RunningBroker] = []

    def begin(*settings: Any, **more: Any) -> RunningBroker:
        running.append(RunningBroker(*settings, **more))
        return running[-1]

    yield begin
    for one in running:
        one.close()


@pytest.fixture
def broker(start_broker: Callable[..., RunningBroker]) -> RunningBroker:
    """One without passwords and certificates."""
    return start_broker()


class Listener:
    """A subscriber to everything."""

    def __init__(self, port: int) -> None:
        self.messages: list[tuple[str, bytes]] = []
        ready = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.on_message = self._take
        self._client.on_connect = lambda client, *_: client.subscribe("#", 1)
        self._client.on_subscribe = lambda *_: ready.set()
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert ready.wait(5)

    def _take(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        self.messages.append((message.topic, message.payload))

    def say(self, topic: str, payload: bytes) -> None:
        self._client.publish(topic, payload, 1, retain=True)

    def of(self, topic: str) -> list[bytes]:
        return [payload for name, payload in list(self.messages) if name == topic]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def listen() -> Iterator[Callable[[int], Listener]]:
    listeners: list[Listener] = []

    def begin(port: int) -> Listener:
        listeners.append(Listener(port))
        return listeners[-1]

    yield begin
    for one in listeners:
        one.close()


@pytest.fixture(scope="session")
def mqtt_settings() -> Callable[..., MqttSettings]:
    """`mqtt_settings(port, field=value...)`: of an output that tries again soon."""

    def make(port: int, **changes: Any) -> MqttSettings:
        quick = {"retry_first_s": 0.05, "retry_most_s": 0.2, "timeout_s": 3}
        return MqttSettings(**{"kind": "mqtt", "host": "127.0.0.1", "port": port, **quick, **changes})

    return make


@pytest.fixture(scope="session")
def watch() -> Callable[..., None]:
    """`watch(url, camera=[rule, ...], ...)`: as the sinks say what they watch; all others are forgotten."""

    def say(url: str, **rules: list[str]) -> None:
        link = Link(connect(RedisSettings(url=url)))
        link.send(("DEL", WATCHED))
        if rules:
            link.send(write_watchers((camera, Watcher("one", 1, tuple(those))) for camera, those in rules.items()))
        link.close()

    return say
