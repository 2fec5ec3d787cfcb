"""The progress bar of all benchmarks: on standard error, gone when done, nothing where nobody looks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


class Steps:
    """A bar of steps; `next` names the one that begins."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=total)
        self._begun = False

    def next(self, what: str) -> None:
        """The step before is done, this one begins."""
        self._progress.update(self._task, description=what, advance=int(self._begun))
        self._begun = True


@contextmanager
def steps(total: int) -> Iterator[Steps]:
    """A bar of `total` steps."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Steps(progress, total)
