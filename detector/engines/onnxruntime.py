"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import onnxruntime

from detector.cpu import saturates
from detector.engines import Array
from detector.errors import EngineRefused
from detector.prepare.integer_convs import for_onnxruntime

_QUIET = 3  # errors only: its warnings are about graph rewrites nobody here can act on


class OnnxRuntimeEngine:
    """One model compiled by ONNX Runtime."""

    def __init__(self, session: onnxruntime.InferenceSession, num_cores: int) -> None:
        self._session = session
        self._num_cores = num_cores
        self._input = session.get_inputs()[0].name

    @classmethod
    def load(cls, model: bytes, num_cores: int) -> OnnxRuntimeEngine:
        """Compile for `num_cores` threads; raises EngineRefused."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_cores
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = _QUIET
        # Threads that spin between frames would take the core from decoding and publishing.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            graph = for_onnxruntime(model, saturates=saturates())
            session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base but Exception
            raise EngineRefused(f"onnxruntime cannot compile the model: {_first_line(error)}") from error
        return cls(session, num_cores)

    def infer(self, tensor: Array) -> Sequence[Array]:
        """All outputs for one input tensor; raises EngineRefused."""
        try:
            outputs: Sequence[Array] = self._session.run(None, {self._input: tensor})
        except Exception as error:  # as above
            raise EngineRefused(f"onnxruntime cannot run the model: {_first_line(error)}") from error
        return outputs

    def describe(self) -> dict[str, str | int]:
        """Name, version and settings."""
        return {"engine": "onnxruntime", "version": onnxruntime.__version__, "cores": self._num_cores}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:500]
