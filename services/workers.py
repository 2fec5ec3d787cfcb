"""How many detector workers a host runs."""

from __future__ import annotations

from detector.cores import topology
from detector.cores import worker_count as workers_that_fit
from services.config import Config


def worker_count(config: Config) -> int:
    """Workers to start: none without a model, the number given, or as many as the usable physical cores hold."""
    settings = config.detector
    return workers_that_fit(settings.workers, settings.cores_per_worker, topology()) if settings.model else 0
