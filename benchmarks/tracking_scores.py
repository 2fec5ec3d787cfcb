"""HOTA, IDF1 and MOTA by TrackEval, the code that HOTA was published with. Run with TrackEval's own Python.

Reads from standard input a JSON list of sequences, each a list of frames, each `{"truth": [[id, box]...], "tracks":
[[id, box]...]}` with boxes (left, top, right, bottom); writes the scores of all together as one JSON object.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

import numpy as np


def scores(sequences: list[list[dict[str, Any]]]) -> dict[str, float]:
    """All sequences scored as one data set, as TrackEval does (COMBINED)."""
    with contextlib.redirect_stdout(sys.stderr):  # it prints what it does
        from trackeval.metrics import CLEAR, HOTA, Identity  # type: ignore[import-not-found,unused-ignore]  # in an environment of its own

        found: dict[str, Any] = {}
        for metric in (HOTA(), CLEAR({"PRINT_CONFIG": False}), Identity({"PRINT_CONFIG": False})):
            results = {str(index): metric.eval_sequence(data(frames)) for index, frames in enumerate(sequences)}
            found |= metric.combine_sequences(results)
    shares = {name: float(np.mean(found[name])) for name in ("HOTA", "DetA", "AssA", "IDF1", "MOTA")}
    return shares | {name: int(found[name]) for name in ("IDSW", "Frag", "CLR_FP", "CLR_FN", "CLR_TP")}


def data(frames: list[dict[str, Any]]) -> dict[str, Any]:
    """A sequence in the form of TrackEval's metrics: ids from 0, one matrix of overlaps a frame."""
    out: dict[str, Any] = {"num_timesteps": len(frames), "similarity_scores": []}
    for name, ours in (("gt", "truth"), ("tracker", "tracks")):
        number: dict[Any, int] = {}
        ids = [np.array([number.setdefault(one[0], len(number)) for one in frame[ours]], int) for frame in frames]
        out |= {f"{name}_ids": ids, f"num_{name}_ids": len(number), f"num_{name}_dets": sum(map(len, ids))}
    for frame in frames:
        truth, tracks = (
            np.array([one[1] for one in frame[name]], float).reshape(-1, 4) for name in ("truth", "tracks")
        )
        out["similarity_scores"].append(iou(truth, tracks))
    return out


def iou(one: Any, other: Any) -> Any:
    """Intersection over union of (n, 4) with (m, 4) boxes."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=2)
    areas = np.prod(one[:, 2:] - one[:, :2], axis=1)[:, None] + np.prod(other[:, 2:] - other[:, :2], axis=1)[None]
    return common / np.maximum(areas - common, 1e-9)


if __name__ == "__main__":
    json.dump(scores(json.load(sys.stdin)), sys.stdout)
