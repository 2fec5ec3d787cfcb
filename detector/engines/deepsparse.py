"""DeepSparse: the fastest engine for sparse and INT8 YOLO on AVX-512 CPUs. Its licence is for evaluation only.

It rewrites the model file it is given when asked to change a shape, and it can end the process on a graph it dislikes.
So it only ever sees a private temporary file whose shape is already set, and only after a child process survived it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from onnx import helper
from onnx.onnx_ml_pb2 import TensorProto

from detector.engines import Array
from detector.engines.imports import bare, hidden
from detector.errors import EngineRefused
from detector.model import parse_model
from detector.prepare.short_swish import for_deepsparse

# Read at import: without it the package reports its use to its maker's servers.
os.environ["NM_DISABLE_ANALYTICS"] = "1"


class DeepSparseEngine:
    """One model compiled by DeepSparse."""

    def __init__(self, engine: Any, num_cores: int, version: str) -> None:
        self._engine = engine
        self._num_cores = num_cores
        self._version = version

    @classmethod
    def load(cls, model: bytes, num_cores: int) -> DeepSparseEngine:
        """Compile for `num_cores` physical cores; raises EngineRefused. May end the process."""
        try:
            package = _engine_module()
        except (ImportError, OSError) as error:  # OSError: a CPU whose instructions it does not speak
            raise EngineRefused(f"deepsparse does not start on this machine: {error}") from error
        try:
            batch = parse_model(model, "the model").batch or 1
            engine = _compile(package, for_deepsparse(model), batch, num_cores)
        except RuntimeError as error:
            raise EngineRefused(f"deepsparse cannot compile the model: {str(error)[:500]}") from error
        except OSError as error:
            raise EngineRefused(f"no room for the file that deepsparse reads: {error}", lasting=False) from error
        return cls(engine, num_cores, version("deepsparse"))

    def infer(self, tensor: Array) -> Sequence[Array]:
        """All outputs for one input tensor; raises EngineRefused."""
        try:
            # The tensor is ours and of the compiled shape: checking it again costs 20 us a frame.
            outputs: Sequence[Array] = self._engine.run([tensor], val_inp=False)
        except RuntimeError as error:
            raise EngineRefused(f"deepsparse cannot run the model: {str(error)[:500]}") from error
        return outputs

    def describe(self) -> dict[str, str | int]:
        """Name, version and settings."""
        return {
            "engine": "deepsparse",
            "version": self._version,
            "cores": self._num_cores,
            "supported_ops_percent": round(100 * self._engine.fraction_of_supported_ops),
        }


def _compile(package: Any, onnx: bytes, batch: int, num_cores: int) -> Any:
    with tempfile.TemporaryDirectory(prefix="sparsecam-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(onnx)
        return package.Engine(str(path), batch_size=batch, num_cores=num_cores)


@functools.cache
def _engine_module() -> ModuleType:
    """`deepsparse.engine` alone, its banner kept off our output.

    The package's own import brings its pipelines, plots and, where it is installed, PyTorch: 3.3 s of CPU and 340 MB
    in every worker and trial; the module alone brings 0.7 s and 130 MB.
    """
    with bare("deepsparse", "sparsezoo"), hidden("torch"):
        from deepsparse import engine
    logging.getLogger("deepsparse").setLevel(logging.WARNING)
    with _stderr_closed():
        _compile(engine, _smallest_model(), batch=1, num_cores=1)
    module: ModuleType = engine
    return module


@contextlib.contextmanager
def _stderr_closed() -> Iterator[None]:
    """Standard error of the whole process to nowhere: the first engine of a process prints a banner, from C++.

    Held for the 20 ms that the smallest model takes, not for the seconds of a real one, whose errors people need.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _smallest_model() -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["a"], ["b"])],
        "smallest",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 1])],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 1])],
    )
    # The oldest versions that every release of the engine reads.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7)
    return bytes(model.SerializeToString())
