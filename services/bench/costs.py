"""What a detected frame costs beside the engine: kept from this machine's last `bench pipeline`, for `plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import Struct

from detector import verdicts
from detector.settings import DetectorSettings

# For a machine that has not measured its own.
BUILT_IN_SOURCE = (
    "built in, measured on a 2-core AVX512-VNNI server; `sparsecam bench pipeline` measures this machine's"
)


# Caches and clock shared with another busy program made a frame's CPU time up to a fifth longer here.
MOST_OTHERS_CORES = 0.25


class FrameCosts(Struct, frozen=True):
    """CPU milliseconds a detected frame, decoding and the engine left out."""

    send: float  # in ingest beside decoding and letterbox: clock, books, the way to the broker
    broker: float
    worker: float  # tensor, head, NMS, encoding and publishing, on the worker's own core; not the engine
    valkey: float
    sink: float
    source: str


BUILT_IN = FrameCosts(send=0.5, broker=0.45, worker=1.1, valkey=0.23, sink=0.28, source=BUILT_IN_SOURCE)


def keep_costs(document: dict[str, Any]) -> None:
    """Keep the costs that a benchmark has just measured, if they are good for anything."""
    if costs := costs_of(document):
        verdicts.write(_folder(), _key(), costs)


def costs_of(document: dict[str, Any]) -> FrameCosts | None:
    """The costs in a benchmark's result; None when it saw few frames or shared the machine with others."""
    cpu_ms = document["cpu_ms_per_frame"]
    disturbed = document["others_cores"] > MOST_OTHERS_CORES
    if disturbed or document["frames"] < 500 or not {"broker", "detector", "valkey", "sink"} <= cpu_ms.keys():
        return None
    return FrameCosts(
        # Its share of ingest's time depends on the source's size, so it is not told apart there.
        send=BUILT_IN.send,
        broker=cpu_ms["broker"],
        worker=round(max(0.0, cpu_ms["detector"] - document["engine_cpu_ms_per_frame"]), 3),
        valkey=cpu_ms["valkey"],
        sink=cpu_ms["sink"],
        source=document["command"],
    )


def known_costs() -> FrameCosts:
    """This machine's own, else the built-in ones."""
    return verdicts.read(_folder(), _key(), FrameCosts) or BUILT_IN


def _key() -> str:
    return verdicts.key("frame-costs", 2)


def _folder() -> Path | None:
    return DetectorSettings().cache_dir
