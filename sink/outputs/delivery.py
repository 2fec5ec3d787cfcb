"""What an output is: it delivers one alert, or says how it failed.

The kind of failure decides what happens next, so each output sorts its own: to wait with this alert, to wait with all
of them, or to put it aside.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from wire.alerts import Alert


class DeliveryError(Exception):
    """An alert was not delivered, or not for certain. The text names no secret."""


class Refused(DeliveryError):
    """It will never be taken as it is: no further attempt."""


class Failed(DeliveryError):
    """The receiver answers, but does not take this alert now: others may pass it meanwhile."""


class Unreachable(DeliveryError):
    """The receiver takes nothing now: all alerts wait. `wait_s` is how long it asked for, 0 where it did not."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Output(ABC):
    """Used by one thread."""

    @abstractmethod
    def deliver(self, alert: Alert, text: bytes) -> None:
        """Return when the receiver has it; `text` is the alert's JSON. Raises DeliveryError otherwise.

        Must end within a time limit of its own. The same alert may come again: `alert.id` tells the receiver.
        """

    def refresh(self) -> bool:
        """Bring the receiver up to date; called every few seconds while there is nothing to deliver.

        Returns whether it was asked anything. Raises Unreachable when it takes nothing now.
        """
        return False

    def release(self) -> None:
        """Another process delivers now. May be called again and again."""
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Let go of connections and files. May be called again, and `deliver` after it."""
