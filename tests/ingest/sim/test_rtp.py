"""RTP packets carry any access unit whole, in order, and say where it ends."""

from __future__ import annotations

import struct
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.sim.h264 import (
    FRAME_INDEX_UUID,
    AccessUnit,
    ParameterSets,
    find_parameter_sets,
    frame_index_sei,
    split_annexb,
    with_parameter_sets,
)
from ingest.sim.rtp import Packetiser, payloads

# NAL units of types 1..23, any size; the last byte is not zero, as in every real one.
nal_units = st.builds(
    lambda header, size, fill: bytes([header]) + bytes([fill]) * size + b"\x80",
    st.integers(0, 3).flatmap(lambda importance: st.integers(1, 23).map(lambda kind: importance << 5 | kind)),
    st.one_of(st.integers(0, 40), st.integers(0, 6000)),
    st.integers(1, 255),
)


def depacketise(bodies: list[bytes]) -> list[bytes]:
    """RFC 6184 read independently of the code under test."""
    nals: list[bytes] = []
    for body in bodies:
        kind = body[0] & 31
        if kind == 24:
            at = 1
            while at < len(body):
                (size,) = struct.unpack_from(">H", body, at)
                nals.append(body[at + 2 : at + 2 + size])
                at += 2 + size
        elif kind == 28:
            if body[1] & 0x80:
                nals.append(bytes([body[0] & 0xE0 | body[1] & 31]))
            nals[-1] += body[2:]
        else:
            nals.append(body)
    return nals


@given(st.lists(nal_units, min_size=1, max_size=12), st.integers(8, 1500))
def test_any_nal_units_survive_packetisation_at_any_size(nals: list[bytes], max_payload: int) -> None:
    bodies = list(payloads(nals, max_payload))
    assert max(map(len, bodies)) <= max_payload
    assert depacketise(bodies) == nals


@given(st.integers(3, 6000), st.integers(8, 1500))
def test_fragments_mark_exactly_their_first_and_last(size: int, max_payload: int) -> None:
    bodies = list(payloads([b"\x65" + b"\x01" * (size - 1)], max_payload))
    if len(bodies) > 1:
        assert [bool(body[1] & 0x80) for body in bodies] == [True] + [False] * (len(bodies) - 1)
        assert [bool(body[1] & 0x40) for body in bodies] == [False] * (len(bodies) - 1) + [True]


def test_a_payload_too_small_for_a_fragment_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 8 bytes"):
        list(payloads([b"\x65\x01"], 7))


@given(st.lists(st.lists(nal_units, min_size=1, max_size=4), min_size=2, max_size=5))
def test_headers_number_packets_without_gap_and_mark_the_end_of_each_picture(pictures: list[list[bytes]]) -> None:
    packetiser = Packetiser()
    sequences: list[int] = []
    stamps: list[int] = []
    for number, nals in enumerate(pictures):
        packets = packetiser.packets(AccessUnit(tuple(nals), number * 3600, number == 0))
        heads = [struct.unpack(">BBHII", packet[:12]) for packet in packets]
        assert all(head[0] == 0x80 and head[1] & 0x7F == 96 and head[4] == packetiser.ssrc for head in heads)
        assert [bool(head[1] & 0x80) for head in heads] == [False] * (len(heads) - 1) + [True]
        assert len({head[3] for head in heads}) == 1
        stamps.append(heads[0][3])
        sequences += [head[2] for head in heads]
    assert all((b - a) % 2**16 == 1 for a, b in pairwise(sequences))
    assert all((b - a) % 2**32 == 3600 for a, b in pairwise(stamps))


def test_a_sender_report_ties_the_wall_clock_to_the_stream() -> None:
    packetiser = Packetiser()
    (packet,) = packetiser.packets(AccessUnit((b"\x65\x01\x80",), 90_000, True))
    report = packetiser.sender_report()
    version, kind, words, ssrc, ntp, _, stamp, packets, octets = struct.unpack(">BBHIIIIII", report)
    assert (version, kind, (words + 1) * 4, ssrc) == (0x80, 200, len(report), packetiser.ssrc)
    assert abs(ntp - 2_208_988_800 - time.time()) < 2
    assert (stamp - struct.unpack(">I", packet[4:8])[0]) % 2**32 < 90_000
    assert (packets, octets) == (1, 3)


@given(st.lists(nal_units, max_size=8), st.sampled_from([b"\x00\x00\x01", b"\x00\x00\x00\x01"]))
def test_annexb_splits_into_its_nal_units(nals: list[bytes], start_code: bytes) -> None:
    assert split_annexb(b"".join(start_code + nal for nal in nals)) == nals


@given(st.integers(0, 2**64 - 1))
def test_a_frame_index_never_imitates_a_start_code(index: int) -> None:
    nal = frame_index_sei(index)
    assert not any(code in nal for code in (b"\x00\x00\x00", b"\x00\x00\x01", b"\x00\x00\x02"))
    rbsp = nal.replace(b"\x00\x00\x03", b"\x00\x00")
    assert rbsp[3:] == FRAME_INDEX_UUID.bytes + struct.pack(">Q", index) + b"\x80"


def test_parameter_sets_go_behind_the_delimiter_and_only_when_missing() -> None:
    sets = ParameterSets(b"\x67sps", b"\x68pps")
    assert with_parameter_sets([b"\x09\xf0", b"\x65slice"], sets) == (b"\x09\xf0", *sets, b"\x65slice")
    complete = [b"\x67other", b"\x68other", b"\x65slice"]
    assert with_parameter_sets(complete, sets) == tuple(complete)
    assert find_parameter_sets([b"\x67only"]) is None
