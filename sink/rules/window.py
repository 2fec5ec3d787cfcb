"""k-of-n confirmation: the newest n frames, and what each of them showed."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterable
from operator import itemgetter

from msgspec import Struct, field

Key = int | str  # a track, a label, or a word for a condition of the whole picture


class Window(Struct, array_like=True):
    """The newest frames by event time: when, and what they showed."""

    frames: list[tuple[int, tuple[Key, ...]]] = field(default_factory=list)

    def add(self, event_us: int, shown: Iterable[Key], size: int) -> bool:
        """Put a frame in its place by time; False for one that is older than all that count."""
        if len(self.frames) >= size and event_us < self.frames[0][0]:
            return False
        insort(self.frames, (event_us, tuple(shown)), key=itemgetter(0))
        del self.frames[:-size]
        return True

    def matches(self) -> Counter[Key]:
        """For each key how many frames showed it."""
        found: Counter[Key] = Counter()
        for _, shown in self.frames:  # quicker than Counter's own counting, whose calls cost more than a few keys
            for key in shown:
                found[key] = found.get(key, 0) + 1
        return found

    @property
    def seen(self) -> int:
        """Frames there are."""
        return len(self.frames)
