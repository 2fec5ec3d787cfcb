"""The packets since the last keyframe: what a decoder needs to start now and not at the next keyframe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from av.packet import Packet
from av.video.stream import VideoStream

# 16 MiB is 16 s of a 8 Mbit/s camera, longer than any usual keyframe interval; 600 packets bound the time it takes to
# decode them all (about two seconds at 1080p).
MAX_BYTES = 16 * 2**20
MAX_PACKETS = 600


@dataclass(slots=True)
class Held:
    """One packet that waits undecoded. Once `counted`, its picture serves as a reference and for nothing else."""

    packet: Packet[VideoStream]
    captured_ns: int
    counted: bool


class HeldPackets:
    """Holds encoded packets from the newest keyframe on; holds none when they outgrow the bounds.

    A packet leaves it uncounted only by `take`: who adds packets that are not counted must look at `fits` before, and
    must `settle` them before the next keyframe, or they are lost to the books.
    """

    def __init__(self, max_bytes: int = MAX_BYTES, max_packets: int = MAX_PACKETS) -> None:
        self._max_bytes = max_bytes
        self._max_packets = max_packets
        self._held: list[Held] = []
        self._bytes = 0
        self._settled = 0  # this many at the front are all counted

    def __iter__(self) -> Iterator[Held]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def fits(self, packet: Packet[VideoStream]) -> bool:
        """Whether another packet stays in the bounds."""
        return len(self._held) < self._max_packets and self._bytes + packet.size <= self._max_bytes

    def add(self, packet: Packet[VideoStream], captured_ns: int = 0, counted: bool = True) -> None:
        """Hold a packet; a keyframe replaces all held before."""
        fits = self.fits(packet)
        if packet.is_keyframe:
            self.take()
            fits = self.fits(packet)
        elif not self._held:
            return  # of no use without its keyframe
        if not fits:
            self.take()
            return
        self._held.append(Held(packet, captured_ns, counted))
        self._bytes += packet.size

    def settle(self, before_pts: float = float("inf")) -> int:
        """Count what is shown before a time of the stream (in its time base); returns how many were not counted yet.

        Goes on from the front and stops at the first that is too new, so each packet is looked at once.
        """
        count = 0
        while self._settled < len(self._held):
            held = self._held[self._settled]
            if held.packet.pts is not None and held.packet.pts >= before_pts:
                break
            count += not held.counted
            held.counted = True
            self._settled += 1
        return count

    def take(self) -> list[Held]:
        """The held packets, oldest first; none are held afterwards."""
        held, self._held, self._bytes, self._settled = self._held, [], 0, 0
        return held
