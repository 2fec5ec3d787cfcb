"""A detector worker's process: its cores, its model, its place at the broker, its outbox."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable

import structlog

from detector.claims import claim_cores
from detector.detector import Detector
from detector.worker import Worker
from services.config import Config
from services.follow import Follower, capacity, first_detector
from services.link import link_keys, shared_rings
from services.process import EXIT_BUG, EXIT_OK
from wire import metrics
from wire.consumer import WorkSource
from wire.health import Health
from wire.outbox import Outbox, OutboxStats
from wire.redis_link import connect

log = structlog.get_logger()

LOOK_UP_S = 0.2
REPORT_S = 0.5  # well within the age at which a health report counts as stale
# A worker that replaces a dead one may start while the kernel still holds the dead one's claim.
CLAIM_WAIT_S = 0.5
# Of the five seconds in which a process has to stop: for the batch in hand, for the outbox, and for the last message.
FINISH_S, FLUSH_S, GOODBYE_S = 1.5, 2.0, 0.1
COMPILE_ALLOWANCE_S = 60.0  # on top of the trial's own limit


def run(config: Config, stop: threading.Event, health: Health) -> None:
    """Claim cores, load the model, work until `stop`."""
    settings = config.detector
    link_keys(config, "client")  # refuses an impossible link now, and not after the model was loaded
    with claim_cores(config.runtime_dir / "cores", settings.cores_per_worker, wait_s=CLAIM_WAIT_S) as claim:
        claim.pin()
        detector, runs = _load_model(config, stop, health)
        cores = ",".join(str(core.number) for core in claim.cores)
        _work(config, detector, stop, health, runs=runs, cores=cores)


def _load_model(config: Config, stop: threading.Event, health: Health) -> tuple[Detector, str]:
    """The detector to begin with, and which model it is (as `wire.deployment.key_of` tells them apart)."""
    health.set("starting", doing="loading the model")
    loaded = threading.Event()
    keep_alive = threading.Thread(target=_beat, args=(loaded, stop, health), daemon=True)
    keep_alive.start()
    try:
        detector, runs = first_detector(config)
    finally:
        loaded.set()
        keep_alive.join()
    facts = detector.describe()
    log.info("worker ready", **{key: facts[key] for key in ("model", "engine", "head", "input", "rectangular")})
    return detector, runs


def _work(config: Config, detector: Detector, stop: threading.Event, health: Health, *, runs: str, cores: str) -> None:
    source = WorkSource(
        config.workers_endpoint,
        detector.spec,
        capacity=capacity(config, detector),
        stuck_s=config.detector.inference_timeout_s,
        on_stuck=_end_hung_process,
        rings=shared_rings(config),
        curve=link_keys(config, "client"),
    )
    worker = Worker(
        detector,
        source,
        max_age_ms=config.link.max_age_ms,
        # Twice: raw heads that fail at one shape are followed by a trial of the decoded output.
        compile_s=2 * config.detector.trial_timeout_s + COMPILE_ALLOWANCE_S,
        observe=metrics.observe,
    )
    outbox = Outbox(
        lambda: connect(config.redis, config.redis_url),
        config.redis.outbox,
        maxlen=config.redis.detections_maxlen,
        on_published=worker.published,
        on_shed=worker.shed,
    )
    follower = Follower(config, worker, source.name, runs)
    follower.start()

    def tell(stats: OutboxStats) -> None:
        set_health(health, worker, follower, cores, stats, link=source.trouble)

    unexport = metrics.export_counts(lambda: _counts(worker, source, follower, outbox.stats()))
    reporter = threading.Thread(target=_report, args=(stop, lambda: tell(outbox.stats())), name="health", daemon=True)
    reporter.start()
    ending = threading.Lock()  # whoever has it ends the process's work
    finished = threading.Event()

    def leave_unfinished() -> None:
        """An engine that compiles cannot be interrupted: leave without what is in hand, and promise nothing of it."""
        stop.wait()
        if finished.wait(FINISH_S) or not ending.acquire(blocking=False):
            return
        log.warning("stopped amid a frame: another worker is given it")
        source.leave()  # first: what the broker hears of it from now on does not count
        tell(outbox.close(FLUSH_S))
        time.sleep(GOODBYE_S)  # should nothing have been left to flush: ZeroMQ's thread sends it
        health.close()
        os._exit(EXIT_OK)

    threading.Thread(target=leave_unfinished, name="leave", daemon=True).start()
    try:
        worker.run(outbox, stop)
    finally:
        finished.set()
        stop.set()
        ending.acquire()
        follower.stop()
        stats = outbox.close(FLUSH_S)
        source.close()
        reporter.join()
        unexport()
        tell(stats)


def _end_hung_process(busy_s: float) -> None:
    # The engine's thread cannot be stopped from here; the supervisor starts a new process, the broker has the frame.
    log.error("inference hangs: ending this worker", busy_s=round(busy_s, 1))
    os._exit(EXIT_BUG)


def _beat(done: threading.Event, stop: threading.Event, health: Health) -> None:
    """Keep the report fresh while the main thread is busy with the model, and end the process if it is to stop."""
    while not done.wait(LOOK_UP_S):
        health.beat()
        if stop.is_set():  # an engine cannot be interrupted, and a worker without a model has promised nothing yet
            health.close()
            os._exit(EXIT_OK)


def _report(stop: threading.Event, tell: Callable[[], None]) -> None:
    while not stop.wait(REPORT_S):
        tell()


def set_health(
    health: Health, worker: Worker, follower: Follower, cores: str, outbox: OutboxStats, *, link: str = ""
) -> None:
    """Say how the worker is: degraded without its model, while detections do not reach Redis, or `link` has a fault."""
    detector = worker.detector
    trouble = follower.trouble or detector.refusal
    astray = {"model_error": trouble} if trouble else {}
    if outbox.trouble:
        astray["redis_error"] = outbox.trouble
    if link:
        astray["link_error"] = link
    health.set(
        "degraded" if astray else "ok",
        cores=cores,
        model=detector.model_name,
        sha256=detector.model.sha256,
        engine=detector.choice.engine,
        **astray,
        detected=worker.stats.detected,
        failed=worker.stats.failed,
        stale=worker.stats.stale,
        inference_ms=round(worker.stats.last_inference_ms, 2),
        published=outbox.published,
        unpublished=outbox.held,
        shed=outbox.shed,
        detections_cut=outbox.cut,
    )


def _counts(worker: Worker, source: WorkSource, follower: Follower, outbox: OutboxStats) -> Iterable[metrics.Count]:
    model = {"model": worker.detector.model_name, "sha256": worker.detector.model.sha256[:16]}
    yield metrics.Count("sparsecam_worker_model", "1 for the model in use.", 1, model, gauge=True)
    yield metrics.Count("sparsecam_worker_model_changes", "Models taken up while running.", follower.changes)
    yield metrics.Count("sparsecam_worker_detected", "Frames inferred.", worker.stats.detected)
    yield metrics.Count("sparsecam_worker_failed", "Frames that the engine refused.", worker.stats.failed)
    yield metrics.Count("sparsecam_worker_stale", "Frames too old when their turn came.", worker.stats.stale)
    yield metrics.Count("sparsecam_worker_no_pixels", "Frames whose shared memory it does not see.", source.unseen)
    yield metrics.Count("sparsecam_worker_malformed", "Messages that made no sense.", source.malformed)
    yield metrics.Count("sparsecam_outbox_published", "Records in Redis.", outbox.published)
    yield metrics.Count("sparsecam_outbox_repeated", "Records that Redis had already.", outbox.repeated)
    yield metrics.Count("sparsecam_outbox_shed", "Records given up from a full outbox.", outbox.shed)
    yield metrics.Count("sparsecam_outbox_refused", "Records that Redis will never take.", outbox.refused)
    yield metrics.Count("sparsecam_outbox_held", "Records waiting for Redis.", outbox.held, gauge=True)
    yield metrics.Count("sparsecam_outbox_reconnects", "Connections made anew.", outbox.reconnects)
    yield metrics.Count("sparsecam_outbox_detections_cut", "Detections removed early: the memory was full.", outbox.cut)
