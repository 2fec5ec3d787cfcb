"""Whose turn it is: of those that wait, who has had the fewest turns.

A ring of those that wait is not fair to live cameras. One whose slot is empty when the ring comes round joins it again
at the end, and what it missed is forgotten; which cameras that hits depends on how their clocks lie to each other, and
so it is the same ones for minutes. Counting turns makes up for it. (The count is the start tag of start-time fair
queueing, Goyal, Vin and Cheng 1996, with frames of equal cost and a bounded memory of turns missed.)
"""

from __future__ import annotations

import heapq
from itertools import count

# Turns that who was away may have missed and is still owed. A few are what jitter costs a camera; a camera that was
# away for an hour must not shut out the others when it comes back.
OWED = 4

_Place = tuple[int, int, str]  # turns had, number of the place, name


class Turns:
    """Who waits, by name. A name waits once, however often it is told so."""

    def __init__(self) -> None:
        self._had: dict[str, int] = {}  # turns had; who was away is taken to have had all but OWED of them
        self._now = 0  # the most that anybody had whose turn came: where newcomers begin
        self._waiting: dict[str, _Place] = {}
        self._heap: list[_Place] = []  # of those waiting, and some that hold no more
        self._number = count()

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self, name: str) -> None:
        """`name` waits; of those with as many turns it is the last."""
        if name not in self._waiting:
            self._had[name] = max(self._had.get(name, self._now), self._now - OWED)
            self._put((self._had[name], next(self._number), name))

    def give_back(self, name: str) -> None:
        """The turn that `name` made use of came to nothing: it waits, before all others."""
        self._had[name] -= 1
        self._put((-1, -next(self._number), name))

    def _put(self, place: _Place) -> None:
        self._waiting[place[2]] = place
        heapq.heappush(self._heap, place)

    def pop(self) -> str:
        """Who is next; it does not wait any more. Raises IndexError when nobody waits."""
        while True:
            place = heapq.heappop(self._heap)
            name = place[2]
            if self._waiting.get(name) is place:
                del self._waiting[name]
                self._now = max(self._now, place[0])
                return name

    def had(self, name: str) -> None:
        """`name`, whose turn came, made use of it."""
        self._had[name] += 1
