"""`sparsecam models deploy|deployed|rollback`: wish for a model, and watch the workers take it up."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import typer
from rich.table import Table

from detector.model import Model, read_model
from services.commands.connected import connected
from services.commands.tables import table_console
from services.config import Config, check_classes
from services.config_errors import ConfigError
from services.model_names import model_file
from services.rollout import advance, go_back
from wire.deployment import (
    Comparison,
    Deployment,
    ModelRef,
    Standing,
    WorkerReport,
    figures,
    read_standing,
    replace,
)
from wire.redis_link import Link

POLL_S = 0.25
SILENCE_S = 10.0  # without any worker: a dead one's supervisor has started another by then
GIVEN_UP_S = 60.0  # without any worker: nobody starts one, and a command that waits for ever tells nobody so
TRIES = 20  # of storing a wish while workers change the record; each is a millisecond


Wisher = Callable[[Standing], "Deployment | None"]


class DeployError(ValueError):
    """What was asked for cannot be done: says why, and what can."""


@dataclass(frozen=True)
class Wish:
    """How a model is to be deployed."""

    canary_s: float
    max_latency_ratio: float
    force: bool


def deploy(config: Config, config_path: Path | None, model: str, wish: Wish, *, wait: bool, as_json: bool) -> int:
    """Deploy a model to the workers of `config`; 0 when they run it, 1 when it was refused or rolled back."""
    path = model_file(model, config.registry.folder).resolve()
    read = read_model(path)
    _check_rules(config, config_path, read, force=wish.force)
    ref = ModelRef(path.name, str(path), read.sha256)
    with connected(config) as link:
        wished = _store(link, lambda standing: _wished(standing, ref, wish))
        if wished is None:
            typer.echo(f"{ref.name} is deployed already", err=as_json)
            return 0
        return _watch(link, wished.id, as_json=as_json) if wait else _told(wished, as_json=as_json)


def rollback(config: Config, *, wait: bool, as_json: bool) -> int:
    """End a deployment that is under way, else go back to the model before; 0 when that is done."""
    with connected(config) as link:
        wished = _store(link, _backward)
        assert wished is not None
        if not wait:
            return _told(wished, as_json=as_json)
        code = _watch(link, wished.id, as_json=as_json)
        # Ending a deployment is what was asked for, and so is no failure.
        return 0 if wished.phase == "returning" else code


def deployed(config: Config, *, as_json: bool) -> int:
    """Print the deployment and the workers; 0."""
    with connected(config) as link:
        standing = read_standing(link)
    workers = _living(standing)
    if as_json:
        facts = {"deployment": _builtins(standing.deployment), "workers": [_facts(one) for one in workers]}
        typer.echo(json.dumps(facts))
        return 0
    typer.echo(_state(standing.deployment))
    table = Table("worker", "model", "sha256", "", "frames", "failed", "p50 ms", "p99 ms")
    for one in workers:
        times = (f"{one.tally.quantile_ms(share):.1f}" for share in (0.5, 0.99))
        doing = "loading another" if one.loading else one.error
        row = (one.worker, one.model, one.sha256[:12], doing, str(one.tally.frames), str(one.tally.failed), *times)
        table.add_row(*row)
    table_console().print(table)
    return 0


def _check_rules(config: Config, path: Path | None, model: Model, *, force: bool) -> None:
    """Rules that name classes which the model lacks would never find anything again; raises ConfigError."""
    names = model.labels or config.detector.names
    if not names:
        named = sorted({label for rule in config.rules.values() for label in rule.labels or ()})
        if named and not force:
            raise DeployError(
                f"{model.name} does not name its classes, and rules name {', '.join(named)}: whether they would "
                "find anything again is not known. Set detector.labels, or deploy it all the same with --force"
            )
        return
    try:
        check_classes(path, config, names)
    except ConfigError as error:
        if not force:
            raise DeployError(
                f"{model.name} lacks classes that rules name; these rules would go silent:\n{error}\n"
                "Change the rules, or deploy it all the same with --force"
            ) from None
        typer.echo(f"these rules will find nothing with {model.name}:\n{error}", err=True)


def _store(link: Link, wish: Wisher) -> Deployment | None:
    """Store what `wish` makes of the standing; None when it wants nothing changed."""
    for _ in range(TRIES):
        standing = read_standing(link)
        wished = wish(standing)
        if wished is None or replace(link, standing, wished):
            return wished
    raise DeployError("somebody else is changing the deployment; look with `sparsecam models deployed`")


def _wished(standing: Standing, ref: ModelRef, wish: Wish) -> Deployment | None:
    now = _settled(standing)
    workers = _living(standing)
    if not workers:
        raise DeployError("no detector worker answers here; is `sparsecam up` running, with a model configured?")
    if (now.current or ref) == ref and all(one.sha256 == ref.sha256 for one in workers):
        return None
    return _new(
        now,
        standing,
        ref,
        canary_s=wish.canary_s,
        max_latency_ratio=None if wish.force else wish.max_latency_ratio,
    )


def _backward(standing: Standing) -> Deployment:
    now = standing.deployment
    if now is not None and now.phase == "returning":
        return now
    if now is not None and now.phase != "settled":
        return go_back(now, "asked for", standing.now_us)
    if now is None or not now.history:
        raise DeployError("nothing to go back to: no other model was deployed before")
    # It ran here before, so it needs no canary; the one that it takes the place of is forgotten.
    return _new(now, standing, now.history[-1], canary_s=0.0, max_latency_ratio=None, backward=True)


def _settled(standing: Standing) -> Deployment:
    now = standing.deployment or Deployment(id="", wanted=None)
    if now.phase != "settled":
        raise DeployError(
            f"{_name(now.wanted)} is being deployed ({now.phase}); wait for it, or end it with "
            "`sparsecam models rollback`"
        )
    return now


def _new(
    now: Deployment,
    standing: Standing,
    wanted: ModelRef | None,
    *,
    canary_s: float,
    max_latency_ratio: float | None,
    backward: bool = False,
) -> Deployment:
    return Deployment(
        id=uuid.uuid4().hex[:12],
        wanted=wanted,
        current=now.current,
        phase="loading",
        begun_us=standing.now_us,
        since_us=standing.now_us,
        canary_s=canary_s,
        max_latency_ratio=max_latency_ratio,
        history=now.history,
        backward=backward,
    )


def _watch(link: Link, wanted_id: str, *, as_json: bool) -> int:
    """Print the deployment's steps until it has settled; 0 when deployed.

    The workers move it on; should none be left, because the last one died of it, this command does.
    """
    told, heard_s = "", time.monotonic()
    try:
        while True:
            standing = read_standing(link)
            now = standing.deployment
            if now is None or now.id != wanted_id:
                raise DeployError("another deployment took this one's place; look with `sparsecam models deployed`")
            if told != (told := _step(now)) and not as_json:
                typer.echo(told)
            if now.phase == "settled":
                return _told(now, as_json=as_json)
            if _living(standing):
                heard_s = time.monotonic()
            elif time.monotonic() - heard_s > GIVEN_UP_S:
                raise DeployError(
                    f"no detector worker has answered for {GIVEN_UP_S:g} s ({_step(now)}); it goes on when one starts, "
                    "or end it with `sparsecam models rollback`"
                )
            elif time.monotonic() - heard_s > SILENCE_S:
                replace(link, standing, advance(now, standing.reports, standing.now_us))
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        typer.echo("the workers go on by themselves; `sparsecam models deployed` shows how far they are", err=True)
        raise


def _told(now: Deployment, *, as_json: bool) -> int:
    if as_json:
        typer.echo(json.dumps(_builtins(now)))
    elif now.phase == "settled":
        if now.comparison:
            table_console().print(_compared(now.comparison))
        typer.echo(_state(now))
    return 1 if now.phase == "settled" and now.outcome == "rolled back" else 0


def _step(now: Deployment) -> str:
    name = _name(now.wanted)
    return {
        "loading": f"{now.canary or 'a worker'} loads {name}",
        "canary": f"{now.canary} detects with it, for {now.canary_s:g} s first",
        "rolling": f"{now.turn or 'the others'} changes",
        "returning": f"going back: {now.reason}",
        "settled": "",
    }[now.phase]


def _state(now: Deployment | None) -> str:
    if now is None:
        return "nothing was deployed: workers run detector.model of their config"
    current = _name(now.current)
    if now.phase != "settled":
        return f"{current}; {_name(now.wanted)} is being deployed: {_step(now)}"
    if now.outcome == "rolled back":
        return f"rolled back to {current}; {_name(now.wanted)} was not deployed: {now.reason}"
    return f"deployed: {current}"


def _compared(told: Comparison) -> Table:
    table = Table("", "frames", "failed", "p50 ms", "p99 ms", "detections a frame")
    for name, one in (("canary", told.canary), (told.against, told.others)):
        times = f"{one.p50_ms:.1f}", f"{one.p99_ms:.1f}"
        table.add_row(name, str(one.frames), str(one.failed), *times, f"{one.detections_per_frame:.2f}")
    return table


def _builtins(now: Deployment | None) -> dict[str, object] | None:
    """For JSON: everything by its name."""
    if now is None:
        return None
    facts = msgspec.structs.asdict(now)
    for key in ("wanted", "current"):
        facts[key] = _named(facts[key])
    facts["history"] = [_named(one) for one in now.history]
    told = now.comparison
    facts["comparison"] = told and {
        "against": told.against,
        "canary": msgspec.structs.asdict(told.canary),
        "others": msgspec.structs.asdict(told.others),
    }
    return facts


def _named(model: ModelRef | None) -> dict[str, object] | None:
    return msgspec.structs.asdict(model) if model else None


def _facts(one: WorkerReport) -> dict[str, object]:
    return {
        "worker": one.worker,
        "host": one.host,
        "model": one.model,
        "sha256": one.sha256,
        "loading": one.loading,
        "error": one.error,
        **msgspec.structs.asdict(figures(one.tally)),
    }


def _name(model: ModelRef | None) -> str:
    return model.name if model else "detector.model of the config"


def _living(standing: Standing) -> list[WorkerReport]:
    return sorted(
        (one for one in standing.reports.values() if one.is_fresh(standing.now_us)), key=lambda one: one.worker
    )
