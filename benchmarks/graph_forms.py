"""What the shorter graphs gain on DeepSparse (detector/prepare/short_swish.py), in turns, one core, one process.

    python -m benchmarks.graph_forms MODEL... [--shape 224x416] [--rounds 120]

Each model is compiled as its file is and in the shorter form. A turn is the quickest of four inferences; the ratio is
the median over the turns of shorter / as given, so whatever else the machine does hits both alike.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["NM_DISABLE_ANALYTICS"] = "1"

import deepsparse
import numpy as np

from detector.model import Model, read_model
from detector.prepare.short_swish import for_deepsparse

_INFERENCES = 4  # of a turn: the first finds the other graph's weights in the caches


def main() -> None:
    """A line a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--shape", default="416x416", help="HEIGHTxWIDTH")
    parser.add_argument("--rounds", type=int, default=120)
    options = parser.parse_args()
    height, width = (int(side) for side in options.shape.split("x"))
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        for path in options.models:
            model = read_model(path)
            given = model.with_shape(1, height, width)
            engines = [_compiled(Path(folder), data) for data in (given, for_deepsparse(given))]
            times_ms = _in_turns(engines, _picture(model, height, width), options.rounds)
            medians = np.median(times_ms, axis=0)
            ratio = float(np.median(times_ms[:, 1] / times_ms[:, 0]))
            print(f"{path.name}: {medians[0]:.2f} -> {medians[1]:.2f} ms at {height}x{width}, ratio {ratio:.3f}")


def _compiled(folder: Path, data: bytes) -> Any:
    path = folder / "model.onnx"
    path.write_bytes(data)  # the engine has read it all when it returns
    return deepsparse.Engine(str(path), batch_size=1, num_cores=1)


def _picture(model: Model, height: int, width: int) -> Any:
    tensor = model.tensor(1, height, width, 0)
    tensor[...] = np.random.default_rng(0).integers(0, 256, tensor.shape)
    return tensor


def _in_turns(engines: list[Any], tensor: Any, rounds: int) -> Any:
    """(rounds, engines) milliseconds."""
    times_ms = np.zeros((rounds, len(engines)))
    for turn in range(rounds + 1):  # the first one warms up
        for number, engine in enumerate(engines):
            quickest_ms = float("inf")
            for _ in range(_INFERENCES):
                begun_s = time.perf_counter()
                engine.run([tensor], val_inp=False)
                quickest_ms = min(quickest_ms, (time.perf_counter() - begun_s) * 1e3)
            times_ms[turn - 1, number] = quickest_ms
    return times_ms


if __name__ == "__main__":
    main()
