"""Label files in YOLO's format: one object a line, `class cx cy w h` or `class x1 y1 x2 y2 ... xn yn` (a polygon, of
which its box is used), all but the class as shares (0..1) of the picture's width and height.

A picture without a label file, or with an empty one, shows no object: a background.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.errors import DataError

Labels = NDArray[np.float32]

ENCODING = "utf-8-sig"  # UTF-8; Windows' editors begin it with a mark that says nothing

# Exporters round to six digits and better; what lies further outside was measured against another picture.
_OUTSIDE = 1e-3


@dataclass(frozen=True)
class Fault:
    """One line that is not right. Lines with errors cannot be used; the others are mended as `what` says."""

    line: int  # from 1
    what: str
    error: bool


def label_path(picture: Path) -> Path:
    """Where a picture's label lies: its last folder `images` becomes `labels`; without one beside the picture."""
    parts = list(picture.parent.parts)
    for at in range(len(parts) - 1, -1, -1):
        if parts[at] == "images":
            parts[at] = "labels"
            break
    return Path(*parts, picture.stem + ".txt")


def read_labels(path: Path, classes: int) -> Labels:
    """Objects as (n, 5): class, and cx cy w h in 0..1, cut at the picture's edge; no file: (0, 5). Raises DataError."""
    try:
        text = path.read_text(encoding=ENCODING) if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text: {error}") from error
    rows, faults = parse_labels(text, classes)
    if errors := [fault for fault in faults if fault.error]:
        more = f", and {len(errors) - 1} more in this file" if len(errors) > 1 else ""
        raise DataError(
            f"{path}:{errors[0].line}: {errors[0].what}{more}; `sparsecam data check` lists all that is wrong"
        )
    return rows


def parse_labels(text: str, classes: int) -> tuple[Labels, list[Fault]]:
    """The usable objects of a label file's text, as `read_labels` gives them, and what is wrong with its lines."""
    rows: dict[tuple[float, ...], int] = {}  # in order, and the line of each
    faults: list[Fault] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row, mended = _row(line.split(), classes)
        except ValueError as error:
            faults.append(Fault(number, str(error), error=True))
            continue
        if mended:
            faults.append(Fault(number, mended, error=False))
        if row is None:
            continue
        if row in rows:
            faults.append(Fault(number, f"the same object as in line {rows[row]}; counted once", error=False))
        else:
            rows[row] = number
    return np.array(list(rows), np.float32).reshape(-1, 5), faults


def _row(fields: list[str], classes: int) -> tuple[tuple[float, ...] | None, str]:
    """One object (None: nothing of it is left) and what was mended; raises ValueError with what is wrong."""
    try:
        values = [float(field) for field in fields]
    except ValueError:
        raise ValueError(f"expected numbers, `class cx cy w h`, found {' '.join(fields)[:60]!r}") from None
    if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
        raise ValueError(
            f"{len(values)} numbers; expected 5, `class cx cy w h`, or a polygon's class and 3 points or more"
        )
    if not all(math.isfinite(value) for value in values):
        raise ValueError("a value is not finite")
    number, shares = values[0], values[1:]
    if number != int(number) or not 0 <= number < classes:
        raise ValueError(f"class {number:g}; data.yaml names the classes 0 to {classes - 1}")
    if outside := [share for share in shares if not -_OUTSIDE <= share <= 1 + _OUTSIDE]:
        raise ValueError(
            f"{outside[0]:g} is not in 0..1; coordinates are shares of the picture's width and height, not pixels"
        )
    if len(shares) == 4:
        cx, cy, width, height = shares
        edges = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
    else:
        edges = (min(shares[0::2]), min(shares[1::2]), max(shares[0::2]), max(shares[1::2]))
    left, top, right, bottom = (min(max(edge, 0.0), 1.0) for edge in edges)
    if right <= left or bottom <= top:
        return None, "the box has no area; left out"
    beyond = max(-edges[0], -edges[1], edges[2] - 1, edges[3] - 1)
    mended = f"the box reaches {beyond:.1%} out of the picture; cut at its edge" if beyond > _OUTSIDE else ""
    return (number, (left + right) / 2, (top + bottom) / 2, right - left, bottom - top), mended
