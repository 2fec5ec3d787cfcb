"""Which zeros of a sparse INT8 model buy time on DeepSparse: its layers' zeros filled in by how many they are.

    python -m benchmarks.zeros MODEL [OTHER ...] [--shape 416x416] [--rounds 60] [--layers]

MODEL is an export of ours with pruned layers; the same with the zeros of its sparser layers alone, and with none; and
OTHER models to compare with. One core, one process, all in turns, so that whatever else the machine does hits them
alike; a turn is the median of eight inferences, the ratio the median over the turns. `--layers` prints what DeepSparse
itself measures of each of its parts (layers that it runs as one have the name of the first).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ["NM_DISABLE_ANALYTICS"] = "1"

import numpy as np
import onnx
from deepsparse.engine import DebugAnalysisEngine
from onnx import numpy_helper

from detector.engines.deepsparse import DeepSparseEngine
from detector.model import Model, parse_model, read_model
from detector.prepare.short_swish import for_deepsparse

_INFERENCES = 8  # of a turn: the first finds the other models' weights in the caches
_LEAST_ZEROS = 0.1  # of a layer that was pruned; rounding alone makes a few in a hundred
_LIMITS = (0.7, 0.9)  # recipes here prune layers to 0.4, 0.67, 0.8 and 0.93


def main() -> None:
    """A line a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("others", nargs="*", type=Path)
    parser.add_argument("--shape", default="416x416", help="HEIGHTxWIDTH")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--layers", action="store_true")
    options = parser.parse_args()
    height, width = (int(side) for side in options.shape.split("x"))
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    given = read_model(options.model)
    models = {"as it is": given}
    for limit in _LIMITS:
        models[f"zeros only in layers of over {limit:.0%}"] = _filled(given, limit)
    models["no zeros"] = _filled(given, 1.0)
    models |= {path.name: read_model(path) for path in options.others}
    _print_turns(models, height, width, options.rounds)
    if options.layers:
        for name, model in models.items():
            _print_layers(name, model, height, width)


def _filled(model: Model, limit: float) -> Model:
    """With small random numbers for the zeros of layers that have no more of them than this."""
    proto = onnx.load_model_from_string(model.data)
    constants = {one.name: one for one in proto.graph.initializer}
    rng = np.random.default_rng(0)
    for node in proto.graph.node:
        if node.op_type != "ConvInteger":
            continue
        constant = constants[node.input[1]]
        weights = numpy_helper.to_array(constant).copy()
        zero = weights == 0
        if _LEAST_ZEROS < zero.mean() <= limit:
            weights[zero] = rng.choice([-2, -1, 1, 2], int(zero.sum()))
            constant.CopyFrom(numpy_helper.from_array(weights, constant.name))
    return parse_model(proto.SerializeToString(), model.name)


def _print_turns(models: Mapping[str, Model], height: int, width: int, rounds: int) -> None:
    engines = {name: DeepSparseEngine.load(model.with_shape(1, height, width), 1) for name, model in models.items()}
    tensors = {name: _picture(model, height, width) for name, model in models.items()}
    times_ms: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + 1):
        for name, engine in engines.items():
            times_ms[name].append(_median_ms(engine, tensors[name]))
        if not turn:  # the first one warms up
            times_ms = {name: [] for name in models}
    first = np.array(times_ms["as it is"])
    for name, values in times_ms.items():
        ratio = float(np.median(np.array(values) / first))
        print(f"{name:46} {np.median(values):6.2f} ms at {height}x{width}, {ratio:.3f} of the first")


def _median_ms(engine: DeepSparseEngine, tensor: Any) -> float:
    times_s = []
    for _ in range(_INFERENCES):
        begun_s = time.perf_counter()
        engine.infer(tensor)
        times_s.append(time.perf_counter() - begun_s)
    return float(np.median(times_s)) * 1e3


def _print_layers(name: str, model: Model, height: int, width: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(for_deepsparse(model.with_shape(1, height, width)))
        engine = DebugAnalysisEngine(str(path), batch_size=1, num_cores=1, num_iterations=60, num_warmup_iterations=20)
        found = engine.analyze([_picture(model, height, width)])
    print(f"\n{name}: {found['average_total_time']:.2f} ms")
    for layer in found["layer_info"]:
        print(f"  {layer['average_run_time_in_ms']:6.3f} ms  {layer['name']:28} {layer['canonical_name'][:60]}")


def _picture(model: Model, height: int, width: int) -> Any:
    tensor = model.tensor(1, height, width, 0)
    tensor[...] = np.random.default_rng(0).integers(0, 256, tensor.shape)
    return tensor


if __name__ == "__main__":
    main()
