"""Why a benchmark or a plan cannot be made."""

from __future__ import annotations


class BenchError(RuntimeError):
    """A measurement failed: says what, and where to look."""


class PlanError(ValueError):
    """A plan that makes no sense: says which number, what is possible, and how to mend it."""
