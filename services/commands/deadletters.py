"""`sparsecam deadletters`: look at the alerts that outputs gave up, deliver them after all, or drop them."""

from __future__ import annotations

import json
from datetime import datetime, timezone

import msgspec
import typer

from services.commands.alerts import line
from services.commands.connected import connected
from services.config import Config
from services.config_errors import nearest
from services.outputs import build
from sink.outputs.deadletters import DeadLetter, count_deadletters, deadletters, drop_deadletters
from sink.outputs.delivery import DeliveryError, Unreachable
from sink.outputs.settings import OutputSettings
from wire.logs import redact
from wire.redis_link import Link
from wire.streams import id_order


class DeadLettersError(ValueError):
    """What was asked for is not there: says what is."""


def list_(config: Config, output: str | None, *, as_json: bool) -> int:
    """Print the dead letters of one output or of all; 0."""
    found = False
    with connected(config) as link:
        for name in [output] if output else sorted(config.outputs):
            _settings(config, name)
            for letter in deadletters(link, name):
                found = True
                typer.echo(_as_json(name, letter) if as_json else _as_text(name, letter))
    if not found:
        # Not on standard output: what reads that counts lines.
        none = "no dead letters" if config.outputs else "no dead letters: the config has no outputs"
        typer.echo(f"no dead letters of {output}" if output else none, err=True)
    return 0


def replay(config: Config, output: str, ids: list[str]) -> int:
    """Deliver them now, by the config as it is now; 1 when any of them stays. No ids: all.

    Each is removed when the receiver has it, so what is interrupted can be begun again.
    """
    settings = _settings(config, output)
    delivered = failed = 0
    with connected(config) as link:
        target = build(output, settings)  # no sensors: they show what is, and an old alert says what was
        try:
            for letter in _chosen(link, output, ids):
                try:
                    target.deliver(letter.alert, letter.text)
                except DeliveryError as error:
                    failed += 1
                    typer.echo(f"{letter.id}  {redact(str(error))}", err=True)
                    if isinstance(error, Unreachable):
                        break  # the others would fare no better
                    continue
                drop_deadletters(link, output, [letter.id])
                delivered += 1
        finally:
            target.close()
        left = count_deadletters(link, output)
    typer.echo(f"{delivered} delivered, {left} left")
    return 1 if failed else 0


def drop(config: Config, output: str, ids: list[str], *, everything: bool) -> int:
    """Delete them without delivery; 0."""
    _settings(config, output)
    if bool(ids) == everything:
        raise DeadLettersError("say which to drop: ids as `deadletters list` shows them, or --all")
    with connected(config) as link:
        dropped = drop_deadletters(link, output, [letter.id for letter in _chosen(link, output, ids)])
        left = count_deadletters(link, output)
    typer.echo(f"{dropped} dropped, {left} left")
    return 0


def _settings(config: Config, output: str) -> OutputSettings:
    found = config.outputs.get(output)
    if found is None:
        near = nearest(output, config.outputs)
        names = ", ".join(sorted(config.outputs)) or "none, the config has no outputs"
        raise DeadLettersError(
            f"no output {output!r}; " + (f"did you mean {near!r}?" if near else f"expected one of: {names}")
        )
    return found


def _chosen(link: Link, output: str, ids: list[str]) -> list[DeadLetter]:
    found = list(deadletters(link, output))
    missing = set(ids) - {letter.id for letter in found}
    if missing:
        raise DeadLettersError(f"no dead letters of {output} are: {', '.join(sorted(missing))}")
    return [letter for letter in found if not ids or letter.id in ids]


def _as_text(output: str, letter: DeadLetter) -> str:
    return (
        f"{output}  {letter.id}  put aside {_put_aside(letter)}, attempts {letter.attempts}: {redact(letter.reason)}\n"
        f"    {line(letter.alert)}"
    )


def _as_json(output: str, letter: DeadLetter) -> str:
    facts = {
        "output": output,
        "id": letter.id,
        "put_aside": _put_aside(letter),
        "attempts": letter.attempts,
        "reason": redact(letter.reason),
        "alert": msgspec.to_builtins(letter.alert),
    }
    return json.dumps(facts, ensure_ascii=False)


def _put_aside(letter: DeadLetter) -> str:
    when = datetime.fromtimestamp(id_order(letter.id.encode())[0] / 1000, timezone.utc)
    return f"{when:%Y-%m-%dT%H:%M:%S}Z"
