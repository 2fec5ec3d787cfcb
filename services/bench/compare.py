"""Models against each other on one engine, in turns, so that whatever else the machine does hits all of them alike."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from detector.cores import topology
from detector.model import Model
from services.bench.bare import BareWorkers, Shape, placements

_ROUNDS = 5  # of all models; a machine's busy moments seldom last through all of them
_ROUND_S = 0.8  # holds 30 pictures of a dense YOLOv5n
_WARM_UP_S = 0.1  # after the other models had the caches


def compare(models: Sequence[Model], engine: str, shape: Shape, *, batch: int = 1, num_cores: int = 1) -> list[float]:
    """Milliseconds a picture of each model: of its quickest run, which a busy machine moves least.

    `shape` is (height, width) in pixels. All run on the same cores. Raises BenchError where the engine refuses one.
    """
    cpus = placements(topology(), 1, num_cores)
    quickest_ms = [float("inf") for _ in models]
    with ExitStack() as stack:
        workers = [
            stack.enter_context(BareWorkers(model, engine, [shape], cpus=cpus, num_cores=num_cores, batch=batch))
            for model in models
        ]
        for _ in range(_ROUNDS):
            for number, worker in enumerate(workers):
                latencies_ms = worker.run(_ROUND_S, _WARM_UP_S).latencies_ms
                quickest_ms[number] = min(quickest_ms[number], min(latencies_ms) / batch)
    return quickest_ms
