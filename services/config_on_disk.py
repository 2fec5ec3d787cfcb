"""What a config asks of this machine that is not there: right in form, and it could not work as things are.

A video may be mounted later, so that is a warning, as is too little memory for all that is to be kept; without its
model file no worker starts, so that is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ingest.sources import parse
from services.config import Config, places, refuse_model
from services.model_classes import names_classes
from services.model_names import detector_settings
from services.redis_memory import too_small
from services.yaml_source import KeyPath, Problem, dotted

# Kinds of sources that lie on this machine, and what each is called.
_LOCAL = {"file": "file", "images": "file or folder", "webcam": "device"}

_NOT_CHECKED = "the class names in rules were not checked"


def refuse_missing_model(config: Config, path: Path | None) -> None:
    """Raise ConfigError where the model of the config loaded from `path` is a file that is not there.

    A name of the registry must have been looked up before (`refuse_unknown_model`).
    """
    if not config.detector.model:
        return
    model = Path(detector_settings(config).model)
    if not model.is_file():
        text = (
            f"no file {str(model)!r} here{_looked(model)}; expected an ONNX model, a checkpoint (.pt) or a name of "
            "`sparsecam models list` (if only the machine that runs it has the file, check there)"
        )
        refuse_model(path, f"{text}; {_NOT_CHECKED}" if names_classes(config) else text)


def gaps(config: Config, path: Path | None) -> Iterator[Problem]:
    """What is allowed and hardly meant, each at its place in the config that was loaded from `path`."""
    source = places(path)
    if not config.cameras:
        yield Problem(source.root, "names no cameras, so nothing is watched; write one under `cameras`")
    for name, camera in config.cameras.items():
        found = parse(camera.source, camera.live)
        what = _LOCAL.get(found.kind)
        if camera.enabled and what and not Path(found.url).exists():
            key: KeyPath = ("cameras", name, "source")
            # As ingest has it: live sources are tried again for ever, a file is read once.
            then = "the camera is tried until it is" if found.live else "it must be by the start, or the camera fails"
            text = f"{dotted(key)}: no {what} {found.shown!r} here{_looked(Path(found.url))}; {then}"
            yield Problem(source.place(key), text)
    memory: KeyPath = ("redis", "memory_mb")
    if text := too_small(config):
        yield Problem(source.place(memory), f"{dotted(memory)}: {text}")
    if config.redis.memory_mb is not None and not config.embeds_valkey:
        text = "has no effect, as redis.url names a server, which has its own (maxmemory); leave one of the two out"
        yield Problem(source.place(memory), f"{dotted(memory)}: {text}")


def unchecked_classes(config: Config, path: Path | None) -> Iterator[Problem]:
    """Where rules name classes and the model, which is there, did not tell its own."""
    if config.detector.model and names_classes(config):
        key: KeyPath = ("detector", "model")
        text = f"{dotted(key)}: {_NOT_CHECKED}, as the model has none or cannot be read; `check --probe` loads it"
        yield Problem(places(path).place(key), text)


def _looked(path: Path) -> str:
    """Where a relative path was looked for: they are meant from the folder that a command is given in."""
    return "" if path.is_absolute() else f" (looked in {Path.cwd()})"
