"""RTP packets for H.264: single NAL, STAP-A and FU-A (RFC 6184), and RTCP sender reports (RFC 3550)."""

from __future__ import annotations

import secrets
import struct
import time
from collections.abc import Iterator, Sequence

from ingest.sim.h264 import RTP_CLOCK_HZ, AccessUnit

PAYLOAD_TYPE = 96  # the first dynamic payload type (RFC 3551)
# RTP header (12) + UDP (8) + IPv6 (40) + this stay below Ethernet's 1500 bytes.
MAX_PAYLOAD = 1400
NTP_EPOCH_OFFSET_S = 2_208_988_800  # from 1900 (NTP) to 1970 (Unix)
_STAP_A, _FU_A = 24, 28


def payloads(nals: Sequence[bytes], max_payload: int = MAX_PAYLOAD) -> Iterator[bytes]:
    """RTP payloads for the NAL units of one access unit, none longer than `max_payload` (at least 8 bytes).

    Small neighbours share a STAP-A, a NAL unit that fits goes alone, a longer one is cut into FU-A fragments.
    """
    if max_payload < 8:
        raise ValueError(f"max_payload is {max_payload}; a fragment needs at least 8 bytes")
    waiting: list[bytes] = []
    waiting_bytes = 1
    for nal in nals:
        if waiting and waiting_bytes + 2 + len(nal) > max_payload:
            yield _aggregate(waiting)
            waiting, waiting_bytes = [], 1
        if len(nal) > max_payload:
            yield from _fragments(nal, max_payload)
        else:
            waiting.append(nal)
            waiting_bytes += 2 + len(nal)
    if waiting:
        yield _aggregate(waiting)


def _aggregate(nals: list[bytes]) -> bytes:
    if len(nals) == 1:
        return nals[0]
    importance = max(nal[0] & 0x60 for nal in nals)  # nal_ref_idc of the most important one
    return bytes([importance | _STAP_A]) + b"".join(struct.pack(">H", len(nal)) + nal for nal in nals)


def _fragments(nal: bytes, max_payload: int) -> Iterator[bytes]:
    indicator = (nal[0] & 0xE0) | _FU_A
    kind = nal[0] & 0x1F
    room = max_payload - 2
    for at in range(1, len(nal), room):
        start = 0x80 if at == 1 else 0
        end = 0x40 if at + room >= len(nal) else 0
        yield bytes([indicator, start | end | kind]) + nal[at : at + room]


class Packetiser:
    """Numbers one stream's packets. Sequence and timestamp start at random, as RFC 3550 section 5.1 asks."""

    def __init__(self, max_payload: int = MAX_PAYLOAD) -> None:
        self.ssrc = secrets.randbits(32)
        self._next_sequence = secrets.randbits(16)
        self._time_base = secrets.randbits(32)
        self._max_payload = max_payload
        self._packets = 0
        self._octets = 0
        self._last_timestamp = self._time_base
        self._last_monotonic_s = time.monotonic()

    def packets(self, unit: AccessUnit) -> list[bytes]:
        """RTP packets of one access unit; the last has the marker bit."""
        timestamp = (self._time_base + unit.rtp_ticks) & 0xFFFFFFFF
        bodies = list(payloads(unit.nals, self._max_payload))
        result = []
        for at, body in enumerate(bodies):
            marker = 0x80 if at == len(bodies) - 1 else 0
            header = struct.pack(">BBHII", 0x80, marker | PAYLOAD_TYPE, self._next_sequence, timestamp, self.ssrc)
            result.append(header + body)
            self._next_sequence = (self._next_sequence + 1) & 0xFFFF
            self._octets += len(body)
        self._packets += len(bodies)
        self._last_timestamp, self._last_monotonic_s = timestamp, time.monotonic()
        return result

    def sender_report(self) -> bytes:
        """An RTCP sender report: which RTP timestamp belongs to now (RFC 3550 section 6.4.1)."""
        elapsed_s = time.monotonic() - self._last_monotonic_s
        timestamp = (self._last_timestamp + int(elapsed_s * RTP_CLOCK_HZ)) & 0xFFFFFFFF
        seconds, fraction = divmod(time.time() + NTP_EPOCH_OFFSET_S, 1.0)
        return struct.pack(
            ">BBHIIIIII",
            0x80,
            200,  # SR
            6,  # length in 32-bit words, less one
            self.ssrc,
            int(seconds) & 0xFFFFFFFF,
            int(fraction * 2**32) & 0xFFFFFFFF,
            timestamp,
            self._packets & 0xFFFFFFFF,
            self._octets & 0xFFFFFFFF,
        )
