"""A detector worker follows the deployment: runs the model it names, says how it fares, and moves the deployment on.

Every worker decides alike (services/rollout.py) and the first one is heard, so a deployment goes on without whoever
asked for it. While Redis is away nothing changes: the worker goes on with the model it has.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable

import redis
import structlog

from detector.detector import Detector
from detector.errors import DetectorError, ModelError
from detector.swap import Beside, load_deployed
from detector.worker import Worker
from services.config import Config
from services.model_names import detector_settings
from services.rollout import advance
from trainer.errors import RegistryError
from wire.deployment import (
    FRESH_S,
    Deployment,
    ModelRef,
    Standing,
    Tally,
    WorkerReport,
    key_of,
    leave,
    read_standing,
    replace,
    report,
)
from wire.logs import redact
from wire.messages import FrameHeader, WireError
from wire.redis_link import Link, RedisAway, connect
from wire.redis_url import RedisUrlError

log = structlog.get_logger()

TICK_S = 0.25  # while models change
IDLE_TICK_S = 1.0  # a wish is noticed within a second; asking costs a third of a millisecond
AWAY_S = 2.0  # between two attempts to reach Redis
RETRY_S = 30.0  # a model that could not be loaded, outside of a deployment: its file may have come back
STOP_S = 1.0  # a call to Redis may be under way

_AWAY = (redis.RedisError, RedisAway, RedisUrlError, OSError)


def capacity(config: Config, detector: Detector) -> int:
    """Frames that a worker holds at once: a batch in inference, the next at hand."""
    return max(config.link.worker_credit, 2 * detector.batch)


def first_detector(config: Config) -> tuple[Detector, str]:
    """The detector that a worker begins with, and its key: the deployed model's, else the config's own.

    A deployed model that cannot be loaded is an error in the log; detecting with the config's own is better than not
    at all. Raises what `Detector.load` raises for that one, and RegistryError.
    """
    deployed = _deployed(config)
    if deployed is not None:
        log.info("deployed model in the place of detector.model", model=deployed.name, configured=config.detector.model)
        try:
            return _load(config, deployed), deployed.sha256
        except DetectorError as error:
            log.error("the deployed model cannot be loaded; beginning with detector.model", error=str(error))
    settings = detector_settings(config)
    return Detector.load(settings, settings.cores_per_worker), ""


def _load(config: Config, wanted: ModelRef | None, sources: Iterable[FrameHeader] = ()) -> Detector:
    """See `load_deployed`. The config's own model may have left the registry while it ran: only going back to it
    (`wanted` None) asks for it, and is then a ModelError."""
    try:
        settings = config.detector if wanted is not None else detector_settings(config)
    except RegistryError as error:
        raise ModelError(str(error)) from error
    return load_deployed(settings, wanted, settings.cores_per_worker, sources)


def _deployed(config: Config) -> ModelRef | None:
    try:
        link = Link(connect(config.redis, config.redis_url))
        try:
            deployment = read_standing(link).deployment
        finally:
            link.close()
    except (*_AWAY, WireError) as error:
        log.warning("cannot ask which model is deployed; beginning with detector.model", reason=redact(str(error)))
        return None
    return deployment.current if deployment else None


class Follower:
    """One worker's part in deployments, on a thread of its own."""

    def __init__(self, config: Config, worker: Worker, name: str, runs: str) -> None:
        """`runs` is the key of the model that the worker has now."""
        self.changes = 0
        self.trouble = ""  # why the worker does not run the model that it should
        self._config = config
        self._worker = worker
        self._name = name
        self._host = socket.gethostname()
        self._runs = runs
        self._kept: dict[str, Detector] = {}  # to go back to without loading, until a deployment has settled
        self._beside = Beside()
        self._changing: tuple[str, Detector] | None = None  # handed to the worker, not taken up yet
        self._before: Tally | None = None
        self._period = ""
        self._failed: tuple[str, str, float] | None = None  # deployment, model and when it could not be loaded
        self._link: Link | None = None
        self._deciding_from_s = 0.0
        self._ticked_s = float("-inf")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="deployment", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Say goodbye, so that this worker is not taken for dead."""
        self._stop.set()
        self._thread.join(STOP_S)

    def _run(self) -> None:
        wait_s = 0.0
        while not self._stop.wait(wait_s):
            try:
                wait_s = self._tick()
            except (*_AWAY, WireError) as error:
                if self._link is not None:
                    log.info("deployments are not followed for now", reason=redact(str(error)))
                self._drop_link()
                wait_s = AWAY_S
            except Exception:  # a worker that no longer follows is taken for dead, and every deployment then fails
                log.exception("unexpected error while following deployments")
                wait_s = AWAY_S
        if self._link is not None:
            try:
                leave(self._link, self._name)
            except _AWAY as error:
                log.info("could not say goodbye", reason=redact(str(error)))
            self._drop_link()

    def _drop_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def _tick(self) -> float:
        """One look; returns the seconds to the next."""
        if self._link is None:
            self._link = Link(connect(self._config.redis, self._config.redis_url))
        now_s = time.monotonic()
        if now_s - self._ticked_s > FRESH_S / 2:
            # Redis was away, or the whole machine slept: all reports are old, and nobody is dead for that.
            self._deciding_from_s = now_s + FRESH_S
        self._ticked_s = now_s
        standing = read_standing(self._link)
        deployment = standing.deployment
        if deployment is not None and now_s >= self._deciding_from_s:
            deployment = self._move_on(self._link, standing, deployment)
        if deployment is not None:
            self._follow(deployment)
        report(self._link, self._report(standing.now_us, deployment), standing)
        busy = self._beside.loading or self._changing is not None
        return TICK_S if busy or (deployment is not None and deployment.phase != "settled") else IDLE_TICK_S

    def _move_on(self, link: Link, standing: Standing, deployment: Deployment) -> Deployment:
        moved = advance(deployment, standing.reports, standing.now_us)
        if moved is deployment or not replace(link, standing, moved):
            return deployment  # as it was, or somebody was quicker: the next look shows it
        log.info("deployment", id=moved.id, phase=moved.phase, worker=moved.turn or moved.canary, reason=moved.reason)
        return moved

    def _follow(self, deployment: Deployment) -> None:
        self._note_change()
        self._note_loaded(deployment)
        if deployment.phase == "canary" and self._period != deployment.id and self._changing is None:
            # From now on the canary and the others are counted over the same time.
            self._period = deployment.id
            if deployment.canary != self._name:
                self._worker.recount()
        wanted = deployment.model_for(self._name, self._runs)
        if key_of(wanted) == self._runs:
            self.trouble = ""
            if deployment.phase == "settled":
                self._settle()
        elif self._changing is None:
            self._obtain(deployment, wanted)

    def _obtain(self, deployment: Deployment, wanted: ModelRef | None) -> None:
        """Take up a model: from memory, or once it is loaded."""
        key = key_of(wanted)
        if key in self._kept:
            self._change(key, self._kept.pop(key))
            return
        if self._beside.loading or self._failed_lately(deployment, key):
            return
        sources = list(self._worker.sources.values())
        self._before = self._worker.tally.copy()
        log.info("loading a model beside", model=wanted.name if wanted else self._config.detector.model)
        self._beside.start(key, lambda: _load(self._config, wanted, sources))

    def _failed_lately(self, deployment: Deployment, key: str) -> bool:
        if self._failed is None or self._failed[:2] != (deployment.id, key):
            return False
        return deployment.phase != "settled" or time.monotonic() - self._failed[2] < RETRY_S

    def _note_loaded(self, deployment: Deployment) -> None:
        """What was loaded beside is taken up, if it is still wanted."""
        loaded = self._beside.take()
        if loaded is None:
            return
        key, outcome = loaded
        wanted = deployment.model_for(self._name, self._runs)
        if key != key_of(wanted):
            return  # of a deployment that has ended meanwhile: its failure is not this one's
        if isinstance(outcome, DetectorError):
            log.error("model not taken up", error=str(outcome))
            self._failed = (deployment.id, key, time.monotonic())
            self.trouble = str(outcome)
        else:
            self._change(key, outcome)

    def _change(self, key: str, detector: Detector) -> None:
        self._kept[self._runs] = self._worker.detector
        self._changing = key, detector
        self._worker.change(detector)

    def _note_change(self) -> None:
        """The worker changes between two frames; until it has, the model before is told of."""
        if self._changing is not None and self._worker.detector is self._changing[1]:
            self._runs = self._changing[0]
            self._changing = None
            self._period = ""
            self.changes += 1

    def _settle(self) -> None:
        """All run the same: what was kept to go back to is let go, and ingest is asked for what this model wants."""
        self._kept.clear()
        self._worker.settle()
        detector = self._worker.detector
        wanted = capacity(self._config, detector)
        # Models of one input differ in what they hold: more than a batch and the next would only grow old here.
        if (self._worker.asked_for, self._worker.capacity) != (detector.spec, wanted):
            self._worker.announce(wanted)

    def _report(self, now_us: int, deployment: Deployment | None) -> WorkerReport:
        model = self._worker.detector.model
        failed = self._failed is not None and deployment is not None and self._failed[0] == deployment.id
        return WorkerReport(
            worker=self._name,
            host=self._host,
            at_us=now_us,
            model=model.name,
            sha256=model.sha256,
            runs=self._runs,
            tally=self._worker.tally.copy(),
            period=self._period,
            before=self._before,
            loading=self._beside.loading,
            failed_deployment=deployment.id if failed and deployment else "",
            error=self.trouble if failed else "",
        )
