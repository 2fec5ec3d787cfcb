"""results.csv of a training: a row an epoch, under the names YOLOv5's users know.

Plain CSV of numbers. A row is appended with one write; a resumed run's first row takes the place of that epoch's and
all later ones, and of a line that a killed run left unfinished.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from trainer.errors import TrainerError

COLUMNS = (
    "epoch",
    "train/box_loss",
    "train/obj_loss",
    "train/cls_loss",
    "metrics/precision",
    "metrics/recall",
    "metrics/mAP_0.5",
    "metrics/mAP_0.5:0.95",
    "val/box_loss",
    "val/obj_loss",
    "val/cls_loss",
    "x/lr0",
    "x/lr1",
    "x/lr2",
    # Not YOLOv5's: behind, so that what reads by position still does.
    "train/sparsity",
    "time_s",
)


def append(path: Path, row: Mapping[str, float]) -> None:
    """Add an epoch; rows of this epoch and later ones are cut first. Columns not in `row` stay empty.

    Raises ValueError for a row without an epoch or with a column of another name, TrainerError for a file with other
    columns or with what is no number.
    """
    strange = sorted(row.keys() - set(COLUMNS))
    if strange or "epoch" not in row:
        raise ValueError(f"row of columns {sorted(row)}; expected epoch and any of {', '.join(COLUMNS)}")
    header, lines = _lines(path)
    if not is_ours(path):
        raise TrainerError(f"{path}: its columns are {header!r}; expected {','.join(COLUMNS)!r}; move the file away")
    before = read(path) if header is not None else []
    # A row that has lost its epoch is before nothing.
    kept = [line for line, old in zip(lines, before, strict=True) if old.get("epoch", row["epoch"]) < row["epoch"]]
    new = ",".join(_text(row[column]) if column in row else "" for column in COLUMNS)
    if header is not None and len(kept) == len(lines) and _ends_whole(path):
        with path.open("a", encoding="utf-8") as file:
            file.write(new + "\n")
        return
    beside = path.with_name(path.name + ".new")
    beside.write_text("\n".join([",".join(COLUMNS), *kept, new]) + "\n", encoding="utf-8")
    beside.replace(path)


def is_ours(path: Path) -> bool:
    """Whether `append` can go on in this file."""
    try:
        header, _ = _lines(path)
    except (OSError, UnicodeDecodeError):  # a folder, or another program's table
        return False
    return header is None or header == ",".join(COLUMNS)


def read(path: Path) -> list[dict[str, float]]:
    """Rows in order, empty fields left out; YOLOv5's own padded files too. An unfinished last line is not a row.

    Raises TrainerError, with the line, for what is no number; OSError where the file cannot be read.
    """
    header, lines = _lines(path)
    if header is None:
        path.stat()  # raises where there is no file
        return []
    columns = [column.strip() for column in header.split(",")]
    rows = []
    for number, fields in enumerate(csv.reader(lines), start=2):
        if len(fields) != len(columns):
            raise TrainerError(f"{path}:{number}: {len(fields)} fields; expected {len(columns)}, as in the first line")
        try:
            rows.append({column: float(text) for column, text in zip(columns, fields, strict=True) if text.strip()})
        except ValueError as error:
            raise TrainerError(f"{path}:{number}: {error}; expected numbers") from None
    return rows


def _lines(path: Path) -> tuple[str | None, list[str]]:
    """(header, rows) as text, without an unfinished last line; (None, []) of a file that is not there or empty."""
    if not path.exists():
        return None, []
    whole = path.read_text(encoding="utf-8").split("\n")[:-1]
    lines = [line for line in whole if line.strip()]
    return (lines[0], lines[1:]) if lines else (None, [])


def _ends_whole(path: Path) -> bool:
    return path.read_bytes().endswith(b"\n")


def _text(value: float) -> str:
    # Six digits tell two epochs apart; more would be noise in people's diffs.
    return f"{value:.6g}"
