"""The trainer process: takes training jobs from Redis, one at a time, and publishes the models."""

from __future__ import annotations

import fcntl
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
import structlog

from services.child import sparsecam
from services.config import Config
from services.jobs.arguments import JobError
from services.jobs.runner import Command, Counts, JobRun, Outcome
from wire import metrics
from wire.health import Health
from wire.job_queue import RETRY_S, JobQueue
from wire.redis_link import RedisAway, connect

log = structlog.get_logger()

WAIT_S = 1.0  # for a job, before `stop` and health are looked at


def run(config: Config, stop: threading.Event, health: Health, *, command: Command = sparsecam) -> None:
    """Work on jobs until `stop`; raises JobError where the settings lack something."""
    settings = config.trainer
    if settings.data_dir is None or not settings.data_dir.is_dir():
        raise JobError(
            f"trainer.data_dir {str(settings.data_dir or '')!r} is no folder; expected the one below which jobs may "
            "name data sets, checkpoints and recipes"
        )

    def connection() -> redis.Redis:
        return connect(config.redis, config.redis_url)

    name = settings.name or socket.gethostname()
    queue = JobQueue(connection, name, takeover_s=settings.takeover_s, log_lines=settings.log_lines)
    counts = Counts()

    def report() -> None:
        health.set(
            "ok" if queue.connected else "degraded",
            redis="connected" if queue.connected else "away",
            job=counts.job,
            stage=counts.stage,
            epoch=counts.epoch,
            done=counts.left["done"],
            failed=counts.left["failed"],
            cancelled=counts.left["cancelled"],
        )

    told = False
    with _alone(settings.runs), _exported(queue, counts):
        while not stop.is_set():
            report()
            try:
                taken = queue.take(WAIT_S)
                told = False
            except RedisAway as error:
                if not told:
                    log.warning("redis away: no jobs are taken", reason=str(error))
                    told = True
                stop.wait(RETRY_S)
                continue
            if taken is not None:
                folder = config.registry.folder
                JobRun(taken, settings, folder, queue, counts, command=command, each_tick=report).run(stop)
        report()
        queue.close()


@contextmanager
def _alone(runs: Path) -> Iterator[None]:
    """Hold the folder of runs for this process, so that no two trainers write into one run; raises JobError."""
    runs.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (runs / ".trainer.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise JobError(
                f"trainer.runs_dir {runs} is in use by another trainer; stop that one, or give this one a folder and a "
                "name of its own"
            ) from None
        yield


@contextmanager
def _exported(queue: JobQueue, counts: Counts) -> Iterator[None]:
    unexport = metrics.export_counts(lambda: _counts(queue, counts))
    try:
        yield
    finally:
        unexport()


def _counts(queue: JobQueue, now: Counts) -> Iterable[metrics.Count]:
    ways: tuple[Outcome, ...] = ("done", "failed", "cancelled", "interrupted", "lost")
    for way in ways:
        labels: dict[str, str] = {"state": way}
        yield metrics.Count("sparsecam_trainer_jobs", "Jobs that this trainer left, by how.", now.left[way], labels)
    yield metrics.Count("sparsecam_trainer_busy", "1 while there is a job.", int(bool(now.job)), gauge=True)
    yield metrics.Count("sparsecam_trainer_epoch", "Epochs that the job has finished.", now.epoch, gauge=True)
    yield metrics.Count("sparsecam_trainer_restarts", "Programs started again after they were killed.", now.restarts)
    yield metrics.Count("sparsecam_trainer_lines_shed", "Lines of output left out of jobs' logs.", now.lines_shed)
    yield metrics.Count("sparsecam_trainer_malformed", "Entries that are no jobs.", queue.malformed)
    yield metrics.Count("sparsecam_trainer_reconnects", "Connections to Redis lost.", queue.losses)
