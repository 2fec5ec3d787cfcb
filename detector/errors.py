"""What can go wrong in this room. Each message says what was found, what was expected and how to mend it."""

from __future__ import annotations


class DetectorError(Exception):
    """Base of this room's errors: the words are for the person who runs Sparsecam."""

    lasting = True  # whether it would come again; a want of time, memory or disk may pass


class ModelError(DetectorError):
    """The model file cannot be read, or is not a picture-in network."""


class HeadError(DetectorError):
    """The model runs, but its outputs are of no known detection head."""


class EngineUnavailable(DetectorError):
    """The engine that was asked for is not installed here."""


class EngineRefused(DetectorError):
    """The engine could not compile or run the model, or died trying."""

    def __init__(self, message: str, *, lasting: bool = True) -> None:
        """`lasting`: see DetectorError."""
        super().__init__(message)
        self.lasting = lasting


class BadFrame(DetectorError):
    """A frame's header and pixels disagree, or it has a shape this model does not take."""
