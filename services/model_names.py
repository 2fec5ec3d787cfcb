"""Wherever a model's file is asked for its name in the registry does as well."""

from __future__ import annotations

from pathlib import Path

from detector.settings import DetectorSettings
from services.config import Config, find_config, load, refuse_model
from trainer.errors import RegistryError
from trainer.registry import find, is_name, shipped_folder


def registry_folders(folder: Path) -> list[Path]:
    """Where names are looked up: the config's `registry.folder`, then the models that come with Sparsecam."""
    shipped = shipped_folder()
    return [folder] if folder.resolve() == shipped.resolve() else [folder, shipped]


def model_file(text: str | Path, folder: Path | None = None) -> Path:
    """The file that `text` means: a file of that path, or else the model of that name.

    `folder` is the registry's; None: that of the config that a command without --config finds. What can be no name is
    returned as it is, there or not. Raises RegistryError for a name that nobody has, saying which there are, and for a
    model that is not what its card says; and ConfigError.
    """
    path = Path(text).expanduser() if str(text).startswith("~/") else Path(text)
    if path.is_file() or not is_name(str(text)):
        return path
    if folder is None:
        folder = load(find_config()).registry.folder
    return find(str(text), registry_folders(folder)).path


def with_model_file(settings: DetectorSettings, folder: Path) -> DetectorSettings:
    """The settings with the file of their model in place of its name; raises RegistryError."""
    if not settings.model:
        return settings
    return settings.model_copy(update={"model": str(model_file(settings.model, folder))})


def detector_settings(config: Config) -> DetectorSettings:
    """The config's detector with the file of its model; raises RegistryError."""
    return with_model_file(config.detector, config.registry.folder)


def refuse_unknown_model(config: Config, path: Path | None) -> None:
    """Raise ConfigError where the config loaded from `path` names a model that the registry does not have, whole."""
    try:
        detector_settings(config)
    except RegistryError as error:
        refuse_model(path, str(error))
