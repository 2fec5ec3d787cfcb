"""The bare engine: processes that are pinned as our workers are and do nothing but infer, one tensor after another.

It is what a pipeline's speed is measured against, and what `bench engine` shows. Each engine runs in child processes,
since one may end its process; a child reads commands on standard input and answers in JSON lines.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
from msgspec import Struct

from detector.cores import Topology
from detector.engines import engine_class
from detector.layout import placement_order
from detector.model import Model, parse_model
from services.bench.errors import BenchError
from services.bench.machine import busy_seconds
from services.process import PARENT_VARIABLE, die_with_parent

Shape = tuple[int, int]  # (height, width) in pixels

# What a large model may take to compile on a slow machine, and how long an answer may be overdue.
COMPILE_S = 300.0
OVERDUE_S = 60.0
# Children wait for a common instant, so that all of them run during the whole measurement.
TOGETHER_S = 0.05


class _Request(Struct):
    engine: str
    cpus: list[int]
    num_cores: int
    batch: int
    shapes: list[Shape]


class _Answer(Struct):
    runs: int
    seconds: float
    cpu_s: float  # of the whole child, its engine's threads included
    latencies_ms: list[float]


@dataclass(frozen=True)
class BareResult:
    """One measurement of all children together."""

    items_per_s: float
    latencies_ms: list[float] = field(repr=False)  # one a run; a run takes `batch` items
    cpu_s: float
    runs: int
    others_cores: float  # what other programs took meanwhile, in cores


def placements(machine: Topology, workers: int, num_cores: int, root: Path = Path("/")) -> list[list[int]]:
    """The CPUs of each worker: whole cores, of one group, as claims give them out; shared where they run out."""
    cores = placement_order(machine, num_cores, root)
    return [
        [cpu for step in range(num_cores) for cpu in cores[(worker * num_cores + step) % len(cores)].cpus]
        for worker in range(workers)
    ]


class BareWorkers:
    """Child processes with one engine compiled in each. Use in a `with`; `run` measures, as often as wanted."""

    def __init__(
        self,
        model: Model,
        engine: str,
        shapes: Sequence[Shape],
        *,
        cpus: Sequence[list[int]],
        num_cores: int,
        batch: int = 1,
    ) -> None:
        """One child for each entry of `cpus`. With several shapes a child takes them in turns."""
        self.facts: dict[str, Any] = {}
        self._model, self._engine, self._shapes = model, engine, list(shapes)
        self._cpus, self._num_cores, self._batch = cpus, num_cores, batch
        self._children: list[subprocess.Popen[str]] = []
        self._folders: list[Path] = []
        self._stack = ExitStack()

    def __enter__(self) -> BareWorkers:
        try:
            for cpus in self._cpus:
                self._start(cpus)
            for child, folder in zip(self._children, self._folders, strict=True):
                self.facts = self._answer(child, folder, COMPILE_S)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, seconds: float, warmup_s: float) -> BareResult:
        """Infer for so long in all children at once; raises BenchError when an engine ends its process."""
        begun_s, busy_s = time.monotonic(), busy_seconds()
        begin_ns = time.monotonic_ns() + int(TOGETHER_S * 1e9)
        for child in self._children:
            assert child.stdin is not None
            child.stdin.write(json.dumps([begin_ns, warmup_s, seconds]) + "\n")
            child.stdin.flush()
        answers = [
            msgspec.convert(self._answer(child, folder, seconds + warmup_s + OVERDUE_S), _Answer)
            for child, folder in zip(self._children, self._folders, strict=True)
        ]
        span_s = time.monotonic() - begun_s
        cpu_s = sum(answer.cpu_s for answer in answers)
        # The warm-up is ours too, and as busy as the rest.
        ours_s = cpu_s * (seconds + warmup_s) / seconds
        return BareResult(
            items_per_s=sum(answer.runs * self._batch / answer.seconds for answer in answers),
            latencies_ms=[ms for answer in answers for ms in answer.latencies_ms],
            cpu_s=cpu_s,
            runs=sum(answer.runs for answer in answers),
            others_cores=max(0.0, (busy_seconds() - busy_s - ours_s) / span_s),
        )

    def close(self) -> None:
        """End the children."""
        for child in self._children:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
        self._children.clear()
        self._stack.close()

    def _start(self, cpus: list[int]) -> None:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="sparsecam-bare-")))
        for index, (height, width) in enumerate(self._shapes):
            (folder / f"{index}.model").write_bytes(self._model.with_shape(self._batch, height, width))
        request = _Request(self._engine, cpus, self._num_cores, self._batch, self._shapes)
        (folder / "request.json").write_bytes(msgspec.json.encode(request))
        house = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(part for part in (house, os.environ.get("PYTHONPATH", "")) if part)
        errors: IO[bytes] = self._stack.enter_context((folder / "stderr").open("wb"))
        self._folders.append(folder)
        self._children.append(
            subprocess.Popen(
                [sys.executable, "-m", "services.bench.bare", str(folder)],
                cwd=folder,  # nothing that lies in ours can pass for a module
                env={**os.environ, "PYTHONPATH": path, PARENT_VARIABLE: str(os.getpid())},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        )

    def _answer(self, child: subprocess.Popen[str], folder: Path, limit_s: float) -> Any:
        assert child.stdout is not None
        timer = threading.Timer(limit_s, child.kill)
        timer.start()
        try:
            line = child.stdout.readline()
        finally:
            timer.cancel()
        if line:
            answer = json.loads(line)
            if "refused" not in answer:
                return answer
            raise BenchError(f"engine {self._engine}: {answer['refused']}")
        code = child.wait()
        said = (folder / "stderr").read_text(errors="replace").strip().splitlines()
        telling = [text for text in said if "Assertion" in text or "rror:" in text] or said
        raise BenchError(
            f"engine {self._engine} ended its process with status {code}"
            + (f": {telling[-1][:300]}" if telling else "")
        )


def main(folder: Path) -> None:
    """A child: compile, say so, then measure at each command until standard input ends."""
    die_with_parent()
    # Engines print on the descriptor itself; the answers get one of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(what: object) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    request = msgspec.json.decode((folder / "request.json").read_bytes(), type=_Request)
    os.sched_setaffinity(0, request.cpus)  # before the engine starts its threads, which inherit it
    from detector.errors import DetectorError

    try:
        pairs = [_load(folder / f"{index}.model", request, shape) for index, shape in enumerate(request.shapes)]
        for engine, tensor in pairs:
            engine.infer(tensor)
    except DetectorError as error:
        say({"refused": str(error)})
        return
    say(pairs[0][0].describe())
    for line in sys.stdin:
        begin_ns, warmup_s, seconds = json.loads(line)
        time.sleep(max(0.0, (begin_ns - time.monotonic_ns()) / 1e9))
        _measure(pairs, warmup_s)
        say(msgspec.to_builtins(_measure(pairs, seconds)))


def _load(path: Path, request: _Request, shape: Shape) -> tuple[Any, Any]:
    data = path.read_bytes()
    model = parse_model(data, "the model")
    tensor = model.tensor(request.batch, *shape, 0)
    # Noise, not one colour: the caches see what they see of a picture. Seeded, so that two runs infer the same.
    noise = np.random.default_rng(0).integers(0, 256, tensor.shape, np.uint8)
    tensor[...] = noise if model.dtype == "uint8" else noise / np.float32(255)
    return engine_class(request.engine).load(data, request.num_cores), tensor


def _measure(pairs: list[tuple[Any, Any]], seconds: float) -> _Answer:
    latencies_ms: list[float] = []
    begun_ns, cpu_s = time.monotonic_ns(), time.process_time()
    end_ns, now_ns = begun_ns + int(seconds * 1e9), begun_ns
    while now_ns < end_ns:
        engine, tensor = pairs[len(latencies_ms) % len(pairs)]
        engine.infer(tensor)
        then_ns, now_ns = now_ns, time.monotonic_ns()
        latencies_ms.append((now_ns - then_ns) / 1e6)
    span_s = max((now_ns - begun_ns) / 1e9, 1e-9)
    return _Answer(len(latencies_ms), span_s, time.process_time() - cpu_s, latencies_ms)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
