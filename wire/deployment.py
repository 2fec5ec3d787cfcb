"""Which model the detector workers are to run: one record in Redis, and beside it what each worker says of itself.

Keys: `sparsecam:model`, the Deployment as it stands now (MessagePack); `sparsecam:model:workers`, a hash of
WorkerReports by worker. Whoever changes the Deployment does so by comparing and setting, so that of several who see
the same need one succeeds. All times are the Redis server's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from msgspec import Struct

from wire.messages import WireError, decode, decoder, encode
from wire.redis_link import Link

DEPLOYMENT = "sparsecam:model"
WORKERS = "sparsecam:model:workers"

FRESH_S = 5.0  # a worker reports at least once a second; after five it is taken for dead
FORGOTTEN_S = 120.0  # reports of dead workers are kept so long that everybody has seen that they died

# Latencies are counted in buckets 5 % apart, from 0.1 ms to 100 s: much finer than what is decided by them.
_LEAST_MS, _STEP, _BUCKETS = 0.1, 1.05, 284
# A worker's counts forget by half at this many frames: minutes of a busy worker, so that they tell of today.
_REMEMBERED_FRAMES = 10_000

Phase = Literal[
    "loading",  # one worker, the canary, loads the wanted model
    "canary",  # it detects with it, and is compared
    "rolling",  # the others change, one by one
    "returning",  # all go back to the current one
    "settled",  # all run, or are to run, the current one
]


class ModelRef(Struct, frozen=True, array_like=True):
    """A model file: where it lies on every host of the workers, and what it must contain."""

    name: str  # for people
    path: str
    sha256: str


class Tally(Struct, array_like=True):
    """What one worker did with one model since some instant."""

    frames: int = 0
    failed: int = 0  # of frames that the engine refused
    detections: int = 0
    buckets: list[int] = msgspec.field(default_factory=lambda: [0] * _BUCKETS)

    def add(self, ms: float, frames: int, detections: int) -> None:
        """Count frames that took `ms` each, with so many detections in all."""
        self.frames += frames
        self.detections += detections
        place = int(math.log(max(ms, _LEAST_MS) / _LEAST_MS, _STEP))
        self.buckets[min(place, _BUCKETS - 1)] += frames
        if self.frames >= _REMEMBERED_FRAMES:
            self.buckets = [count // 2 for count in self.buckets]
            self.frames, self.failed, self.detections = sum(self.buckets), self.failed // 2, self.detections // 2

    def copy(self) -> Tally:
        """As it is now; another thread may go on counting in this one."""
        return Tally(self.frames, self.failed, self.detections, list(self.buckets))

    def quantile_ms(self, share: float) -> float:
        """The time a frame that this share of the frames (0..1) did not exceed, to 3 %; 0 without frames."""
        wanted = share * sum(self.buckets)
        seen = 0
        for place, count in enumerate(self.buckets):
            seen += count
            if count and seen >= wanted:
                return round(_LEAST_MS * float(_STEP ** (place + 0.5)), 3)
        return 0.0

    @property
    def failed_share(self) -> float:
        """Of all frames begun, those that failed (0..1)."""
        return self.failed / max(1, self.frames + self.failed)


def total(tallies: list[Tally]) -> Tally:
    """All of them together."""
    buckets = [sum(counts) for counts in zip(*(tally.buckets for tally in tallies), strict=True)]
    return Tally(
        sum(tally.frames for tally in tallies),
        sum(tally.failed for tally in tallies),
        sum(tally.detections for tally in tallies),
        buckets or [0] * _BUCKETS,
    )


class Figures(Struct, frozen=True, array_like=True):
    """One side of a comparison, in numbers for people."""

    frames: int
    failed: int
    p50_ms: float
    p99_ms: float
    detections_per_frame: float


def figures(tally: Tally) -> Figures:
    """What a tally says."""
    each = round(tally.detections / tally.frames, 3) if tally.frames else 0.0
    return Figures(tally.frames, tally.failed, tally.quantile_ms(0.5), tally.quantile_ms(0.99), each)


class Comparison(Struct, frozen=True, array_like=True):
    """The canary with the wanted model, beside others at the same time or, where it is alone, itself before."""

    canary: Figures
    others: Figures
    against: Literal["others", "itself before"]


class Deployment(Struct, frozen=True, tag="deployment.1"):
    """The wish, and how far it has come. `None` for a model: the one that each worker's own config names."""

    id: str
    wanted: ModelRef | None
    current: ModelRef | None = None
    phase: Phase = "settled"
    begun_us: int = 0  # when the wish was made
    since_us: int = 0  # when the phase began, or the turn
    canary: str = ""  # the worker that goes first
    turn: str = ""  # the worker that changes now
    canary_s: float = 0.0
    max_latency_ratio: float | None = None  # None: latency is told and decides nothing
    outcome: Literal["", "deployed", "rolled back"] = ""
    reason: str = ""  # of rolling back
    comparison: Comparison | None = None
    backward: bool = False  # going back to the last of these
    history: list[ModelRef | None] = []  # the models that were current before, the oldest first

    def model_for(self, worker: str, runs: str) -> ModelRef | None:
        """The model that this worker is to run; `runs` says what it runs now (see `key_of`)."""
        if self.phase in ("loading", "canary"):
            return self.wanted if worker == self.canary else self.current
        if self.phase == "rolling" and (worker == self.turn or runs == key_of(self.wanted)):
            return self.wanted
        return self.current


def key_of(model: ModelRef | None) -> str:
    """What tells models apart: the hash of the file, empty for the model of the worker's own config."""
    return model.sha256 if model else ""


class WorkerReport(Struct, frozen=True, tag="worker.1"):
    """What one worker says of itself, once a second or more often."""

    worker: str
    host: str
    at_us: int
    model: str  # file name
    sha256: str
    runs: str  # as `key_of` gives it
    tally: Tally  # since it took up the model, or since `period` began
    period: str = ""  # the deployment whose canary it is compared with
    before: Tally | None = None  # with the model before, up to the moment in which it began to load this one
    loading: bool = False
    failed_deployment: str = ""  # the deployment whose model it cannot run,
    error: str = ""  # and why

    def is_fresh(self, now_us: int) -> bool:
        """Whether the worker lives, as far as its report tells."""
        return now_us - self.at_us <= FRESH_S * 1e6


@dataclass(frozen=True)
class Standing:
    """What Redis holds at one instant."""

    deployment: Deployment | None
    raw: bytes  # the deployment as it is stored: what a change must find unchanged
    reports: dict[str, WorkerReport]
    now_us: int


_deployment = decoder(Deployment)
_report = decoder(WorkerReport)

_REPLACE = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""


def read_standing(link: Link) -> Standing:
    """The deployment and all reports; reports that cannot be read are left out.

    Raises redis.RedisError or OSError when the connection is lost, WireError for a deployment of another version.
    """
    (at, raw, fields) = link.ask(("TIME",), ("GET", DEPLOYMENT), ("HGETALL", WORKERS))
    reports = {}
    for payload in fields[1::2]:
        try:
            report = decode(_report, payload)
        except WireError:  # of another version: it cannot be reckoned with
            continue
        reports[report.worker] = report
    deployment = decode(_deployment, raw) if raw else None
    return Standing(deployment, raw or b"", reports, int(at[0]) * 1_000_000 + int(at[1]))


def replace(link: Link, standing: Standing, deployment: Deployment) -> bool:
    """Store a deployment in the place of the one that was read; False when somebody was quicker."""
    (done,) = link.ask(("EVAL", _REPLACE, 1, DEPLOYMENT, standing.raw, encode(deployment)))
    return bool(done)


def report(link: Link, mine: WorkerReport, standing: Standing) -> None:
    """Store a worker's report, and remove those of workers long dead."""
    old = [one.worker for one in standing.reports.values() if standing.now_us - one.at_us > FORGOTTEN_S * 1e6]
    commands: list[tuple[Any, ...]] = [("HSET", WORKERS, mine.worker, encode(mine))]
    if old:
        commands.append(("HDEL", WORKERS, *old))
    link.ask(*commands)


def leave(link: Link, worker: str) -> None:
    """A worker stops in good order, and is not to be taken for dead."""
    link.ask(("HDEL", WORKERS, worker))
