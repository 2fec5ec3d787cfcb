"""The RTSP server plays to FFmpeg's client over TCP, UDP and TLS, refuses what it must, and lets go of everything."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from ingest.sim.file_source import FileSource
from ingest.sim.h264 import AccessUnit, frame_index
from ingest.sim.rtsp_server import Credentials, RtspServer
from ingest.sim.scene import Street
from ingest.sim.scene_source import SceneSource
from ingest.sim.scene_url import SceneSpec
from ingest.sim.source import Demand

Watch = Callable[..., list[av.VideoFrame]]


def eventually(holds: Callable[[], object], within_s: float = 10.0) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, "not so in time"
        time.sleep(0.01)


class RawClient:
    """Sends requests as written and returns what comes back."""

    def __init__(self, server: RtspServer) -> None:
        self.url = server.url
        self.socket = socket.create_connection((server.host, server.port), timeout=10)
        self._file = self.socket.makefile("rb")
        self._cseq = 0

    def send(self, raw: bytes) -> tuple[int, dict[str, str]]:
        self.socket.sendall(raw)
        return self.answer()

    def answer(self) -> tuple[int, dict[str, str]]:
        status = int(self._file.readline().split()[1])
        headers = {}
        while line := self._file.readline().strip():
            name, _, value = line.decode().partition(": ")
            headers[name.lower()] = value
        headers["body"] = self._file.read(int(headers.get("content-length", 0))).decode()
        return status, headers

    def ask(self, method: str, path: str = "", **headers: str) -> tuple[int, dict[str, str]]:
        self._cseq += 1
        lines = [f"{method} {self.url}{path} RTSP/1.0", f"CSeq: {self._cseq}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return self.send("\r\n".join([*lines, "", ""]).encode())

    def play(self) -> None:
        _, headers = self.ask("SETUP", "/track1", Transport="RTP/AVP/TCP;unicast;interleaved=0-1")
        status, _ = self.ask("PLAY", Session=headers["session"].partition(";")[0])
        assert status == 200

    def ended(self) -> bool:
        try:
            return self._file.read(1) == b""
        except ConnectionResetError:
            return True

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()


@pytest.fixture
def raw() -> type[RawClient]:
    return RawClient


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_decoded_frames_are_the_rendered_ones(
    street_source: SceneSource, spec: SceneSpec, watch: Watch, transport: str
) -> None:
    street = Street(spec)
    with RtspServer(street_source) as server:
        frames = watch(server.url, 30, transport)
    indices = [frame_index(frame) for frame in frames]
    assert None not in indices and sorted(set(indices)) == indices, "each frame names its index, rising"
    for frame, index in list(zip(frames, indices, strict=True))[::10]:
        drawn, _ = street.render(int(index or 0))
        error = np.abs(drawn.astype(int) - frame.to_ndarray(format="bgr24")).mean()
        assert error < 6, f"frame {index} differs by {error:.1f} grey levels"
        other, _ = street.render(int(index or 0) + 40)
        assert np.abs(other.astype(int) - frame.to_ndarray(format="bgr24")).mean() > error


def test_times_of_the_stream_are_those_of_the_scene(street_source: SceneSource, watch: Watch) -> None:
    with RtspServer(street_source) as server:
        frames = watch(server.url, 12)[1:]  # FFmpeg gives the first picture of an RTSP stream no time
    base = frames[0]
    for frame in frames:
        assert frame.pts is not None and base.pts is not None
        assert frame.pts - base.pts == ((frame_index(frame) or 0) - (frame_index(base) or 0)) * 3600


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_a_file_plays_round_and_round_with_rising_times(file_source: FileSource, watch: Watch, transport: str) -> None:
    with RtspServer(file_source) as server:
        frames = watch(server.url, 45, transport)
    levels = [int(frame.to_ndarray(format="gray").mean()) for frame in frames]
    assert all(abs(levels[at] - levels[at + 20]) <= 2 for at in range(20)), "the second round is like the first"
    times = [frame.pts for frame in frames[1:]]
    assert all(b - a == 4500 for a, b in pairwise(times)), "90000 / 20 also across the seam"


def test_a_file_client_that_joins_late_starts_at_a_keyframe_at_once(file_source: FileSource, watch: Watch) -> None:
    with RtspServer(file_source) as server, ThreadPoolExecutor() as pool:
        early = pool.submit(watch, server.url, 30)
        eventually(lambda: server.stats.units > 4)
        frame = watch(server.url, 1)[0]
        assert frame.key_frame and not frame.is_corrupt
        early.result()


def test_eight_clients_watch_at_once(street_source: SceneSource, watch: Watch) -> None:
    with RtspServer(street_source) as server, ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(watch, server.url, 25, ("tcp", "udp")[number % 2]) for number in range(8)]
        assert [len(job.result()) for job in jobs] == [25] * 8
        assert server.stats.connections == 8 and server.stats.clients_cut == 0


@pytest.mark.parametrize("scheme", ["digest", "basic"])
def test_only_the_right_password_opens_the_stream(file_source: FileSource, watch: Watch, scheme: Any) -> None:
    with RtspServer(file_source, credentials=Credentials("ann", "s3cret", scheme)) as server:
        assert len(watch(server.url.replace("://", "://ann:s3cret@"), 2)) == 2
        for wrong in ("", "ann:other@", "bob:s3cret@"):
            with pytest.raises(av.error.HTTPUnauthorizedError):
                watch(server.url.replace("://", f"://{wrong}"), 1)
        assert "s3cret" not in repr(server.credentials)


def test_another_path_is_not_found(file_source: FileSource, watch: Watch) -> None:
    with RtspServer(file_source, path="/front") as server:
        assert server.url.endswith("/front") and len(watch(server.url, 1)) == 1
        with pytest.raises(av.error.HTTPNotFoundError):
            watch(server.url.replace("/front", "/back"), 1)


def test_rtsps_encrypts_and_keeps_media_off_udp(
    file_source: FileSource, watch: Watch, tls: ssl.SSLContext, raw: type[RawClient]
) -> None:
    with RtspServer(file_source, tls=tls) as server:
        assert server.url.startswith("rtsps://") and len(watch(server.url, 3)) == 3
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection((server.host, server.port)) as plain, trusting.wrap_socket(plain) as wrapped:
            offer = (
                f"SETUP {server.url} RTSP/1.0\r\nCSeq: 1\r\nTransport: RTP/AVP;unicast;client_port=5000-5001\r\n\r\n"
            )
            wrapped.sendall(offer.encode())
            assert b"RTSP/1.0 461" in wrapped.recv(4096)


def test_the_description_names_codec_rate_and_parameter_sets(file_source: FileSource, raw: type[RawClient]) -> None:
    with RtspServer(file_source) as server, raw(server) as client:
        status, headers = client.ask("DESCRIBE")
        assert status == 200 and headers["content-type"] == "application/sdp"
        assert "a=rtpmap:96 H264/90000" in headers["body"] and "a=framerate:20" in headers["body"]
        for nal in file_source.parameter_sets:
            assert base64.b64encode(nal).decode() in headers["body"]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\n\r\n", 400),
        (b"OPTIONS * RTSP/2.0\r\nCSeq: 1\r\n\r\n", 505),
        (b"OPTIONS * RTSP/1.0\r\n\r\n", 400),
        (b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\nno colon\r\n\r\n", 400),
        (b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\nX: " + b"a" * 20_000, 413),
        (b"\xff\xfe" * 10 + b"\r\n\r\n", 400),
    ],
)
def test_a_malformed_or_oversized_request_is_answered_and_cut(
    file_source: FileSource, raw: type[RawClient], request_bytes: bytes, status: int
) -> None:
    with RtspServer(file_source) as server, raw(server) as client:
        assert client.send(request_bytes)[0] == status
        assert client.ended()
        assert server.stats.requests_rejected == 1


def test_requests_out_of_order_are_refused_by_name(file_source: FileSource, raw: type[RawClient]) -> None:
    with RtspServer(file_source) as server, raw(server) as client:
        assert client.ask("RECORD")[0] == 501
        assert client.ask("PLAY")[0] == 455
        for offer in ("RTP/AVP;multicast", "RTP/AVP;unicast;client_port=70000-70001", "RAW/RAW/UDP", ""):
            assert client.ask("SETUP", "/track1", Transport=offer)[0] == 461
        status, headers = client.ask("SETUP", "/track1", Transport="RTP/AVP/TCP;unicast;interleaved=4-5")
        assert status == 200 and "interleaved=4-5" in headers["transport"]
        assert client.ask("PLAY", Session="another")[0] == 454
        client.socket.sendall(b"$\x05\x00\x04RTCP")  # a receiver report of the client: skipped
        assert client.ask("GET_PARAMETER")[0] == 200
        assert client.ask("OPTIONS")[1]["public"].startswith("OPTIONS, DESCRIBE")
        assert client.ask("TEARDOWN")[0] == 200
        assert client.ended()


def test_a_client_that_does_not_read_is_cut_and_counted(
    file_source: FileSource, raw: type[RawClient], watch: Watch
) -> None:
    class Heavy(FileSource):
        """The clip with 300 kB of filler data (NAL type 12) in each picture: the kernel's buffers fill in a second."""

        def units(self, demand: Demand) -> Iterator[AccessUnit]:
            for unit in super().units(demand):
                yield unit._replace(nals=(*unit.nals, b"\x0c" + b"\xff" * 300_000 + b"\x80"))

    with RtspServer(Heavy(file_source.path), client_buffer_bytes=4_000_000) as server, raw(server) as client:
        client.play()
        eventually(lambda: server.stats.clients_cut == 1)
        assert len(watch(server.url, 12)) == 12, "others go on"


def test_more_clients_than_allowed_are_refused_and_counted(file_source: FileSource, raw: type[RawClient]) -> None:
    with RtspServer(file_source, max_clients=1) as server, raw(server) as first:
        assert first.ask("OPTIONS")[0] == 200
        with raw(server) as second:
            assert second.answer()[0] == 503
            assert second.ended()
        assert server.stats.refused == 1


def test_stop_frees_port_and_threads_at_once_while_clients_watch(street_source: SceneSource, watch: Watch) -> None:
    before = set(threading.enumerate())
    server = RtspServer(street_source)
    server.start()
    with ThreadPoolExecutor() as pool:
        job = pool.submit(watch, server.url, 10_000)
        eventually(lambda: server.stats.units > 3)
        began = time.monotonic()
        server.stop()
        server.stop()
        assert time.monotonic() - began < 2
        assert len(job.result()) < 10_000
    assert set(threading.enumerate()) <= before
    with RtspServer(street_source, port=server.port) as again:
        assert again.port == server.port


def test_a_taken_port_is_named_in_the_error(file_source: FileSource) -> None:
    with RtspServer(file_source) as server, pytest.raises(OSError, match=f"port {server.port}"):
        RtspServer(file_source, port=server.port).start()


def test_the_source_rests_while_nobody_watches(street_source: SceneSource, watch: Watch) -> None:
    with RtspServer(street_source) as server:
        last = frame_index(watch(server.url, 5)[-1]) or 0
        eventually(lambda: server.clients == 0)
        time.sleep(0.5)  # time in which a source that did not rest would play a dozen frames
        assert (frame_index(watch(server.url, 1)[0]) or 0) < last + 8


@pytest.mark.parametrize("content", [b"", b"\x00" * 4096, b"not a video at all"])
def test_a_file_that_is_no_video_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.mp4"):
        FileSource(path)


def test_a_file_of_another_codec_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "old.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match=r"mpeg4.*libx264"):
        FileSource(path)


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """A server context with a fresh self-signed certificate for 127.0.0.1."""
    x509 = pytest.importorskip("cryptography.x509", reason="makes the test's certificate")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "sparsecam test")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context
