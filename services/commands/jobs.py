"""`sparsecam jobs`: hand trainings in, look at them, cancel them."""

from __future__ import annotations

import json
import time
from datetime import datetime, timezone
from typing import Any

import msgspec
import typer

from services.commands.connected import connected
from services.config import Config
from services.jobs.arguments import JobError, PublishArguments, TrainArguments, checked
from wire import jobs
from wire.jobs import ENDED, Job, JobStatus, LogLine
from wire.messages import MALFORMED
from wire.redis_link import Link

MOST_WAITING = 100  # a queue of weeks already; far below what the stream holds (JOBS_MAXLEN), so that none is cut off
POLL_S = 0.5  # of --follow and cancel
CANCEL_WAIT_S = 10.0  # a trainer looks every second, and gives a program two seconds to stop
HEARD_MS = 5000  # a trainer that lives speaks to Redis every second or so


def submit(config: Config, arguments: dict[str, Any], publish: dict[str, Any], *, as_json: bool) -> int:
    """Hand a job in; 0. Raises JobError for words that no trainer would take."""
    words = checked(TrainArguments, _read(arguments)).model_dump(exclude_defaults=True)
    chosen = checked(PublishArguments, publish).model_dump(exclude_defaults=True)
    job = Job(jobs.new_id(), words, chosen)
    with connected(config) as link:
        waiting = jobs.waiting(link, 2 * MOST_WAITING)
        if waiting >= MOST_WAITING:
            raise JobError(f"{waiting} jobs wait already; cancel some, or start another trainer")
        jobs.submit(link, job)
        alive = jobs.trainers(link, HEARD_MS)
    if as_json:
        typer.echo(json.dumps({"id": job.id, "waiting": waiting, "trainers": alive}))
        return 0
    typer.echo(job.id)
    if not alive:
        typer.echo("no trainer is running: `sparsecam run trainer` starts one", err=True)
    return 0


def _read(arguments: dict[str, Any]) -> dict[str, Any]:
    text = arguments.get("recipe_args")
    try:
        return {**arguments, "recipe_args": json.loads(text) if text else None}
    except ValueError as error:
        raise JobError(f'recipe_args: no JSON: {error}; expected such as {{"num_epochs": 20}}') from None


def list_(config: Config, last: int, *, as_json: bool) -> int:
    """Print the newest jobs; 0."""
    with connected(config) as link:
        found = jobs.statuses(link, last)
        alive = jobs.trainers(link, HEARD_MS)
    if as_json:
        typer.echo(json.dumps({"trainers": alive, "jobs": [_facts(one) for one in found]}, indent=2))
        return 0
    for one in found:
        typer.echo(_line(one))
    if not found:
        typer.echo("no jobs; `sparsecam jobs submit` hands one in")
    elif not alive and any(one.state not in ENDED for one in found):
        typer.echo("no trainer is running: `sparsecam run trainer` starts one", err=True)
    return 0


def logs(config: Config, job_id: str, *, follow: bool, as_json: bool) -> int:
    """Print a job's log; with `follow` until it has ended, and then 1 unless it is done."""
    after = "0-0"
    with connected(config) as link:
        while True:
            # Asked for before the lines: what is written up to the end is then seen.
            status = _status(link, job_id)
            for line in jobs.log_lines(link, job_id, after):
                typer.echo(_log_line(line, as_json=as_json))
                after = line.id
            if not follow or status.state in ENDED:
                break
            time.sleep(POLL_S)
    if not follow:
        return 0
    typer.echo(_line(status), err=True)
    return 0 if status.state == "done" else 1


def cancel(config: Config, job_id: str) -> int:
    """Stop a job; 0 when it is cancelled or will be, 1 when it had ended."""
    with connected(config) as link:
        before = _status(link, job_id)
        if before.state in ENDED:
            typer.echo(f"{job_id} had ended: {before.state}", err=True)
            return 1
        jobs.cancel(link, job_id)
        until_s = time.monotonic() + CANCEL_WAIT_S
        while (now := _status(link, job_id)).state not in ENDED and time.monotonic() < until_s:
            time.sleep(POLL_S)
    if now.state in ENDED:
        typer.echo(f"{job_id} {now.state}")
        return 0 if now.state == "cancelled" else 1
    typer.echo(f"{job_id} is to be cancelled; its trainer {now.trainer} has not answered yet")
    return 0


def _status(link: Link, job_id: str) -> JobStatus:
    found = jobs.status(link, job_id)
    if found is None:
        known = ", ".join(one.id for one in jobs.statuses(link, 5)) or "none"
        raise JobError(f"no job {job_id}; the newest are: {known}")
    return found


def _line(one: JobStatus) -> str:
    parts = [f"{one.id}  {one.state:<11}"]
    if one.stage and one.state not in ENDED:
        parts.append(one.stage)
    if one.epoch:
        parts.append(f"epoch {one.epoch}/{one.epochs or '?'}")
    row = _row(one)
    if "metrics/mAP_0.5" in row:
        parts.append(f"mAP@0.5 {row['metrics/mAP_0.5']:.3f}")
    words = {**one.arguments, **one.publish}
    parts += [f"{name}={words[name]}" for name in ("data", "cfg", "recipe", "name") if words.get(name)]
    if one.cancel and one.state not in ENDED:
        parts.append("(to be cancelled)")
    if one.error:
        parts.append(f"\n    {one.error}")
    return _printable("  ".join(parts))


def _facts(one: JobStatus) -> dict[str, Any]:
    times = {name: _time(getattr(one, f"{name}_us")) for name in ("submitted", "started", "updated", "ended")}
    facts: dict[str, Any] = msgspec.to_builtins(one)
    kept = {name: value for name, value in facts.items() if not name.endswith("_us")}
    return {**kept, "row": _row(one), **times}


def _row(one: JobStatus) -> dict[str, float]:
    """The newest row of results.csv; empty where there is none, or none that can be read."""
    try:
        return msgspec.json.decode(one.row or "{}", type=dict[str, float])
    except MALFORMED:
        return {}


def _time(time_us: int) -> str | None:
    return f"{datetime.fromtimestamp(time_us / 1e6, timezone.utc):%Y-%m-%dT%H:%M:%SZ}" if time_us else None


def _log_line(line: LogLine, *, as_json: bool) -> str:
    if as_json:
        return json.dumps({"id": line.id, "stage": line.stage, "line": line.line}, ensure_ascii=False)
    return _printable(f"{line.stage:<8}| {line.line}")


def _printable(text: str) -> str:
    """Without control characters, by which words from Redis could play with the reader's terminal."""
    return "".join(char for char in text if char.isprintable() or char in "\n\t")
