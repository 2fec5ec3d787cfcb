"""Runs one job from where it is to its end, one program after the other, and tells Redis how it goes.

A program that says no (exit code 1 and the like) ends the job as failed. One that was killed is started again, and a
training then goes on from its last finished epoch; after `max_attempts` without a new epoch the job has failed. Redis
may be away meanwhile: the training goes on, and what there is to say is said later.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import structlog

from services.child import sparsecam
from services.jobs.arguments import JobError
from services.jobs.folder import Record, newest_row
from services.jobs.program import Program
from services.jobs.settings import TrainerSettings
from services.jobs.stages import Plan, Stage, plan_of
from wire.job_queue import JobQueue, Taken
from wire.jobs import ENDED, LogLine, State
from wire.redis_link import RedisAway

log = structlog.get_logger()

TICK_S = 0.2  # how soon a program's end is seen
SAY_EVERY_S = 1.0  # how often Redis hears of the job: a person watches, and a cancelled one should not go on for long
# A supervisor gives us five seconds, of which a Redis that hangs may take two. A training that is killed loses no more
# than one that stops by itself: the epoch that is not finished.
STOP_S = 2.0
HELD_LINES = 10_000  # of output, while Redis is away
KILLED = 128 + signal.SIGTERM  # how `sparsecam train` ends when it was told to stop, by whomever

Outcome = State | Literal["lost"]  # `interrupted`: we are told to stop; `lost`: another trainer has the job
Command = Callable[..., Sequence[str]]


@dataclass
class Counts:
    """What a trainer has done since it started, and does now."""

    left: Counter[Outcome] = field(default_factory=Counter)  # jobs, by how
    restarts: int = 0  # programs started again after they were killed
    lines_shed: int = 0
    job: str = ""
    stage: str = ""
    epoch: int = 0


class JobRun:
    """One job. For the thread that lives as long as the process (see Program)."""

    def __init__(
        self,
        taken: Taken,
        settings: TrainerSettings,
        registry: Path,
        queue: JobQueue,
        counts: Counts,
        *,
        command: Command = sparsecam,
        each_tick: Callable[[], None] = lambda: None,
    ) -> None:
        """`registry` is the folder that models are published into. `command` makes the command line of one of our
        commands; `each_tick` is called some times a second."""
        self._taken = taken
        self._settings = settings
        self._registry = registry
        self._queue = queue
        self._counts = counts
        self._command = command
        self._each_tick = each_tick
        self._attempts = taken.attempts
        self._reached = 0  # epochs that were ever finished
        self._fields: dict[str, str | int] = {}  # to be said
        self._lines: deque[LogLine] = deque()  # to be said
        self._shed = 0
        self._said_s = 0.0

    def run(self, stop: threading.Event) -> Outcome:
        """Work on it until it has ended, is lost, or `stop`; returns which."""
        job = self._taken.job
        log.info("job taken", job=job.id, attempt=self._attempts)
        self._counts.job = job.id
        try:
            outcome = self._run(stop)
        finally:
            self._counts.job, self._counts.stage, self._counts.epoch = "", "", 0
        self._counts.left[outcome] += 1
        return outcome

    def _run(self, stop: threading.Event) -> Outcome:
        try:
            plan = plan_of(self._taken.job, self._settings, self._registry)
            record = plan.folder.record()
        except (JobError, OSError) as error:
            return self._end("failed", str(error), stop)
        except Exception as error:
            # A bug of ours, which must not take every job behind this one with it, for ever.
            if self._taken.cancel:
                return self._end("cancelled", "", stop)
            if self._attempts >= self._settings.max_attempts:
                log.exception("job cannot be begun", job=self._taken.job.id)
                return self._end("failed", f"nobody foresaw this: {type(error).__name__}: {error}", stop)
            raise
        epoch, _ = newest_row(plan.folder.results)
        self._reached = self._counts.epoch = epoch
        self._fields |= {"folder": str(plan.folder.path), "epochs": plan.epochs, "epoch": epoch}
        try:
            outcome, reason = self._stages(plan, record, stop)
            if outcome in ENDED:
                record.ended, record.error = outcome, reason
                plan.folder.write(record)
        except OSError as error:  # a full disk, say
            outcome, reason = "failed", str(error)
        if outcome == "lost":
            log.warning("job lost to another trainer", job=self._taken.job.id)
            return outcome
        if outcome == "interrupted":
            return self._interrupted()
        if outcome == "done":
            self._fields["model"] = plan.model
        return self._end(outcome, reason, stop)

    def _stages(self, plan: Plan, record: Record, stop: threading.Event) -> tuple[Outcome, str]:
        """Do what is left to do; returns how that went, and why."""
        if record.ended is not None:  # Redis was away when it ended
            return record.ended, record.error
        if self._taken.cancel:
            return "cancelled", ""
        if self._attempts > self._settings.max_attempts:
            return "failed", self._given_up("the trainer died")
        for stage in plan.stages:
            if stage.name in record.done:
                continue
            outcome, reason = self._stage(plan, stage, stop)
            if outcome != "done":
                return outcome, reason
            record.done.append(stage.name)
            plan.folder.write(record)
        return "done", ""

    def _stage(self, plan: Plan, stage: Stage, stop: threading.Event) -> tuple[Outcome, str]:
        """Run one program to its end, again where it was killed; returns how that went, and why."""
        while True:
            log.info("stage", job=self._taken.job.id, stage=stage.name)
            self._counts.stage = stage.name
            self._fields["stage"] = stage.name
            program = Program(self._command(*stage.command()))
            try:
                answer = self._follow(plan, stage, program, stop)
            finally:
                program.stop(STOP_S)
                self._collect(stage, program)
            if answer is not None:
                return answer, ""
            code = program.poll()
            if code == 0:
                return "done", ""
            if code is not None and 0 < code != KILLED:
                return "failed", f"{stage.name}: {program.reason() or f'exit code {code}'}"
            self._attempts += 1
            if self._attempts > self._settings.max_attempts:
                return "failed", self._given_up(f"{stage.name} was killed ({code})")
            self._fields["attempts"] = self._attempts
            self._counts.restarts += 1
            log.warning("program was killed, started again", job=self._taken.job.id, stage=stage.name, code=code)

    def _follow(
        self, plan: Plan, stage: Stage, program: Program, stop: threading.Event
    ) -> Literal["interrupted", "cancelled", "lost"] | None:
        """Watch a program; returns None when it ended by itself, else why it is to be stopped."""
        while program.poll() is None:
            self._collect(stage, program)
            self._progress(plan)
            answer = self._say()
            if answer == "lost":
                return "lost"
            if answer == "cancel":
                return "cancelled"
            self._each_tick()
            if stop.wait(TICK_S):
                return "interrupted"
        self._progress(plan)
        return None

    def _collect(self, stage: Stage, program: Program) -> None:
        self._lines += [LogLine("", stage.name, line) for line in program.lines()]
        shed, program.shed = program.shed, 0
        while len(self._lines) > HELD_LINES:
            self._lines.popleft()
            shed += 1
        if shed:
            self._shed += shed
            self._counts.lines_shed += shed
            self._fields["lines_shed"] = self._shed

    def _progress(self, plan: Plan) -> None:
        epoch, row = newest_row(plan.folder.results)
        if epoch != self._counts.epoch:
            self._counts.epoch = epoch
            self._fields |= {"epoch": epoch, "row": json.dumps(row)}
        if epoch > self._reached:  # it gets on, and does not only repeat an epoch that was lost
            self._reached, self._attempts = epoch, 0
            self._fields["attempts"] = 0

    def _say(self, *, now: bool = False) -> Literal["ours", "cancel", "lost"]:
        if not now and time.monotonic() - self._said_s < SAY_EVERY_S:
            return "ours"
        self._said_s = time.monotonic()
        try:
            answer = self._queue.say(self._taken, self._fields, self._lines)
        except RedisAway:
            return "ours"  # as far as we know; nobody can take it from us while Redis is away
        self._fields = {}
        self._lines.clear()
        return answer

    def _interrupted(self) -> Outcome:
        """It stays ours, and goes on when a trainer of our name starts, or another has waited long enough."""
        log.info("job interrupted", job=self._taken.job.id)
        # Being told to stop is no sign of anything wrong with the job.
        self._fields |= {"state": "interrupted", "attempts": max(0, self._attempts - 1)}
        if self._queue.connected:
            self._say(now=True)
        return "interrupted"

    def _end(self, state: State, error: str, stop: threading.Event) -> Outcome:
        """Tell Redis, however long that takes."""
        told = log.info if state == "done" else log.warning
        told("job ended", job=self._taken.job.id, state=state, **({"error": error} if error else {}))
        while True:
            try:
                self._queue.say(self._taken, {}, self._lines)
                self._lines.clear()
                answer = self._queue.end(self._taken, state, {**self._fields, "error": error})
                return "lost" if answer == "lost" else state
            except RedisAway:
                self._each_tick()
                if stop.wait(SAY_EVERY_S):
                    return "interrupted"

    def _given_up(self, what: str) -> str:
        return (
            f"{what} {self._settings.max_attempts} times without finishing an epoch: is there enough memory? "
            "A smaller batch_size or img takes less"
        )
