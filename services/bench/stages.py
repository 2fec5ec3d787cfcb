"""Where a frame's time goes, from the detection records in Redis: each carries the stamps of its way.

publish ends with the entry in the stream; the id of an entry is Valkey's clock in whole milliseconds, so half a
millisecond is added to each and the figure is good to that.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

import redis

from services.bench.figures import Summary, stage_summary
from wire.messages import DetectionRecord, decode, decoder
from wire.streams import detections_key

_Entries = list[tuple[bytes, dict[bytes, bytes]]]

HOW = {
    "capture": "packet received to picture handed to the link: decode, letterbox; ingest's Prometheus histogram, "
    "interpolated within its buckets",
    "queue": "packet received to dispatch by the broker, capture included; stamps of each detection record",
    "at_worker": "dispatch to start of inference: the way to the worker, and its wait behind the frame before",
    "inference": "start to end: tensor, engine, head, NMS; stamps of each detection record",
    "publish": "end of inference to the entry in the Redis stream, by its id (whole milliseconds, +-0.5 ms)",
    "age": "packet received to the entry in the Redis stream; of files at full speed it is mostly the wait for room",
}


@dataclass
class Stages:
    """Samples of all frames whose inference ended within the window."""

    samples_ms: dict[str, list[float]] = field(
        default_factory=lambda: {name: [] for name in ("queue", "at_worker", "inference", "publish", "age")}
    )
    detected: Counter[str] = field(default_factory=Counter)  # frames by camera
    boxes: int = 0
    # By worker and start of inference: frames that were inferred together.
    together: Counter[tuple[str, int]] = field(default_factory=Counter)

    def batched_share(self, size: int) -> float:
        """The share (0..1) of frames that were inferred `size` at once; workers infer fewer one by one."""
        return sum(count for count in self.together.values() if count == size) / max(1, self.together.total())

    def summaries(self) -> dict[str, Summary]:
        """By stage."""
        return {name: stage_summary(samples) for name, samples in self.samples_ms.items()}


def read_stages(client: redis.Redis, cameras: Iterable[str], begin_ns: int, end_ns: int) -> Stages:
    """Read the records of all cameras whose inference ended in [begin_ns, end_ns) of CLOCK_MONOTONIC on this host."""
    records = decoder(DetectionRecord)
    wall_minus_monotonic_ns = time.time_ns() - time.monotonic_ns()
    first_ms = (begin_ns + wall_minus_monotonic_ns) // 1_000_000
    found = Stages()
    for camera in cameras:
        # redis-py's types allow for text replies, which this client does not ask for.
        entries = cast(_Entries, client.xrange(detections_key(camera), min=str(first_ms)))
        for id_, fields in entries:
            record = decode(records, fields[b"d"])
            if begin_ns <= record.inference_end_ns < end_ns:
                stored_ns = int(id_.partition(b"-")[0]) * 1_000_000 + 500_000 - wall_minus_monotonic_ns
                _add(found, record, stored_ns)
    return found


def _add(found: Stages, record: DetectionRecord, stored_ns: int) -> None:
    found.detected[record.camera] += 1
    found.boxes += len(record.detections)
    found.together[(record.worker, record.inference_start_ns)] += 1
    for stage, begun_ns, ended_ns in (
        ("queue", record.captured_ns, record.dispatched_ns),
        ("at_worker", record.dispatched_ns, record.inference_start_ns),
        ("inference", record.inference_start_ns, record.inference_end_ns),
        ("publish", record.inference_end_ns, stored_ns),
        ("age", record.captured_ns, stored_ns),
    ):
        found.samples_ms[stage].append(max(0.0, (ended_ns - begun_ns) / 1e6))
