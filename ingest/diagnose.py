"""From FFmpeg's errors to ours.

FFmpeg says plainly what HTTP and RTSP servers answered. Of a host that does not resolve, a broken TLS handshake and an
answer that is no stream it says only "Input/output error" or "Invalid data", so then the host is asked again, by us.
"""

from __future__ import annotations

import errno
import socket
import ssl
from pathlib import Path
from urllib.parse import urlsplit

import av.error

from ingest.errors import CHECK_PATH, ErrorKind, SourceError
from ingest.redact import hide
from ingest.settings import CameraSettings
from ingest.sources import Source

# Time for the extra look at the host; it delays only this camera's next attempt.
PROBE_S = 1.0
_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}

# The first class that matches decides. RTSP answers come as the HTTP classes (seen: 401, 403, 404, 454, 5xx).
_KINDS: tuple[tuple[type[BaseException], ErrorKind], ...] = (
    (av.error.HTTPUnauthorizedError, "auth_failed"),
    (av.error.HTTPForbiddenError, "auth_failed"),
    (av.error.HTTPNotFoundError, "not_found"),
    (av.error.HTTPTooManyRequestsError, "refused"),
    (av.error.HTTPClientError, "bad_reply"),
    (av.error.HTTPError, "server_error"),
    (av.error.ConnectionRefusedError, "refused"),
    (av.error.ConnectionResetError, "reset"),
    (av.error.ConnectionAbortedError, "reset"),
    (av.error.BrokenPipeError, "reset"),
    (av.error.TimeoutError, "timeout"),
    (av.error.ExitError, "timeout"),  # our own time limit interrupted it
    (av.error.FileNotFoundError, "not_found"),
    (av.error.NotADirectoryError, "not_found"),
    (av.error.IsADirectoryError, "bad_url"),
    (av.error.PermissionError, "permission"),
    (av.error.DecoderNotFoundError, "codec_unsupported"),
    (av.error.PatchWelcomeError, "codec_unsupported"),
    (av.error.ProtocolNotFoundError, "bad_url"),
)
_ERRNO_KINDS: dict[int, ErrorKind] = {
    errno.EBUSY: "device_busy",
    errno.ENETUNREACH: "unreachable",
    errno.EHOSTUNREACH: "unreachable",
}


def _described(error: BaseException, source: Source) -> str:
    # `strerror` is the plain sentence; str() adds the URL and the last line of FFmpeg's log, of whatever camera.
    text = getattr(error, "strerror", None) or str(error)
    return hide(f"{source.shown}: {text}", source.url)


def _plain_kind(error: BaseException) -> ErrorKind | None:
    for cls, kind in _KINDS:
        if isinstance(error, cls):
            return kind
    return _ERRNO_KINDS.get(getattr(error, "errno", None) or 0)


def open_error(error: BaseException, source: Source, settings: CameraSettings, elapsed_s: float) -> SourceError:
    """Why a source could not be opened after elapsed_s; may ask its host once more (PROBE_S)."""
    limit_s = settings.open_timeout_s
    kind = _plain_kind(error)
    if kind is not None:
        on_disk = kind == "not_found" and source.kind in {"file", "images"}
        return SourceError(kind, _described(error, source), CHECK_PATH if on_disk else "")
    # FFmpeg reports some expired time limits as bad data: the reply it waited for was empty.
    if elapsed_s >= 0.9 * limit_s:
        return SourceError("timeout", f"{source.shown}: no answer within {limit_s:g} s")
    if source.kind in {"rtsp", "http"}:
        return _ask_host(source, settings.tls_verify) or SourceError("bad_reply", _described(error, source))
    if source.kind == "file" and _size(source.url) == 0:
        return SourceError("empty", f"{source.shown}: zero bytes")
    return SourceError("corrupt", _described(error, source))


def read_error(error: BaseException, source: Source, limit_s: float) -> SourceError:
    """Why an open source cannot be read on."""
    kind = _plain_kind(error)
    if kind == "timeout":
        return SourceError("frozen", f"{source.shown}: no packet for {limit_s:g} s")
    fallback: ErrorKind = "reset" if source.live else "corrupt"
    return SourceError(kind or fallback, _described(error, source))


def _size(path: str) -> int | None:
    try:
        return Path(path).stat().st_size
    except OSError:
        return None


def _ask_host(source: Source, tls_verify: bool) -> SourceError | None:
    """What a plain connection to the host finds wrong; None when there is nothing wrong with it."""
    parts = urlsplit(source.url)
    host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 554)
    secure = parts.scheme in {"rtsps", "https"}
    try:
        with socket.create_connection((host, port), PROBE_S) as connection:
            if secure:
                _shake_hands(connection, host, tls_verify)
    except OSError as error:  # ssl.SSLError and socket.gaierror are of this family
        kind, text = _host_trouble(error, secure)
        return SourceError(kind, f"{source.shown}: {text}")
    return None


def _host_trouble(error: OSError, secure: bool) -> tuple[ErrorKind, str]:
    kind: ErrorKind
    if isinstance(error, socket.gaierror):
        return "unreachable", "the host name does not resolve"
    if isinstance(error, ConnectionRefusedError):
        return "refused", "connection refused"
    if isinstance(error, ssl.SSLCertVerificationError):
        return "tls_failed", error.verify_message
    if isinstance(error, ssl.SSLError):
        return "tls_failed", error.reason or "handshake failed"
    # With TLS the peer may fall silent or hang up in mid-handshake.
    if isinstance(error, TimeoutError):
        kind = "tls_failed" if secure else "timeout"
        return kind, f"no answer within {PROBE_S:g} s"
    kind = "tls_failed" if secure and isinstance(error, ConnectionError) else "unreachable"
    return kind, error.strerror or type(error).__name__


def _shake_hands(connection: socket.socket, host: str, tls_verify: bool) -> None:
    context = ssl.create_default_context()
    if not tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    with context.wrap_socket(connection, server_hostname=host):
        pass
