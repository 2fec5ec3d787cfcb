"""What redis.url may say: where the server is, which database, who asks, and TLS."""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote, urlsplit

from wire.logs import redact

SCHEMES = ("redis", "rediss", "unix")
# Options after the `?`. Others of redis-py (decode_responses, timeouts) would break this code, and it ends with a
# TypeError, at the first command only, on a name that it does not know.
_OPTIONS = ("db", "username", "password")
TLS_OPTIONS = (
    "ssl_ca_certs",
    "ssl_ca_data",
    "ssl_ca_path",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_ciphers",
    "ssl_keyfile",
    "ssl_password",
)


class RedisUrlError(ValueError):
    """redis.url cannot be used as it is written."""


def check_url(url: str) -> str:
    """The URL as it is; raises RedisUrlError saying what is wrong with it, without its password."""
    if not url:
        raise RedisUrlError("redis.url is empty and there is no embedded Valkey: set redis.url")
    scheme, colon, _ = url.partition("://")
    if not colon or scheme not in SCHEMES:
        raise bad_url(url, "it begins otherwise")
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # it raises where that is no number, or too large a one
        options = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        raise bad_url(url, "it is not a URL") from None
    # redis-py takes what is no number for database 0, and /1/2 for 12.
    if scheme != "unix" and not _is_database(unquote(parts.path).strip("/")):
        raise bad_url(url, "what follows the host is no database's number")
    allowed = (*_OPTIONS, *TLS_OPTIONS) if scheme == "rediss" else _OPTIONS
    for name, value in options:
        if name in TLS_OPTIONS and name not in allowed:
            raise bad_url(url, f"the option {name!r} is TLS's, which rediss:// has")
        if name not in allowed:
            raise bad_url(url, f"the option {name!r} is none of {', '.join(allowed)}")
        if name == "db" and not _is_database(value):
            raise bad_url(url, "its db is no database's number")
    return url


def _is_database(text: str) -> bool:
    return not text or (text.isascii() and text.isdecimal())


def bad_url(url: str, what: str) -> RedisUrlError:
    """The error to raise for a URL."""
    return RedisUrlError(
        f"redis.url {redact(url)!r}: {what}; expected redis://, rediss:// or unix:// [user:password@]host:port/db"
    )
