"""Peers in turns, A B C A B C, so that other load on the machine hits all alike; medians, ratios by round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

from benchmarks.peers.protocol import Result
from benchmarks.peers.quiet import QUIET_SHARE, Watch, wait_for_quiet
from benchmarks.peers.venvs import PeerUnavailable

log = structlog.get_logger()


@dataclass
class Row:
    """One peer over all rounds: its results, or why it has none (or no more)."""

    name: str
    results: dict[int, Result] = field(default_factory=dict)  # by round
    others: dict[int, float] = field(default_factory=dict)  # share of the cores that others took, by round
    unavailable: str = ""


@dataclass(frozen=True)
class Spread:
    """Median and range of a figure over the rounds."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Patience:
    """What is done about other programs on the cores; by default nothing but to report their share."""

    wait_s: float = 0  # before each turn, at most, for the cores to be idle
    repeats: int = 0  # of a turn that was disturbed all the same; the least disturbed one counts


def take_turns(
    runs: Mapping[str, Callable[[], Result]], rounds: int, cores: tuple[int, ...], patience: Patience
) -> dict[str, Row]:
    """Run each peer once a round; one that fails is out, with its reason, and keeps what it has."""
    rows = {name: Row(name) for name in runs}
    for number in range(rounds):
        for name, run in runs.items():
            row = rows[name]
            if row.unavailable:
                continue
            try:
                result, share = _turn(run, cores, patience)
            except PeerUnavailable as error:
                row.unavailable = str(error)
                log.warning("peer is out", peer=name, round=number + 1, why=row.unavailable)
                continue
            row.results[number], row.others[number] = result, share
            turn = f"{number + 1}/{rounds}"
            log.info("peer ran", peer=name, round=turn, fps=round(result.fps, 1), taken_by_others=f"{share:.0%}")
    return rows


def _turn(run: Callable[[], Result], cores: tuple[int, ...], patience: Patience) -> tuple[Result, float]:
    """The least disturbed result of as many tries as it takes to get a quiet one, and the share others took."""
    tries: list[tuple[Result, float]] = []
    while len(tries) <= patience.repeats and not (tries and tries[-1][1] <= QUIET_SHARE):
        wait_for_quiet(cores, patience.wait_s)
        watch = Watch.start(cores)
        tries.append((run(), watch.others_share()))
    return min(tries, key=lambda it: it[1])


def fps(row: Row) -> Spread | None:
    """Frames a second over the rounds; None for a peer without a result."""
    return _spread([result.fps for result in row.results.values()])


def cpu_ms(row: Row) -> Spread | None:
    """CPU milliseconds a frame, all threads; None where the peer does not tell."""
    return _spread([1e3 * it.cpu_seconds / it.frames for it in row.results.values() if it.cpu_seconds is not None])


def ratio(row: Row, base: Row) -> Spread | None:
    """Speed in multiples of the base's, formed within each round that both finished; None without any."""
    both = row.results.keys() & base.results.keys()
    return _spread([row.results[number].fps / base.results[number].fps for number in both])


def others(row: Row) -> Spread | None:
    """Share of the cores, 0..1, that other programs took during the turns; what makes figures doubtful."""
    return _spread(list(row.others.values()))


def _spread(figures: list[float]) -> Spread | None:
    return Spread(statistics.median(figures), min(figures), max(figures)) if figures else None
