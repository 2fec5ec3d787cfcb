"""PyTorch on the CPU: runs a checkpoint as training left it, so that it can be judged before it is exported.

The one place of the live path that knows the trainer; imported only when a checkpoint is to be run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from detector.engines import Array
from detector.errors import EngineRefused
from trainer.checkpoint import Checkpoint, build, read_checkpoint
from trainer.errors import CheckpointError, TrainerError
from trainer.model import YoloV5

__all__ = ["Checkpoint", "CheckpointError", "TorchEngine", "read_checkpoint"]

_WHITE = 255  # the network's 1.0


class TorchEngine:
    """One checkpoint's network in PyTorch, at any shape."""

    def __init__(self, network: YoloV5, num_cores: int) -> None:
        self._network = network
        self._num_cores = num_cores

    @classmethod
    def load(cls, model: bytes, num_cores: int) -> TorchEngine:
        """Build for `num_cores` threads, which hold for the whole process; raises EngineRefused."""
        torch.set_num_threads(num_cores)
        try:
            network = build(read_checkpoint(model, "the model"))
        except TrainerError as error:
            raise EngineRefused(f"torch cannot load the model: {error}") from error
        network.fuse()
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        return cls(network, num_cores)

    def infer(self, tensor: Array) -> Sequence[Array]:
        """The decoded rows of one uint8 input tensor (batch, 3, h, w); raises EngineRefused."""
        try:
            with torch.inference_mode():
                pictures = torch.from_numpy(tensor).to(torch.float32, memory_format=torch.channels_last).div_(_WHITE)
                rows: Array = self._network(pictures).numpy()
        except (RuntimeError, TypeError) as error:
            raise EngineRefused(f"torch cannot run the model: {str(error)[:500]}") from error
        return [rows]

    def describe(self) -> dict[str, str | int]:
        """Name, version and settings."""
        return {"engine": "torch", "version": str(torch.__version__), "cores": self._num_cores}
