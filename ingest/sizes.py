"""Does an encoded packet say that something moves? Its size is compared with those of the quiet scene.

An encoder spends bytes on what changes. The usual size and its spread are the median and the median absolute deviation
(MAD), which a handful of odd packets do not bend; for each kind of frame apart, because a reordered (B) frame is a
fraction of the others. What an excess means is told by the keyframes: a keyframe is the price of the whole picture at
this quality, so one part in 250 of it is about the price of an object that covers one part in 250.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from av.packet import Packet
from av.video.stream import VideoStream

WINDOW = 128  # packets: five seconds at 25 fps, so that dusk and a warming sensor are followed
LEARNED = 24  # packets from which a median means something; one second at 25 fps
_RELEARN = 16  # packets; to sort the window at each would cost about as much as reading the packet from the network
_KEYFRAMES = 9
_RECENT = 5  # packets whose mean is judged beside the newest: what is small but steady
# Deviations above the usual that alarm. Sizes are not normally distributed (noise comes in bursts, the first packets
# after a keyframe differ): six gave an alarm in some ten seconds on noisy scenes, and a false one costs a look only.
_DEVIATIONS = 8.0
_SIGMA = 1.4826  # the MAD of a normal distribution times this is its standard deviation
# Below 0.3 % of the picture no detector at 640 pixels finds anything; and a static, noise-free scene has a MAD of zero.
_LEAST_SHARE = 0.005
# Measured: two people walking add 2 % of a keyframe to each packet, one 1 %. A scatter that hides that hides them.
MOST_SHARE = 0.02
# Measured on noisy scenes: at constant quality a packet is 0.2-1 % of a keyframe; 3.5 % and more where a rate control
# spends a fixed rate on the noise, and takes from the noise what something that moves would add.
BUSY_SHARE = 0.025
# Keyframes of a static scene differ by 1-2 %.
_KEYFRAME_SHARE = 0.03


def payload_bytes(packet: Packet[VideoStream]) -> int:
    """A packet's size without the filler that constant-bitrate encoders end it with.

    A filler NAL unit is a run of 0xFF bytes and a final 0x80 (H.264 7.3.2.7, H.265 7.3.2.8).
    """
    size = packet.size
    view = memoryview(packet)
    if size < 8 or view[size - 1] != 0x80 or view[size - 2] != 0xFF:
        return size
    return len(bytes(view[: size - 1]).rstrip(b"\xff"))


@dataclass(frozen=True, slots=True)
class Level:
    """What is usual for one kind of frame, and from which excess on it is not (bytes)."""

    usual: float
    excess: float


class SizeWatch:
    """Learns the packet sizes of one stream's quiet scene, and scores each new one. Pure: no clock, no video."""

    def __init__(self) -> None:
        self.caution = 1.0  # raises the alarm level; for who finds the alarms false
        self._sizes: dict[bool, deque[int]] = {kind: deque(maxlen=WINDOW) for kind in (False, True)}
        self._recent: dict[bool, deque[int]] = {kind: deque(maxlen=_RECENT) for kind in (False, True)}
        self._levels: dict[bool, Level | None] = {False: None, True: None}
        self._keyframes: deque[int] = deque(maxlen=_KEYFRAMES)
        self._new = {False: 0, True: 0}  # packets learned since their level was computed

    def learn(self, size: int, reordered: bool = False) -> None:
        """A packet of the quiet scene (bytes), not a keyframe."""
        self._sizes[reordered].append(size)
        self._new[reordered] += 1

    def forget(self) -> None:
        """Something moves: what is usual must be learned anew."""
        for sizes in self._sizes.values():
            sizes.clear()
        self._levels = {False: None, True: None}

    def _level(self, reordered: bool) -> Level | None:
        sizes, level = self._sizes[reordered], self._levels[reordered]
        if len(sizes) < LEARNED or (level is not None and self._new[reordered] < _RELEARN):
            return level
        self._new[reordered] = 0
        usual, spread = median_and_spread(sizes)
        least = _LEAST_SHARE * median(self._keyframes) if self._keyframes else 1.0
        level = self._levels[reordered] = Level(usual, max(_DEVIATIONS * spread, least, 1.0))
        return level

    def score(self, size: int, reordered: bool = False) -> float:
        """How loudly a packet says that something moves: from 1 on it is an alarm. 0 while nothing is learned."""
        recent, level = self._recent[reordered], self._level(reordered)
        recent.append(size)
        if level is None:
            return 0.0
        newest = (size - level.usual) / level.excess
        # The mean of five scatters half as much as one of them.
        steady = (sum(recent) / len(recent) - level.usual) / (level.excess / 2) if len(recent) == _RECENT else 0.0
        return max(newest, steady, 0.0) / self.caution

    def keyframe(self, size: int) -> bool:
        """Take in a keyframe's size (bytes); whether it is unusual among those before."""
        before = list(self._keyframes)
        self._keyframes.append(size)
        for recent in self._recent.values():
            recent.clear()
        if len(before) < 3:
            return True
        usual, spread = median_and_spread(before)
        return abs(size - usual) > max(_KEYFRAME_SHARE * usual, 4 * spread)

    @property
    def learned(self) -> bool:
        """Whether it can judge."""
        return bool(self._known()) and bool(self._keyframes)

    def _known(self) -> list[Level]:
        return [level for level in (self._level(False), self._level(True)) if level]

    @property
    def blindness(self) -> str | None:
        """Why these sizes would not tell when something moves; None when they would."""
        levels = self._known()
        keyframe = max(1.0, median(self._keyframes)) if self._keyframes else 1.0
        # The kind that sees best: B frames may be hopeless where the others are clear.
        scatter = min((level.excess for level in levels), default=0.0) / keyframe
        usual = max((level.usual for level in levels), default=0.0) / keyframe
        if scatter > MOST_SHARE:
            return f"packet sizes scatter by {scatter:.1%} of a keyframe; something that moves may add less"
        if usual > BUSY_SHARE:
            return f"packets of the quiet scene are {usual:.1%} of a keyframe: constant bitrate, or much noise"
        return None

    def times_usual(self, size: int, reordered: bool = False) -> float:
        """A packet's size over the usual one."""
        level = self._level(reordered)
        return size / max(1.0, level.usual) if level else math.nan


def median_and_spread(sizes: Iterable[int]) -> tuple[float, float]:
    """(median, standard deviation estimated from the MAD)."""
    values = sorted(sizes)
    middle = median(values)
    return middle, _SIGMA * median(sorted(abs(value - middle) for value in values))
