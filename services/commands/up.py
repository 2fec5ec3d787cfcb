"""`sparsecam up`: all processes of one host."""

from __future__ import annotations

import threading
from pathlib import Path

import structlog

from services.config import Config, no_config, places
from services.config_incidents import short_merges
from services.model_classes import refuse_unknown_classes
from services.model_names import refuse_unknown_model
from services.process import LogOptions, catch_signals, die_with_parent
from services.redis_memory import too_small
from services.supervisor import ROLES, Supervisor
from services.workers import worker_count
from wire.logs import setup_logs

log = structlog.get_logger()


def up(config: Config, path: Path | None, logs: LogOptions) -> int:
    """Run until SIGTERM or Ctrl-C, or until a process cannot run as configured; returns the exit code.

    Raises ConfigError where no config is found and the environment brings no cameras either, for a model that nobody
    has by its name, and for rules that name a class the model does not have.
    """
    if path is None and not config.cameras:
        raise no_config()
    stop = threading.Event()
    die_with_parent()
    catch_signals(stop)
    setup_logs(logs.level, logs.format, process="up" if logs.format == "json" else "")
    refuse_unknown_model(config, path)
    refuse_unknown_classes(config, path)
    workers = worker_count(config)
    log.info(
        "starting",
        config=str(path) if path else "defaults",
        cameras=len(config.cameras),
        rules=len(config.rules),
        workers=workers,
    )
    # To be copied into whatever follows the alerts; a password in it is not shown.
    log.info("redis", url=config.redis_url, embedded=config.embeds_valkey)
    _warn_of_gaps(config, path)
    roles = ROLES if workers else tuple(role for role in ROLES if role != "detector")
    with Supervisor(config, path, workers=workers, roles=roles, logs=logs) as supervisor:
        code = supervisor.run(stop)
        log.info("stopping")
    log.info("stopped")
    return code


def _warn_of_gaps(config: Config, path: Path | None) -> None:
    """What is allowed, but hardly meant: a config may lack what makes alerts, or make too many of one thing."""
    if not config.cameras:
        log.warning("no cameras, so nothing is watched: write one under `cameras` in the config")
    if not config.detector.model:
        log.warning("no model: frames are dropped as no_model until detector.model names an ONNX file")
    if not config.rules:
        log.warning("no rules: detections go to Redis, but nothing makes alerts of them; write one under `rules`")
    for problem in short_merges(config, places(path)):
        log.warning(str(problem))
    if text := too_small(config):
        log.warning(f"redis.memory_mb: {text}")
