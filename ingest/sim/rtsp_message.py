"""RTSP 1.0 messages (RFC 2326): requests read within bounds, responses, SDP (RFC 4566), authentication (RFC 7616)."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass, field
from typing import Literal

from ingest.sim.h264 import ParameterSets
from ingest.sim.rtp import PAYLOAD_TYPE

MAX_HEAD_BYTES = 8192  # real requests have 100-600; the usual limit of web servers
MAX_BODY_BYTES = 4096  # GET_PARAMETER bodies are a few lines; nothing here uses them
REALM = "sparsecam-sim"
REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    413: "Request Entity Too Large",
    454: "Session Not Found",
    455: "Method Not Valid in This State",
    461: "Unsupported Transport",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    505: "RTSP Version Not Supported",
}


class BadRequest(Exception):
    """A request that cannot be understood or is too large; `status` is what to answer before closing."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True)
class Request:
    """One request; header names are lower case."""

    method: str
    uri: str
    headers: dict[str, str]

    @property
    def path(self) -> str:
        """Path of the URI without query and trailing slash; `*` stays as it is."""
        match = re.match(r"rtsps?://[^/]*(/[^?]*)?", self.uri, re.IGNORECASE)
        return (match.group(1) or "/").rstrip("/") if match else self.uri


@dataclass(frozen=True)
class Credentials:
    """Who may watch, and how they must prove it."""

    user: str
    password: str = field(repr=False)
    scheme: Literal["basic", "digest"] = "digest"


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """The next request, skipping interleaved frames from the client; None at the end of the stream.

    Raises BadRequest when it is malformed or over the bounds above.
    """
    while True:
        first = await reader.read(1)
        if not first:
            return None
        if first == b"$":  # interleaved RTCP from the client: channel, 16-bit length, data
            header = await reader.readexactly(3)
            await reader.readexactly(int.from_bytes(header[1:], "big"))
        elif first not in b"\r\n":
            break
    try:
        head = first + await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as error:
        raise BadRequest(413, f"request head is over {MAX_HEAD_BYTES} bytes") from error
    request = _parse(head)
    length = request.headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit():
        raise BadRequest(400, "Content-Length is not a number")
    if len(length) > 9 or int(length) > MAX_BODY_BYTES:
        raise BadRequest(413, f"request body is over {MAX_BODY_BYTES} bytes")
    await reader.readexactly(int(length))
    return request


def _parse(head: bytes) -> Request:
    lines = head.decode("utf-8", "replace").split("\r\n")
    parts = lines[0].split(" ")
    if len(parts) != 3 or not parts[2].startswith("RTSP/"):
        raise BadRequest(400, "first line is not 'METHOD uri RTSP/1.0'")
    if parts[2] != "RTSP/1.0":
        raise BadRequest(505, f"version {parts[2][:16]} is not RTSP/1.0")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        if line:
            name, colon, value = line.partition(":")
            if not colon:
                raise BadRequest(400, "a header has no colon")
            headers[name.strip().lower()] = value.strip()
    if not headers.get("cseq", "").isdigit():
        raise BadRequest(400, "CSeq is missing or not a number")
    return Request(parts[0], parts[1], headers)


def response(status: int, cseq: str, headers: dict[str, str] | None = None, body: bytes = b"") -> bytes:
    """The bytes of a response."""
    lines = [f"RTSP/1.0 {status} {REASONS.get(status, 'Error')}", f"CSeq: {cseq}", "Server: sparsecam-sim"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def describe_sdp(sets: ParameterSets, host: str, fps: float) -> bytes:
    """The session description of one H.264 video track."""
    family = "IP6" if ":" in host else "IP4"
    anywhere = "::" if family == "IP6" else "0.0.0.0"  # noqa: S104  # SDP's "the address is agreed in SETUP"
    sprop = ",".join(base64.b64encode(nal).decode() for nal in sets)
    lines = [
        "v=0",
        f"o=- 1 1 IN {family} {host}",
        "s=Sparsecam simulated camera",
        f"c=IN {family} {anywhere}",
        "t=0 0",
        "a=control:*",
        "a=range:npt=now-",
        f"m=video 0 RTP/AVP {PAYLOAD_TYPE}",
        f"a=rtpmap:{PAYLOAD_TYPE} H264/90000",
        f"a=fmtp:{PAYLOAD_TYPE} packetization-mode=1;profile-level-id={sets.sps[1:4].hex()};"
        f"sprop-parameter-sets={sprop}",
        f"a=framerate:{fps:g}",
        "a=control:track1",
    ]
    return "\r\n".join([*lines, ""]).encode()


def challenge(credentials: Credentials, nonce: str) -> str:
    """The WWW-Authenticate header that asks for these credentials."""
    if credentials.scheme == "basic":
        return f'Basic realm="{REALM}"'
    return f'Digest realm="{REALM}", nonce="{nonce}", algorithm=MD5'


def authorised(request: Request, credentials: Credentials, nonce: str) -> bool:
    """Does the request carry a right answer to `challenge`?"""
    scheme, _, rest = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != credentials.scheme:
        return False
    if credentials.scheme == "basic":
        try:
            given = base64.b64decode(rest, validate=True)
        except binascii.Error:
            return False
        return hmac.compare_digest(given, f"{credentials.user}:{credentials.password}".encode())
    fields = dict(re.findall(r'(\w+)="?([^",]*)"?', rest))
    if fields.get("nonce") != nonce or fields.get("username") != credentials.user:
        return False
    secret = _md5(f"{credentials.user}:{REALM}:{credentials.password}")
    asked = _md5(f"{request.method}:{fields.get('uri', '')}")
    expected = _md5(f"{secret}:{nonce}:{asked}")
    return hmac.compare_digest(fields.get("response", "").encode(), expected.encode())


def _md5(text: str) -> str:
    # MD5 is what RTSP clients and cameras speak; it protects nothing else here.
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
