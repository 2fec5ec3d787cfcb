"""OpenVINO on the CPU: Intel's engine, which runs on AMD and ARM too."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from detector.cpu import saturates
from detector.engines import Array
from detector.engines.imports import hidden
from detector.errors import EngineRefused
from detector.prepare.integer_convs import for_openvino

# The mere import of that package reports to OpenVINO's makers; without it OpenVINO uses an empty stub of its own.
with hidden("openvino_telemetry"):
    import openvino


class OpenVinoEngine:
    """One model compiled by OpenVINO."""

    def __init__(self, compiled: openvino.CompiledModel, num_cores: int) -> None:
        self._request = compiled.create_infer_request()
        self._num_cores = num_cores

    @classmethod
    def load(cls, model: bytes, num_cores: int) -> OpenVinoEngine:
        """Compile for `num_cores` threads; raises EngineRefused."""
        core = openvino.Core()
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": num_cores,
            # The worker is bound to its cores before it loads an engine; a second opinion would only fight that.
            "ENABLE_CPU_PINNING": False,
            "ENABLE_HYPER_THREADING": False,
            # Its own choice is bfloat16 where the CPU has it: 8 bits of mantissa move boxes by whole pixels.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        try:
            graph = core.read_model(io.BytesIO(for_openvino(model, saturates=saturates())))
            compiled = core.compile_model(graph, "CPU", settings)
        except Exception as error:  # what it raises has no base but Exception
            raise EngineRefused(f"openvino cannot compile the model: {_first_lines(error)}") from error
        return cls(compiled, num_cores)

    def infer(self, tensor: Array) -> Sequence[Array]:
        """All outputs for one input tensor; raises EngineRefused."""
        try:
            self._request.infer([tensor], share_inputs=True, share_outputs=True)
        except Exception as error:  # as above
            raise EngineRefused(f"openvino cannot run the model: {_first_lines(error)}") from error
        # Copied, since the next inference writes to the same place (255 KB at 416x416 take 10 us).
        return [np.array(tensor.data) for tensor in self._request.output_tensors]

    def describe(self) -> dict[str, str | int]:
        """Name, version and settings."""
        return {"engine": "openvino", "version": openvino.__version__.split("-")[0], "cores": self._num_cores}


def _first_lines(error: Exception) -> str:
    """What it says without the files of its own source: the lines that hold words, joined."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "Check '"))] or lines
    return "; ".join(told)[:500] or type(error).__name__
