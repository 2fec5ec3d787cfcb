"""Secrets of one source's URL, kept out of every text about it.

`wire.logs.redact` finds what looks like a password in any text. Here the URL is known, so its own secrets are
replaced exactly first, whatever characters they hold and however a library quotes them.
"""

from __future__ import annotations

import re
from urllib.parse import unquote, unquote_plus

from wire.logs import HIDDEN, PATH_PARAMETER, SECRET_NAME, hide_in_path, redact, without

_SECRET_PARAMETER = re.compile(SECRET_NAME, re.IGNORECASE)


def _split_userinfo(url: str) -> tuple[str, str, str] | None:
    """(before, userinfo, after) of scheme://userinfo@rest.

    People paste passwords with an unescaped @, / or ? in them. So after `name:` everything up to the last @ of the URL
    is taken for the password: rather hide a piece of the path too than show a piece of the password.
    """
    head, mark, rest = url.partition("://")
    if not mark:
        return None
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    end = (rest if ":" in authority else authority).rfind("@")
    return None if end < 0 else (head + mark, rest[:end], rest[end:])


def secrets_of(url: str) -> list[str]:
    """Every secret in a URL as it may be quoted: raw and percent-decoded; the longest first."""
    found: set[str] = set()
    if parts := _split_userinfo(url):
        user, colon, password = parts[1].partition(":")
        # A lone user name before the @ is often a token.
        found.add(password if colon else user)
    for key, value in re.findall(r"[?&;]([^=&;?#]+)=([^&;#]*)", url):
        if _SECRET_PARAMETER.fullmatch(unquote(key)):
            found.add(value)
    if "://" in url:  # not a file's path
        found |= {match["secret"] for match in PATH_PARAMETER.finditer(url)}
    found |= {unquote(secret) for secret in found} | {unquote_plus(secret) for secret in found}
    return sorted((secret for secret in found if secret), key=len, reverse=True)


def safe_url(url: str) -> str:
    """The URL to show: its user stays, its password and tokens become ***."""
    if parts := _split_userinfo(url):
        head, userinfo, tail = parts
        user, colon, _ = userinfo.partition(":")
        url = f"{head}{user}:{HIDDEN}{tail}" if colon else f"{head}{HIDDEN}{tail}"

    def hide_value(match: re.Match[str]) -> str:
        secret = _SECRET_PARAMETER.fullmatch(unquote(match[2]))
        return f"{match[1]}{match[2]}={HIDDEN}" if secret else match[0]

    url = re.sub(r"([?&;])([^=&;?#]+)=([^&;#]*)", hide_value, url)
    return redact(hide_in_path(url) if "://" in url else url)


def hide(text: str, url: str) -> str:
    """`text` about the source `url`, without its secrets."""
    text = text.replace(url, safe_url(url)) if url else text
    return redact(without(text, secrets_of(url)))
