"""Small statistics: quantiles of samples, and of a histogram's buckets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Summary = dict[str, float]


def latency_summary(samples_ms: Sequence[float]) -> Summary:
    """What SparseML's benchmark prints of a run: mean, median, p90, p95, p99, standard deviation (milliseconds)."""
    if not len(samples_ms):
        return {}
    values = np.asarray(samples_ms, dtype=np.float64)
    p50, p90, p95, p99 = np.percentile(values, (50, 90, 95, 99))
    return _rounded({"mean": values.mean(), "median": p50, "p90": p90, "p95": p95, "p99": p99, "std": values.std()})


def stage_summary(samples_ms: Sequence[float]) -> Summary:
    """p50, p95, p99 and mean (milliseconds); empty for no samples."""
    if not len(samples_ms):
        return {}
    values = np.asarray(samples_ms, dtype=np.float64)
    p50, p95, p99 = np.percentile(values, (50, 95, 99))
    return _rounded({"p50": p50, "p95": p95, "p99": p99, "mean": values.mean()})


def histogram_summary(before: Mapping[float, float], after: Mapping[float, float]) -> Summary:
    """p50, p95, p99 (milliseconds) of what a Prometheus histogram counted between two scrapes.

    Both map upper edges (seconds, the last one infinite) to cumulative counts. Inside a bucket values are taken as
    evenly spread, as Prometheus's own histogram_quantile does; in the last, open one they are taken as its lower edge.
    """
    edges = sorted(after)
    counts = [after[edge] - before.get(edge, 0.0) for edge in edges]
    if not edges or counts[-1] <= 0:
        return {}
    found: Summary = {}
    for name, share in (("p50", 0.50), ("p95", 0.95), ("p99", 0.99)):
        wanted = share * counts[-1]
        at = next(index for index, count in enumerate(counts) if count >= wanted)
        low_s = edges[at - 1] if at else 0.0
        below = counts[at - 1] if at else 0.0
        inside = counts[at] - below
        if edges[at] == float("inf"):
            found[name] = low_s * 1e3
        else:
            found[name] = (low_s + (edges[at] - low_s) * ((wanted - below) / inside if inside else 1.0)) * 1e3
    return _rounded(found)


def _rounded(figures: Mapping[str, float]) -> Summary:
    return {name: round(float(value), 3) for name, value in figures.items()}
