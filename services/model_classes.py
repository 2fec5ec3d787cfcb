"""The class names that a model file carries, read in a process of its own.

`up` goes on for months and needs the names once: the libraries that read models would stay in its memory.
`python -m services.model_classes FILE` prints them as JSON, or null where the model has none.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from services.config import Config, check_classes
from services.model_names import detector_settings
from wire.program import module

# Importing PyTorch for a checkpoint takes seconds on a busy machine; an ONNX file half of one.
TIMEOUT_S = 60


def model_classes(config: Config) -> dict[int, str] | None:
    """The names of the model's classes by number; None where they are not known, as of a model that cannot be read.

    What is wrong with the model is said by the worker that loads it. The config's own `detector.labels` win.
    """
    if not config.detector.model or not names_classes(config):
        return None
    # Raises RegistryError for a name: whoever asks has refused that already, with its place in the config.
    command = module("services.model_classes", detector_settings(config).model)
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=True)
        names = json.loads(done.stdout)
    except (subprocess.SubprocessError, OSError, ValueError):
        return None
    return {int(number): name for number, name in names.items()} if names else None


def names_classes(config: Config) -> bool:
    """Whether rules name classes that only the model can confirm."""
    return not config.detector.labels and any(rule.labels for rule in config.rules.values())


def refuse_unknown_classes(config: Config, path: Path | None) -> None:
    """Raise ConfigError where a rule of `config`, loaded from `path`, names a class that the model does not have."""
    classes = model_classes(config)
    if classes is not None:
        check_classes(path, config, classes)


def main(path: Path) -> int:
    """Print the names of the classes of the model at `path`; 1 where it cannot be read."""
    from detector.errors import DetectorError
    from detector.model import read_model

    try:
        labels = read_model(path).labels
    except DetectorError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps(labels))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
