"""Puts the frames of one camera back into order.

Several workers infer one camera's frames and finish out of turn. The broker numbers what it dispatches of a camera
0, 1, 2... (`order`), and a frame that goes to a second worker keeps its number; so a hole in the numbers is a frame
that is late or lost. It is waited for, but not for ever.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from sink.seen import Seen
from wire.messages import DetectionRecord

T = TypeVar("T")

# Brokers remembered a camera. A camera has one at a time, two while it moves or a broker restarts.
BROKERS = 4


@dataclass
class ReorderCounts:
    """What became of a camera's frames."""

    duplicates: int = 0  # the same frame again: dropped
    gaps: int = 0  # frames given up
    late: int = 0  # frames that came after they were given up: passed on at once, out of order


@dataclass
class _Held(Generic[T]):
    item: T
    arrived_s: float


@dataclass
class _Sequence(Generic[T]):
    """The numbers of one broker."""

    next_order: int = 0
    begun: bool = False  # False until the first frame is passed on: what came before that is history, not a gap
    held: dict[int, _Held[T]] = field(default_factory=dict)  # in order of arrival


class Reorder(Generic[T]):
    """One camera's frames, each with an item of the caller's that goes with it.

    Nothing is dropped but duplicates. `now_s` is any clock that rises.
    """

    def __init__(self, timeout_s: float, max_held: int, next_orders: dict[str, int] | None = None) -> None:
        self._timeout_s = timeout_s
        self._max_held = max_held
        self._sequences: OrderedDict[str, _Sequence[T]] = OrderedDict(
            (broker, _Sequence(order, begun=True)) for broker, order in (next_orders or {}).items()
        )
        self._seen = Seen()
        self.counts = ReorderCounts()

    @property
    def held(self) -> int:
        """Frames that wait for a missing one."""
        return sum(len(sequence.held) for sequence in self._sequences.values())

    @property
    def next_orders(self) -> dict[str, int]:
        """What a restart continues from: the next number of each broker that has begun."""
        return {broker: seq.next_order for broker, seq in self._sequences.items() if seq.begun}

    def is_duplicate(self, record: DetectionRecord) -> bool:
        """Whether this frame came before (then it is counted, and must not be pushed)."""
        known = self._seen.add(record.session, record.seq)
        self.counts.duplicates += known
        return known

    def push(self, record: DetectionRecord, item: T, now_s: float) -> list[T]:
        """Take a frame; return the items that can go on, in order."""
        released: list[T] = []
        sequence = self._sequences.get(record.broker)
        if sequence is None:
            sequence = self._sequences[record.broker] = _Sequence()
            if len(self._sequences) > BROKERS:
                _, oldest = self._sequences.popitem(last=False)
                while oldest.held:
                    released += self._skip_gap(oldest)
        self._sequences.move_to_end(record.broker)
        if record.order < sequence.next_order or record.order in sequence.held:
            self.counts.late += 1
            return [*released, item]
        sequence.held[record.order] = _Held(item, now_s)
        released += self._run(sequence)
        while len(sequence.held) > self._max_held:
            released += self._skip_gap(sequence)
        return released

    def expire(self, now_s: float) -> list[T]:
        """The items whose missing predecessors have been waited for long enough."""
        released: list[T] = []
        for sequence in self._sequences.values():
            # All that is held waits for the first hole, so the first to arrive says how long that has been known.
            while sequence.held and now_s - next(iter(sequence.held.values())).arrived_s >= self._timeout_s:
                released += self._skip_gap(sequence)
        return released

    def _run(self, sequence: _Sequence[T]) -> list[T]:
        """Release up to the next hole."""
        released: list[T] = []
        while (held := sequence.held.pop(sequence.next_order, None)) is not None:
            released.append(held.item)
            sequence.next_order += 1
            sequence.begun = True
        return released

    def _skip_gap(self, sequence: _Sequence[T]) -> list[T]:
        """Give up the first hole and release what follows it."""
        first = min(sequence.held)
        if sequence.begun:
            self.counts.gaps += first - sequence.next_order
        sequence.next_order = first
        return self._run(sequence)
