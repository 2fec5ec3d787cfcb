"""A matplotlib figure that needs no display and shares no state: plots may be drawn from any thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import TrainerError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 150  # about 1500 pixels for ten inches: readable small print, some 100 kB a picture


@contextmanager
def figure(png: Path, width: float, height: float) -> Iterator[Figure]:
    """Draw into what this gives; it is saved to `png` at the end. Sizes in inches.

    Raises TrainerError where matplotlib is not installed, OSError where the file cannot be written.
    """
    try:
        # Not pyplot: that keeps every figure, and asks for a display.
        from matplotlib.figure import Figure
    except ImportError:
        raise TrainerError("plots want matplotlib: pip install 'sparsecam[train]'") from None
    drawn = Figure(figsize=(width, height), layout="constrained")
    yield drawn
    png.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(png, dpi=_DPI)
