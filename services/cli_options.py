"""Options that several commands share, and what they are read into.

Everything heavy is imported inside the functions, so that help and completion answer at once.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from services.config import Config
    from services.process import LogOptions


class Level(str, Enum):
    """--log-level"""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


class LogStyle(str, Enum):
    """--log-format"""

    console = "console"
    json = "json"


class Engine(str, Enum):
    """--engine"""

    auto = "auto"
    deepsparse = "deepsparse"
    onnxruntime = "onnxruntime"
    openvino = "openvino"
    torch = "torch"


class Role(str, Enum):
    """A process of ours: those of the live path, and the trainer."""

    broker = "broker"
    ingest = "ingest"
    detector = "detector"
    sink = "sink"
    trainer = "trainer"


# typer reads these at run time; Optional[...] and not `| None` since click's older converters know only that.
ConfigOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="Config file. Default: $SPARSECAM_CONFIG, ./sparsecam.yaml, /etc/sparsecam/sparsecam.yaml. Environment "
        "variables such as SPARSECAM__REDIS__URL override it.",
    ),
]
LevelOption = Annotated[
    Level, typer.Option("--log-level", envvar="SPARSECAM_LOG_LEVEL", help="Least severe events to log.")
]
FormatOption = Annotated[
    LogStyle,
    typer.Option(
        "--log-format", envvar="SPARSECAM_LOG_FORMAT", help="console: lines for a person; json: one object a line."
    ),
]
MODEL_HELP = "ONNX file, a YOLOv5 checkpoint (.pt), or a name of `sparsecam models list`."
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a script instead of text for a person.")]
IndexOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--index", min=0, max=4095, help="Number of this process among its like; default: the first free."),
]


def load_config(path: Path | None) -> tuple[Config, Path | None]:
    """The config and where it was found; raises ConfigError."""
    from services.config import find_config, load

    found = find_config(path)
    return load(found), found


def log_options(level: Level, style: LogStyle) -> LogOptions:
    """How a process is to write its log."""
    from services.process import LogOptions

    return LogOptions(level.value, style.value)
