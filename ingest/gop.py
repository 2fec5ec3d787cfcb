"""The packets since the last keyframe: what a decoder needs to start now and not at the next keyframe."""

from __future__ import annotations

from av.packet import Packet
from av.video.stream import VideoStream

# 16 MiB is 16 s of a 8 Mbit/s camera, longer than any usual keyframe interval; 600 packets bound the time it takes to
# decode them all (about two seconds at 1080p).
MAX_BYTES = 16 * 2**20
MAX_PACKETS = 600


class HeldPackets:
    """Holds encoded packets from the newest keyframe on; holds none when they outgrow the bounds."""

    def __init__(self, max_bytes: int = MAX_BYTES, max_packets: int = MAX_PACKETS) -> None:
        self._max_bytes = max_bytes
        self._max_packets = max_packets
        self._packets: list[Packet[VideoStream]] = []
        self._bytes = 0

    def add(self, packet: Packet[VideoStream]) -> None:
        """Hold a packet; a keyframe replaces all held before."""
        if packet.is_keyframe:
            self._packets, self._bytes = [], 0
        elif not self._packets:
            return  # of no use without its keyframe
        self._packets.append(packet)
        self._bytes += packet.size
        if self._bytes > self._max_bytes or len(self._packets) > self._max_packets:
            self._packets, self._bytes = [], 0

    def take(self) -> list[Packet[VideoStream]]:
        """The held packets, oldest first; none are held afterwards."""
        packets, self._packets, self._bytes = self._packets, [], 0
        return packets
