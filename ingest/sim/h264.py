"""H.264 byte streams: Annex B splitting, access units, and a frame index carried in SEI.

Annex B is ITU-T H.264 annex B; NAL unit types are its table 7-1; the SEI message used here is user_data_unregistered
(payload type 5, H.264 D.1.7), which decoders hand through to the application untouched.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from typing import NamedTuple, cast
from uuid import UUID

import av
from av.sidedata.sidedata import SideData

NAL_IDR, NAL_SEI, NAL_SPS, NAL_PPS, NAL_AUD = 5, 6, 7, 8, 9
RTP_CLOCK_HZ = 90_000  # the only RTP clock H.264 may use (RFC 6184 section 8.2.1)

# Marks our own SEI messages among those of other encoders. A fixed random UUID (version 4).
FRAME_INDEX_UUID = UUID("5f3a1c52-9d0b-4c1e-8a66-2b7f4e9d7a10")

_START_CODE = re.compile(rb"\x00\x00\x01")
_NEEDS_ESCAPE = re.compile(rb"\x00\x00(?=[\x00-\x03])")


class ParameterSets(NamedTuple):
    """What a decoder must have before the first slice: one sequence and one picture parameter set, no start codes."""

    sps: bytes
    pps: bytes


class AccessUnit(NamedTuple):
    """One coded picture. `rtp_ticks` is its presentation time in 1/90000 s since the stream began (not wrapped)."""

    nals: tuple[bytes, ...]  # without start codes
    rtp_ticks: int
    keyframe: bool


def nal_type(nal: bytes) -> int:
    """The type of a NAL unit, from its first byte."""
    return nal[0] & 0x1F


def split_annexb(stream: bytes) -> list[bytes]:
    """The NAL units of an Annex B byte stream, in order, without start codes and trailing zero bytes."""
    starts = [match.end() for match in _START_CODE.finditer(stream)]
    if not starts:
        return []
    ends = [start - 3 for start in starts[1:]] + [len(stream)]
    # A NAL unit never ends in a zero byte, so zeros before a start code are padding or its four-byte form.
    nals = (stream[start:end].rstrip(b"\x00") for start, end in zip(starts, ends, strict=True))
    return [nal for nal in nals if nal]


def find_parameter_sets(nals: list[bytes]) -> ParameterSets | None:
    """The first SPS and PPS among these NAL units, or None when either is missing."""
    sps = next((nal for nal in nals if nal_type(nal) == NAL_SPS), None)
    pps = next((nal for nal in nals if nal_type(nal) == NAL_PPS), None)
    return ParameterSets(sps, pps) if sps and pps else None


def with_parameter_sets(nals: list[bytes], sets: ParameterSets) -> tuple[bytes, ...]:
    """A keyframe's NAL units with its parameter sets in front, so that a decoder may start here."""
    if find_parameter_sets(nals):
        return tuple(nals)
    first_slice = next((at for at, nal in enumerate(nals) if nal_type(nal) != NAL_AUD), len(nals))
    return (*nals[:first_slice], sets.sps, sets.pps, *nals[first_slice:])


def frame_index_sei(index: int) -> bytes:
    """A SEI NAL unit that carries `index` (0 <= index < 2**64)."""
    body = FRAME_INDEX_UUID.bytes + struct.pack(">Q", index)
    rbsp = bytes([5, len(body)]) + body + b"\x80"  # payload type, size, payload, stop bit
    # Emulation prevention: 00 00 followed by 00..03 would read as a start code (H.264 section 7.4.1).
    return bytes([NAL_SEI]) + _NEEDS_ESCAPE.sub(b"\x00\x00\x03", rbsp)


def frame_index(frame: av.VideoFrame) -> int | None:
    """The index a simulated camera wrote into a decoded frame, or None when it wrote none."""
    # PyAV's type information calls this a TypedDict; it is a container of buffers.
    for data in cast(Iterable[SideData], frame.side_data):
        if data.type.name == "SEI_UNREGISTERED":
            raw = bytes(data)
            if len(raw) == 24 and raw[:16] == FRAME_INDEX_UUID.bytes:
                return int(struct.unpack(">Q", raw[16:])[0])
    return None
