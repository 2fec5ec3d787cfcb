"""Which incidents are open: the hash `sparsecam:open:{sparsecam:alerts}`.

A field is the JSON list [camera, incident], its value the JSON of the alert that opened the incident. The script that
adds an alert to the stream writes it too (wire/alerts.py), so it never says anything else than the alerts do.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import msgspec

from wire.alerts import OPEN_INCIDENTS, Alert, from_json
from wire.messages import MALFORMED, WireError

Name = tuple[str, str]  # camera, incident

_decoder = msgspec.json.Decoder(Name)


def read_names() -> tuple[Any, ...]:
    """The command that reads which are open; its reply is for `names_of`."""
    return ("HKEYS", OPEN_INCIDENTS)


def names_of(reply: Iterable[bytes]) -> dict[str, set[str]]:
    """Camera: its open incidents. What is no name is left out."""
    found: dict[str, set[str]] = {}
    for field in reply:
        try:
            camera, incident = _decoder.decode(field)
        except MALFORMED:
            continue  # somebody else's; nothing of ours is called so
        found.setdefault(camera, set()).add(incident)
    return found


def read_opened(names: Iterable[Name]) -> tuple[Any, ...]:
    """The command that reads the alerts which opened these (at least one); its reply is for `opened_of`."""
    return ("HMGET", OPEN_INCIDENTS, *map(msgspec.json.encode, names))


def forget(names: Iterable[Name]) -> tuple[Any, ...]:
    """The command that takes these (at least one) for open no more. Only for what no alert can close."""
    return ("HDEL", OPEN_INCIDENTS, *map(msgspec.json.encode, names))


def read_all_opened() -> tuple[Any, ...]:
    """The command that reads the alerts which opened what is open; its reply is for `opened_of`."""
    return ("HVALS", OPEN_INCIDENTS)


def opened_of(reply: Iterable[bytes | None]) -> list[Alert]:
    """The alerts. One that is gone meanwhile, or that this build cannot read, is left out."""
    found = []
    for text in reply:
        with suppress(WireError):
            if text is not None:
                found.append(from_json(text))
    return found
