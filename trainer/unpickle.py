"""Read a `torch.save` file without running anything that it names.

PyTorch's own weights-only loader does the reading: plain data and tensors. Public checkpoints pickle their whole
network, so the classes of those networks are let in too, each replaced by an inert shell that keeps its attributes and
has no behaviour. Any other name in the file refuses it, before anything is built.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import pickletools
import zipfile
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from trainer.errors import CheckpointError

# The largest public YOLOv5 (x6, with the optimiser and a second copy for its average) unpacks to 1.7 GB in fp32.
MAX_UNPACKED_BYTES = 2 << 30
_MAX_RECORDS = 20_000  # one a tensor: x6 with its average and optimiser has some 5,000

_NETWORK = (
    "models.yolo.Model",
    "models.yolo.DetectionModel",
    "models.yolo.Detect",
    "models.common.Conv",
    "models.common.Bottleneck",
    "models.common.C3",
    "models.common.SPPF",
    "models.common.Concat",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.container.ModuleList",
    "torch.nn.modules.conv.Conv2d",
    "torch.nn.modules.batchnorm.BatchNorm2d",
    "torch.nn.modules.activation.SiLU",
    "torch.nn.modules.activation.Hardswish",
    "torch.nn.modules.pooling.MaxPool2d",
    "torch.nn.modules.upsampling.Upsample",
)
# What training programs leave beside the network: the best score as a NumPy number, folders as paths. Not read here.
_BESIDE = (
    "numpy.dtype",
    "numpy.dtypes.Float64DType",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
)


class Shell:
    """An object of a pickled class: its attributes, and nothing it could do. `kind` is the class's own name."""

    kind = ""

    def __init__(self, *_: object) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: object) -> None:
        # Shells may be built without __init__. State of another form (a NumPy type's) is none of our business.
        self.attributes = dict(state) if isinstance(state, dict) else {}

    def get(self, name: str) -> Any:
        """An attribute, None where there is none."""
        return self.__dict__.get("attributes", {}).get(name)


_SHELLS = {name: type("Shell", (Shell,), {"kind": name.rpartition(".")[2]}) for name in (*_NETWORK, *_BESIDE)}


def unpickle(data: bytes, name: str) -> Any:
    """What was saved, as plain data, tensors on the CPU and shells.

    Raises CheckpointError naming every class or function in the file that is not let in.
    """
    _check_archive(data, name)
    foreign = [found for found in _foreign(data, name) if found not in _SHELLS]
    if foreign:
        raise CheckpointError(_refusal(name, foreign))
    shells: list[Any] = [(shell, path) for path, shell in _SHELLS.items()]
    try:
        with safe_globals(shells):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # bad bytes make the loader raise nearly any exception
        raise CheckpointError(f"{name}: the checkpoint cannot be read: {_first_line(error)}. {_AGAIN}") from error


def _check_archive(data: bytes, name: str) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{name}: no checkpoint as `torch.save` writes it since PyTorch 1.6, or cut short ({len(data)} bytes). "
            f"{_AGAIN}"
        ) from error
    unpacked = sum(record.file_size for record in records)
    if unpacked > MAX_UNPACKED_BYTES or len(records) > _MAX_RECORDS:
        raise CheckpointError(
            f"{name}: {len(records)} records of {unpacked} bytes unpacked; expected at most {_MAX_RECORDS} "
            f"of {MAX_UNPACKED_BYTES}. Save the weights without the optimiser"
        )


def _foreign(data: bytes, name: str) -> list[str]:
    """Names in the pickle that the weights-only loader does not know, sorted; nothing is built."""
    try:
        return sorted(get_unsafe_globals_in_checkpoint(io.BytesIO(data)))
    except pickle.UnpicklingError:
        # Operations that `torch.save` does not write by default. The file is refused; say what it was after.
        named = _named(data)
        raise CheckpointError(
            _refusal(name, named) if named else f"{name}: its pickle is of a form `torch.save` does not write. {_AGAIN}"
        ) from None
    except Exception as error:  # as in `unpickle`
        raise CheckpointError(f"{name}: no checkpoint of `torch.save`: {_first_line(error)}. {_AGAIN}") from error


def _named(data: bytes) -> list[str]:
    """Classes and functions that a pickle of any protocol names, as far as it can be followed without running it."""
    found: set[str] = set()
    strings: list[str] = []
    # Bad bytes end the walk with nearly any exception; what was found until there is told.
    with contextlib.suppress(Exception), zipfile.ZipFile(io.BytesIO(data)) as archive:
        path = next(path for path in archive.namelist() if path.endswith("data.pkl"))
        for operation, argument, _ in pickletools.genops(archive.read(path)):
            if operation.name in ("GLOBAL", "INST"):
                found.add(str(argument).replace(" ", "."))
            elif operation.name == "STACK_GLOBAL":
                found.add(".".join(strings[-2:]))
            elif isinstance(argument, str):
                strings.append(argument)
    return sorted(found)


def _refusal(name: str, foreign: list[str]) -> str:
    shown = ", ".join(foreign[:10]) + (f" and {len(foreign) - 10} more" if len(foreign) > 10 else "")
    return (
        f"{name}: the pickle in it (data.pkl) names {shown}, which is not loaded: a checkpoint may hold tensors, plain "
        "data and the layers of YOLOv5 v6 and v7. If you trust the file, save its state_dict() with the program that "
        "made it and load that"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]


_AGAIN = "Copy the file again, or save it again with torch.save"
