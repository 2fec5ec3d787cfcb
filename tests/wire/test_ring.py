"""Pixels in shared memory: a reader gets the frame it was told of, or nothing, and memory is given back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from wire import ring as rings
from wire.messages import RingSlot
from wire.ring import Ring, RingReader, RingUnseenError, SharedPixels, ring_folder, sweep

HOLDER = """
import sys, time
from pathlib import Path
from wire.ring import Ring
ring = Ring(Path(sys.argv[1]), 10, 2)
print("made", flush=True)
time.sleep(60)
"""


def picture(value: int, size: int) -> np.ndarray:
    return np.full(size, value % 251, np.uint8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["put", "free"]), st.integers(1, 700), st.integers(0, 9)), max_size=50))
def test_every_frame_on_its_way_reads_back_whole_whatever_the_sizes(tmp_path: Path, steps) -> None:
    writer, reader = SharedPixels(tmp_path, slots=4), RingReader(tmp_path)
    on_its_way: dict[int, RingSlot] = {}
    for number, (step, size, pick) in enumerate(steps):
        if step == "put":
            slot = writer.put(picture(number, size))
            if slot is not None:
                on_its_way[number] = slot
        elif on_its_way:
            writer.free(on_its_way.pop(sorted(on_its_way)[pick % len(on_its_way)]))
        for of, slot in on_its_way.items():
            got = reader.copy(slot)
            assert got is not None and bytes(got) == bytes(picture(of, slot.size))
    writer.close()
    reader.close()
    assert not list(tmp_path.glob("*.ring"))


def test_a_slot_that_holds_another_frame_by_now_reads_as_gone(tmp_path: Path) -> None:
    ring, reader = Ring(tmp_path, 100, slots=1), RingReader(tmp_path)
    first = ring.put(picture(1, 100))
    assert first is not None
    ring.free(first)
    second = ring.put(picture(2, 100))
    assert second is not None and second.offset == first.offset
    assert reader.copy(first) is None
    assert bytes(reader.copy(second) or b"") == bytes(picture(2, 100))
    ring.close()


def test_a_full_ring_says_so_and_does_not_overwrite(tmp_path: Path) -> None:
    ring = Ring(tmp_path, 10, slots=2)
    assert [ring.put(picture(n, 10)) is None for n in range(3)] == [False, False, True]
    ring.close()


@pytest.mark.parametrize(
    "slot",
    [
        RingSlot("../secret", 0, 10, 1),
        RingSlot("RING", 10**9, 10, 1),
        RingSlot("RING", -64, 10, 1),
        RingSlot("RING", 0, 10**9, 1),
        RingSlot("RING", 0, -1, 1),
    ],
)
def test_a_slot_that_cannot_be_is_refused(tmp_path: Path, slot: RingSlot) -> None:
    ring = Ring(tmp_path, 10, slots=2)
    (tmp_path.parent / "secret").write_bytes(bytes(1000))
    name = ring.name if slot.ring == "RING" else slot.ring
    assert RingReader(tmp_path).copy(RingSlot(name, slot.offset, slot.size, slot.stamp)) is None
    ring.close()


@pytest.mark.parametrize("folder_seen", [True, False])
def test_a_ring_that_cannot_be_opened_is_told_from_a_slot_that_holds_another_frame(
    tmp_path: Path, folder_seen: bool
) -> None:
    folder = tmp_path if folder_seen else tmp_path / "elsewhere"
    with pytest.raises(RingUnseenError, match=str(folder)) as told:
        RingReader(folder).copy(RingSlot("nowhere.ring", 0, 10, 1))
    assert told.value.folder_seen == folder_seen


def test_rings_of_killed_processes_are_swept_and_those_of_living_ones_are_not(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    assert child.stdout and child.stdout.readline()
    mine = Ring(tmp_path, 10, slots=1)
    assert sweep(tmp_path) == 0
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert sweep(tmp_path) == 1
    assert [path.name for path in tmp_path.glob("*.ring")] == [mine.name]
    mine.close()


def test_a_reader_lets_go_of_the_memory_of_rings_that_are_gone(tmp_path: Path) -> None:
    reader, old = RingReader(tmp_path), Ring(tmp_path, 10, slots=1)
    slot = old.put(picture(1, 10))
    assert slot and reader.copy(slot) is not None
    old.close()
    new = Ring(tmp_path, 10, slots=1)
    newer = new.put(picture(2, 10))
    assert newer and reader.copy(newer) is not None
    mapped = Path("/proc/self/maps").read_text()
    assert new.name in mapped and old.name not in mapped
    new.close()
    reader.close()


def test_without_room_for_shared_memory_pixels_go_by_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)  # filling a real tmpfs would hurt the tests beside this one
    shared = SharedPixels(tmp_path, slots=2)
    assert shared.put(picture(1, 10)) is None
    assert shared.put(picture(2, 10)) is None
    shared.close()


def test_the_last_of_the_memory_is_left_for_health_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size, slots, room = 100_000, 8, 350_000 + rings.KEPT_FREE

    def small(fd: int) -> SimpleNamespace:  # not every user can mount a small tmpfs
        return SimpleNamespace(f_blocks=room, f_frsize=1, f_bavail=room - os.fstat(fd).st_blocks * 512)

    monkeypatch.setattr(os, "fstatvfs", small)
    ring = Ring(tmp_path, size, slots)
    taken = [ring.put(picture(1, size)), ring.put(picture(2, size))]
    with pytest.raises(OSError, match=r"1024 KiB left, which health reports need"):
        for number in range(slots):
            ring.put(picture(number, size))
    held = (tmp_path / ring.name).stat().st_blocks * 512
    assert room - held >= rings.KEPT_FREE, "what was too much is given back"
    reader = RingReader(tmp_path)
    assert [bytes(reader.copy(slot) or b"") for slot in taken if slot] == [bytes(picture(n, size)) for n in (1, 2)]
    ring.free(taken[0])  # type: ignore[arg-type]
    again = ring.put(picture(9, size))  # a slot that has its memory is used as before
    assert again and bytes(reader.copy(again) or b"") == bytes(picture(9, size))
    reader.close()
    ring.close()
    shared = SharedPixels(tmp_path, slots)
    assert [shared.put(picture(n, size)) is None for n in range(5)] == [False, False, False, True, True]
    shared.close()


def test_rings_lie_in_memory_and_not_on_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ring_folder(Path("/dev/shm/some-runtime-dir")) == Path("/dev/shm/some-runtime-dir/rings")
    monkeypatch.setattr(rings, "_is_memory", lambda path: False)
    assert ring_folder(tmp_path).parent == Path("/dev/shm")
