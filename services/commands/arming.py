"""`sparsecam arm`, `disarm` and `armed`: switch rules off and on while everything runs."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import typer

from services.config import Config
from services.config_errors import nearest
from wire.arming import Pair, arm, disarm, disarmed_of, read_disarmed
from wire.redis_link import Link, connect


class ArmingError(ValueError):
    """What was asked for is not in the config: says what is."""


def switch(config: Config, camera: str | None, rule: str | None, *, on: bool) -> int:
    """Arm or disarm the rules chosen on the cameras chosen (None: all), and say what came of it; 0."""
    chosen = pairs(config, camera, rule)
    (changed,) = _ask(config, (arm if on else disarm)(chosen))
    typer.echo(f"{changed} of {len(chosen)} {'armed' if on else 'disarmed'}; a sink heeds it within a second")
    return 0


def armed(config: Config, *, as_json: bool) -> int:
    """Print each rule of each camera, and since when it is disarmed; 0."""
    (reply,) = _ask(config, read_disarmed())
    since = disarmed_of(reply)
    for camera, rule in pairs(config, None, None):
        at_us = since.get((camera, rule))
        when = datetime.fromtimestamp(at_us / 1e6, timezone.utc) if at_us is not None else None
        if as_json:
            shown = when.isoformat() if when else None
            typer.echo(json.dumps({"camera": camera, "rule": rule, "armed": when is None, "disarmed_since": shown}))
        else:
            said = "armed" if when is None else f"disarmed since {when.astimezone():%Y-%m-%d %H:%M:%S}"
            typer.echo(f"{camera:<24} {rule:<24} {said}")
    return 0


def pairs(config: Config, camera: str | None, rule: str | None) -> list[Pair]:
    """(camera, rule) of the config that are meant; raises ArmingError where there are none."""
    for what, name, known in (("camera", camera, config.cameras), ("rule", rule, config.rules)):
        if name is not None and name not in known:
            meant = nearest(name, known)
            names = ", ".join(known) or f"none, the config has no {what}s"
            hint = f"did you mean {meant!r}?" if meant else f"expected one of: {names}"
            raise ArmingError(f"no {what} {name!r} in the config; {hint}")
    found = [
        (one, other)
        for one in ([camera] if camera else config.cameras)
        for other in ([rule] if rule else config.rules)
        if config.rules[other].watches(one)
    ]
    if not found:
        raise ArmingError("no rule watches the cameras chosen: nothing to arm or disarm")
    return found


def _ask(config: Config, *commands: tuple[Any, ...]) -> list[Any]:
    link = Link(connect(config.redis, config.redis_url))
    try:
        return link.ask(*commands)
    finally:
        link.close()
