"""Inference engines behind one protocol, and which of them this machine has.

Every engine loads a model's bytes for a given number of cores and runs one tensor at a time. Most compile ONNX whose
input shape is already fixed; torch takes a checkpoint, which runs at any shape. An engine releases Python's lock while
it runs, so heartbeats go on.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from numpy.typing import NDArray

from detector.errors import EngineRefused, EngineUnavailable

Array = NDArray[Any]
ModelFormat = Literal["onnx", "checkpoint"]  # a checkpoint: a network's weights as `torch.save` writes them

_FORMAT_WORDS: dict[ModelFormat, str] = {"onnx": "an ONNX model", "checkpoint": "a PyTorch checkpoint"}


class Engine(Protocol):
    """One model, compiled for one input shape and number of cores."""

    @classmethod
    def load(cls, model: bytes, num_cores: int) -> Engine:
        """Compile what `Model.with_shape` gives; raises EngineRefused in the engine's own words.

        May end the process: try it in a child first.
        """
        ...

    def infer(self, tensor: Array) -> Sequence[Array]:
        """All outputs for one input tensor, in the graph's order; raises EngineRefused."""
        ...

    def describe(self) -> dict[str, str | int]:
        """Name, version and settings, for people."""
        ...


@dataclass(frozen=True)
class EngineKind:
    """An engine this build knows: where its class is and what it needs."""

    name: str
    distribution: str  # on PyPI
    marker: str  # a file inside the package that an empty stub of the same name does not have
    class_name: str
    needs: str  # what to tell a person who wants it
    reads: ModelFormat = "onnx"


# In the order in which they are named and tried; `auto` takes the one that runs the model fastest.
KINDS: dict[str, EngineKind] = {
    kind.name: kind
    for kind in (
        EngineKind(
            "deepsparse",
            "deepsparse",
            "engine.py",
            "DeepSparseEngine",
            "pip install deepsparse==1.8.0 (x86-64 Linux with AVX2, CPython 3.8 to 3.11)",
        ),
        EngineKind("openvino", "openvino", "__init__.py", "OpenVinoEngine", "pip install openvino"),
        EngineKind("onnxruntime", "onnxruntime", "__init__.py", "OnnxRuntimeEngine", "pip install onnxruntime"),
        EngineKind("torch", "torch", "__init__.py", "TorchEngine", "pip install torch==2.13.0", reads="checkpoint"),
    )
}


def installed(reads: ModelFormat | None = None) -> dict[str, str]:
    """Version by name of the engines this Python has, in the order of KINDS; of one format where given.

    Imports none of them.
    """
    found = {}
    for kind in KINDS.values():
        if reads not in (None, kind.reads):
            continue
        spec = importlib.util.find_spec(kind.distribution)
        folders = spec.submodule_search_locations if spec else None
        if folders and any((Path(folder) / kind.marker).is_file() for folder in folders):
            found[kind.name] = _version(kind.distribution)
    return found


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # on the path without package metadata, as in a vendored copy


def candidates(wanted: str, reads: ModelFormat, model: str) -> list[str]:
    """The engines to try on a model of this format (`model`: its name): the wanted one, or under `auto` all installed.

    Raises EngineUnavailable where none is installed, EngineRefused where the wanted one reads another format.
    """
    have = installed(reads)
    readers = [kind for kind in KINDS.values() if kind.reads == reads]
    if wanted != "auto" and wanted in KINDS and KINDS[wanted].reads != reads:
        able = ", ".join(kind.name + ("" if kind.name in have else " (not installed)") for kind in readers)
        raise EngineRefused(
            f"{model} is {_FORMAT_WORDS[reads]}, engine {wanted} runs {_FORMAT_WORDS[KINDS[wanted].reads]}. "
            f"Engines that can: {able}"
        )
    if wanted == "auto" and not have:
        needs = " or ".join(kind.needs for kind in readers)
        raise EngineUnavailable(f"no engine is installed that runs {_FORMAT_WORDS[reads]} such as {model}: {needs}")
    if wanted != "auto":
        engine_class(wanted)
    return list(have) if wanted == "auto" else [wanted]


def asked_for(names: Sequence[str], reads: ModelFormat, model: str) -> list[str]:
    """The engines that a command line names, each once and in its order; `all` or no name: all installed.

    Raises as `candidates` does.
    """
    wanted = [candidates("auto" if name == "all" else name, reads, model) for name in names or ("all",)]
    return list(dict.fromkeys(chain.from_iterable(wanted)))


def engine_class(name: str) -> type[Engine]:
    """The class of an installed engine; raises EngineUnavailable naming those that are installed."""
    have = installed()
    if name not in KINDS:
        raise EngineUnavailable(f"unknown engine {name!r}; known: {', '.join(KINDS)}")
    if name not in have:
        # Of those that could do the same work: an engine for checkpoints is no help with ONNX.
        others = ", ".join(f"{other} {version}" for other, version in installed(KINDS[name].reads).items()) or "none"
        raise EngineUnavailable(f"engine {name} is not installed ({KINDS[name].needs}); installed: {others}")
    try:
        module = importlib.import_module(f"detector.engines.{name}")
    except (ImportError, OSError) as error:  # OSError: a shared library it needs is missing
        raise EngineUnavailable(f"engine {name} {have[name]} is installed but does not load: {error}") from error
    return cast("type[Engine]", getattr(module, KINDS[name].class_name))
