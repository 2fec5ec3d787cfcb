"""Logs of every process: lines for a person, JSON for a machine, URL passwords in neither.

Both structlog and the standard library's logging (PyAV, redis-py, asyncio) pass through the same processors, so
the redaction sees everything. Logs go to stderr; stdout belongs to a command's result.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, Literal, TextIO

import structlog

LogFormat = Literal["console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

HIDDEN = "***"

# user:password@ of any URL. Greedy up to the last @ before white space, because people paste passwords that
# hold @, / and quotes unescaped: rather hide a piece of the path too than show a piece of the password.
_USERINFO = re.compile(r"(?P<head>[A-Za-z][A-Za-z0-9+.\-]*://[^\s:@/?#]*):\S*@")
# Parameters whose value opens something, also as the end of a longer name (user_password, access_token,
# X-Amz-Signature). Cameras and cloud relays use all of these.
_SENSITIVE = (
    r"(?:(?:login|user|usr)?(?:pass?(?:word|wd|w|code|phrase)?|pwd|psw)|token|auth(?:orization)?|secret|(?:api)?key|"
    r"sig(?:nature)?|credentials?|session(?:_?id)?)"
)
SECRET_NAME = rf"(?:[\w\-]*[_\-])?{_SENSITIVE}"
# Cameras that take the password as a query parameter (http://cam/cgi?user=admin&password=...).
_PARAMETER = re.compile(rf"(?P<head>[?&;]{SECRET_NAME}=)[^\s&;#\"']+", re.IGNORECASE)
# Parameters in a path, up to the next one: XMEye's rtsp://cam/user=admin_password=..._channel=1_stream=0.sdp
PATH_PARAMETER = re.compile(
    rf"(?P<head>[/_\-]{_SENSITIVE}=)(?P<secret>.*?)(?=_[a-z]+=|[&;?#]|$)", re.IGNORECASE | re.DOTALL
)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://[^\s\"']+")
# Keys of an event whose value is a secret however it looks.
_SECRET_KEY = re.compile(r"password|passwd|pwd|secret|token|api_?key|authorization", re.IGNORECASE)


def redact(text: str) -> str:
    """`text` with the passwords of all URLs in it replaced by ***."""
    if "://" in text:
        text = _USERINFO.sub(lambda match: f"{match['head']}:{HIDDEN}@", text)
    if "=" in text:
        text = _PARAMETER.sub(lambda match: f"{match['head']}{HIDDEN}", text)
        text = _URL.sub(lambda match: hide_in_path(match[0]), text)
    return text


def hide_in_path(url: str) -> str:
    """`url` with the passwords among its path's parameters replaced by ***."""
    return PATH_PARAMETER.sub(lambda match: f"{match['head']}{HIDDEN}", url)


def without(text: str, secrets: Iterable[str]) -> str:
    """`text` with each of `secrets`, which are known, replaced by ***."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        # A secret of one or two characters is also a piece of ordinary words: replaced only where it stands alone.
        if len(secret) > 2:
            text = text.replace(secret, HIDDEN)
        else:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, text)
    return text


def redact_value(value: Any, key: str = "") -> Any:
    """`value` with every string in it redacted; `key` is the name it is kept under.

    Containers become plain dicts and lists; objects that are neither text, number nor container become their
    redacted text, since a renderer would print that.
    """
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {redact(str(name)): redact_value(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redact_value(inner, key) for inner in value]
    text = value.decode(errors="replace") if isinstance(value, bytes | bytearray) else str(value)
    if text and _SECRET_KEY.search(key):
        return HIDDEN
    return redact(text)


def _redact_event(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:  # structlog's processor signature
    return {key: value if key.startswith("_") else redact_value(value, key) for key, value in event.items()}


def setup_logs(
    level: LogLevel = "info", log_format: LogFormat = "console", *, stream: TextIO | None = None, process: str = ""
) -> None:
    """Route structlog and logging to `stream` (stderr); `facts` (process="detector-1") are added to every
    event.

    May be called again; the last call holds.
    """
    out = sys.stderr if stream is None else stream
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True)
        if log_format == "json"
        else structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
        _name_process(process),
        # Tracebacks become text here, before redaction, so that a password in an exception is hidden too.
        structlog.processors.format_exc_info,
        _redact_event,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,  # a second set-up must reach loggers already handed out
    )
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(0, colors=out.isatty())  # 0: no padding of the event
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    # FFmpeg speaks of every oddity of every packet; what matters of it reaches us as an exception.
    logging.getLogger("libav").setLevel(logging.DEBUG if level == "debug" else logging.CRITICAL)


def _name_process(process: str) -> structlog.typing.Processor:
    def add(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if process:
            event.setdefault("process", process)
        return event

    return add
