"""What can go wrong in this room. Each message says what was found, what was expected and how to mend it."""

from __future__ import annotations


class TrainerError(Exception):
    """Base of this room's errors: the words are for the person who runs Sparsecam."""


class CheckpointError(TrainerError):
    """The file is no checkpoint of a network this room builds, or holds what may not be loaded."""


class DataError(TrainerError):
    """A data set cannot be used as it is: its data.yaml, a picture or a label."""


class OutOfMemory(TrainerError):
    """The training wants more memory than there is; a smaller batch would do with less."""


class RecipeError(TrainerError):
    """A recipe cannot be read, or does not fit its network."""


class ExtraMissing(TrainerError):
    """A package of the training extra is not installed."""


class CardError(TrainerError):
    """A model's card cannot be read, or lacks what a card must say."""


class RegistryError(TrainerError):
    """The registry has no such model, or has one that is not what its card says."""


class ExportError(TrainerError):
    """The network cannot be exported so, or what was exported does not say what the network says."""
