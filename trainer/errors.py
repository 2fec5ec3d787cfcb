"""What can go wrong in this room. Each message says what was found, what was expected and how to mend it."""

from __future__ import annotations


class TrainerError(Exception):
    """Base of this room's errors: the words are for the person who runs Sparsecam."""


class CheckpointError(TrainerError):
    """The file is no checkpoint of a network this room builds, or holds what may not be loaded."""


class CardError(TrainerError):
    """A model's card cannot be read, or lacks what a card must say."""


class RegistryError(TrainerError):
    """The registry has no such model, or has one that is not what its card says."""
