"""When to try a lost source again.

Decorrelated jitter after the AWS Architecture Blog ("Exponential Backoff and Jitter", M. Brooker, 2015):
`wait = min(cap, uniform(base, previous * 3))`. Cameras that a common switch took down come back one by one and not in
step. The default cap is one second, lower than the article's cloud services want: an attempt is one TCP handshake with
one camera in the same building, and a guard wants the picture within two seconds of the camera's return.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from ingest.settings import ReconnectSettings


class Backoff:
    """The waits of one camera. `clock` is monotonic seconds."""

    def __init__(
        self,
        settings: ReconnectSettings,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._uniform = uniform
        self._previous_s = settings.base_s
        self._healthy_since_s: float | None = None

    def streaming(self) -> None:
        """A frame arrived: health is counted from the first one after each attempt."""
        if self._healthy_since_s is None:
            self._healthy_since_s = self._clock()

    def next_wait_s(self, stubborn: bool = False) -> float:
        """The wait before the next attempt. A camera that streamed for healthy_after_s starts again from base_s.

        A camera that flaps (streams for a few seconds, over and over) keeps its place in the sequence.
        """
        settings = self._settings
        since_s, self._healthy_since_s = self._healthy_since_s, None
        if since_s is not None and self._clock() - since_s >= settings.healthy_after_s:
            self._previous_s = settings.base_s
        cap_s = settings.stubborn_cap_s if stubborn else settings.cap_s
        self._previous_s = min(cap_s, self._uniform(settings.base_s, max(settings.base_s, self._previous_s * 3)))
        return self._previous_s
