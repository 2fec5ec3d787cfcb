"""The table of confusion as a picture: of all objects of a class, which part was found as what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainer.matching import Floats, Ints
from trainer.metrics import CONFUSION_CONFIDENCE, CONFUSION_IOU
from trainer.report.figure import figure

_NAMED = 50  # more names than these would overlap along the sides
_NUMBERED = 20  # more columns than these leave no room for figures in the cells
_SHOWN_SHARE = 0.005  # a smaller share would read as 0.00


def shares(matrix: Ints) -> Floats:
    """Each column of counts as parts of its sum: of what is there, what it was found as; 0 of an empty column."""
    total = matrix.sum(axis=0, keepdims=True)
    result: Floats = np.divide(matrix, total, out=np.zeros(matrix.shape), where=total > 0)
    return result


def plot_confusion(matrix: Ints, names: Sequence[str], png: Path) -> None:
    """Draw `Scores.confusion`, (classes + 1, classes + 1): found as (down) by what is there (across).

    The last row holds objects that were missed, the last column detections of nothing.
    """
    if matrix.shape != (len(names) + 1,) * 2:
        raise ValueError(f"table of {matrix.shape} for {len(names)} names; expected one more each way")
    parts = shares(matrix)
    side = min(6 + 0.25 * len(names), 18)
    with figure(png, side + 1, side) as drawn:
        axis = drawn.subplots()
        shown = axis.imshow(parts, cmap="Blues", vmin=0, vmax=1)
        drawn.colorbar(shown, ax=axis, shrink=0.8)
        labels = [*names, "background"]
        if len(labels) <= _NAMED:
            axis.set_xticks(np.arange(len(labels)), labels, rotation=90 if len(labels) > 5 else 0)
            axis.set_yticks(np.arange(len(labels)), labels)
        if len(labels) <= _NUMBERED:
            for row, column in np.argwhere(parts >= _SHOWN_SHARE):
                dark = parts[row, column] > 0.5
                text = f"{parts[row, column]:.2f}\n{matrix[row, column]}"
                axis.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
        title = f"shares of a column, confidence {CONFUSION_CONFIDENCE:g}, IoU {CONFUSION_IOU:g}"
        axis.set(xlabel="is", ylabel="found as", title=title)
