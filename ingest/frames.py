"""What a reader delivers: pictures, and word of the frames it did not decode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from av import VideoFrame
from numpy.typing import NDArray

from ingest.errors import SourceError
from wire.messages import DropCause


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded frame: a PyAV frame, or an upright BGR image (height, width, 3) uint8 of a folder."""

    image: VideoFrame | NDArray[np.uint8]
    pts_s: float | None  # the source's own time
    captured_ns: int  # CLOCK_MONOTONIC when its packet arrived


@dataclass(frozen=True, slots=True)
class Skipped:
    """Frames that the source delivered and of which no picture was made."""

    cause: DropCause
    count: int


Delivery = Picture | Skipped


class Reader(Protocol):
    """An open source. One thread uses it."""

    @property
    def nominal_s(self) -> float:
        """The usual time between its frames (seconds)."""

    @property
    def concealed(self) -> int:
        """Pictures delivered although the decoder had to guess parts of them."""

    @property
    def defect(self) -> SourceError | None:
        """What was wrong with a source that nevertheless came to its end."""

    def deliveries(self) -> Iterator[Delivery]:
        """Every frame once, until the source ends; SourceError when it cannot be read on, or a live one ended."""

    def close(self) -> None:
        """Release it; harmless to repeat."""
