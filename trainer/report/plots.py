"""Plots of a training, under the file names YOLOv5's users know: results.png, PR_curve.png and the like, labels.png."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainer.errors import TrainerError
from trainer.metrics import Scores
from trainer.report.figure import figure
from trainer.results import read

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Rows of panels: above what is trained on, below what is held back.
_PANELS = (
    ("train/box_loss", "train/obj_loss", "train/cls_loss", "metrics/precision", "metrics/recall", "x/lr0"),
    ("val/box_loss", "val/obj_loss", "val/cls_loss", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95", "train/sparsity"),
)
_SMOOTHING_EPOCHS = 3.0  # standard deviation of the line through a noisy curve: evens out a few epochs, no more
_LEGEND_CLASSES = 20  # more names than these would cover the curves
_NAMED_BARS = 30  # more names than these would overlap under the bars
_SHOWN_BOXES = 1000  # enough to see the spread


def plot_results(results: Path, png: Path) -> None:
    """Draw results.csv, a panel a column; raises TrainerError where it has no rows."""
    rows = read(results)
    if not rows:
        raise TrainerError(f"{results}: no epochs to draw")
    with figure(png, 18, 6) as drawn:
        axes = drawn.subplots(2, len(_PANELS[0]))
        for axis, column in zip(axes.flat, (name for names in _PANELS for name in names), strict=True):
            points = [(row["epoch"], row[column]) for row in rows if column in row]
            axis.set_title(column, fontsize=10)
            if not points:
                axis.set_axis_off()
                continue
            epochs, values = zip(*points, strict=True)
            axis.plot(epochs, values, marker=".", markersize=4, linewidth=1.2)
            axis.plot(epochs, _smoothed(epochs, values), linestyle=":", linewidth=1.8, label="smoothed")
        axes[0, 0].legend(fontsize=8)
        for axis in axes[1]:
            axis.set_xlabel("epoch", fontsize=8)


def plot_curves(scores: Scores, folder: Path) -> list[Path]:
    """Draw PR_curve.png, F1_curve.png, P_curve.png and R_curve.png into the folder, at IoU 0.5; gives their paths."""
    curves = scores.curves
    best = f"best mean F1 {scores.f1:.3f} at {scores.f1_conf:.3f}"
    files = []
    for name, y, values in (
        ("F1_curve.png", "F1", curves.f1),
        ("P_curve.png", "precision", curves.precision),
        ("R_curve.png", "recall", curves.recall),
    ):
        files.append(folder / name)
        with figure(files[-1], 9, 6) as drawn:
            axis = drawn.subplots()
            labels = [score.name for score in scores.per_class]
            _lines(axis, curves.confidences, values, labels, best if y == "F1" else "mean of classes")
            axis.set(xlabel="confidence", ylabel=y, title=f"{y} by confidence, IoU 0.5")
            if scores.per_class:
                axis.axvline(scores.f1_conf, color="grey", linestyle="--", linewidth=0.8)
    files.append(folder / "PR_curve.png")
    with figure(files[-1], 9, 6) as drawn:
        axis = drawn.subplots()
        labels = [f"{score.name} {score.map50:.3f}" for score in scores.per_class]
        _lines(axis, curves.recalls, curves.precision_at_recall, labels, f"mAP@0.5 {scores.map50:.3f}")
        axis.set(xlabel="recall", ylabel="precision", title="precision by recall, IoU 0.5")
    return files


def plot_labels(rows: NDArray[Any], names: Sequence[str], png: Path) -> None:
    """Draw a data set's labels: objects a class, boxes upon one another, where and how large they are.

    Rows are (n, 5): class, centre x and y, width, height, as fractions of the picture.
    """
    classes = rows[:, 0].astype(np.int64)
    with figure(png, 12, 10) as drawn:
        (bars, boxes), (centres, sizes) = drawn.subplots(2, 2)
        bars.bar(np.arange(len(names)), np.bincount(classes, minlength=len(names)), color=_colors(len(names)))
        bars.set(ylabel="objects", title=f"{len(rows)} objects")
        if len(names) <= _NAMED_BARS:
            bars.set_xticks(np.arange(len(names)), names, rotation=90 if len(names) > 5 else 0)
        else:
            bars.set_xlabel("class")
        _draw_boxes(boxes, rows, len(names))
        for axis, columns, labels in ((centres, (1, 2), ("x", "y")), (sizes, (3, 4), ("width", "height"))):
            axis.hist2d(rows[:, columns[0]], rows[:, columns[1]], bins=50, range=((0, 1), (0, 1)), cmap="Blues")
            axis.set(xlabel=f"{labels[0]} / picture", ylabel=f"{labels[1]} / picture")
        centres.invert_yaxis()  # as in a picture: down is more
        centres.set_title("centres")
        sizes.set_title("sizes")


def _draw_boxes(axis: Axes, rows: NDArray[Any], classes: int) -> None:
    """Boxes around one centre, a colour a class; spread evenly over the set where there are too many."""
    from matplotlib.collections import LineCollection

    shown = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _SHOWN_BOXES)).astype(np.int64))]
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]]) / 2
    colors = np.array(_colors(classes)).reshape(-1, 4)[shown[:, 0].astype(np.int64)]
    axis.add_collection(
        LineCollection(list(0.5 + corners * shown[:, None, 3:5]), colors=list(colors), linewidths=0.5, alpha=0.3)
    )
    axis.set(xlim=(0, 1), ylim=(0, 1), title="boxes", aspect="equal")


def _lines(axis: Axes, x: NDArray[Any], rows: NDArray[Any], labels: Sequence[str], mean: str) -> None:
    for row, label, color in zip(rows, labels, _colors(len(labels)), strict=True):
        few = len(labels) <= _LEGEND_CLASSES
        axis.plot(x, row, linewidth=1 if few else 0.5, color=color if few else "grey", label=label if few else None)
    if labels:
        axis.plot(x, rows.mean(axis=0), linewidth=2.5, color="blue", label=mean)
        axis.legend(fontsize=8, loc="best")
    else:
        axis.text(0.5, 0.5, "no objects", ha="center")
    axis.set(xlim=(0, 1), ylim=(0, 1.02))


def _smoothed(epochs: Sequence[float], values: Sequence[float]) -> NDArray[Any]:
    """Mean of the neighbours, weighted by nearness in epochs; gaps are passed over."""
    at, points = np.array(epochs), np.array(values)
    known = np.isfinite(points)
    if not known.any():
        return points
    near = np.exp(-0.5 * ((at[:, None] - at[None, known]) / _SMOOTHING_EPOCHS) ** 2)
    smoothed: NDArray[Any] = near @ points[known] / np.maximum(near.sum(axis=1), np.finfo(float).tiny)
    return smoothed


def _colors(number: int) -> list[tuple[float, float, float, float]]:
    """Red, green, blue, opacity of each class, far apart around the wheel of hues."""
    from matplotlib import colormaps

    return [colormaps["hsv"](float(hue)) for hue in np.arange(number) * 0.618034 % 1.0]  # the golden ratio spreads best
