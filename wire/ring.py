"""Pixels in shared memory: on one host a frame's message carries where its pixels lie, not the pixels.

An ingest has a ring for each camera: a file in a memory-backed folder, cut into slots. A slot is taken until its frame
is settled. It begins with a stamp, the writer's count of frames, which is set last when a frame is written and looked
at before and after it is read: a reader that was given up and wakes when its slot holds another frame notices.
A ring belongs to whoever holds its lock; those of dead processes are swept away.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import struct
import uuid
from collections import OrderedDict
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from wire.messages import RingSlot

log = structlog.get_logger()

STAMP = struct.Struct("<Q")
HEAD_BYTES = 64  # the stamp alone on its cache line
# Left free for what else lies in the same memory: health reports above all, which a full one would keep from being
# written (some 100 KiB for 200 cameras, the old one and the new one side by side).
KEPT_FREE = 1 << 20
RINGS_OPEN = 256  # rings a reader keeps mapped: more than a host has cameras
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # a folder of our own in it, of mode 0700


def ring_folder(runtime_dir: Path) -> Path:
    """The folder of rings: in runtime_dir where that is memory, else in /dev/shm (a disk would never be at rest)."""
    if _is_memory(runtime_dir) or not SHARED_MEMORY.is_dir():
        return runtime_dir / "rings"
    return SHARED_MEMORY / f"sparsecam-{os.getuid()}"


def _is_memory(path: Path) -> bool:
    there = next((folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists()), Path("/"))
    best, kind = "", ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, mounted, name, *_ = line.split(" ")
            inside = there == Path(mounted) or Path(mounted) in there.parents
            if inside and len(mounted) >= len(best):
                best, kind = mounted, name
    return kind in ("tmpfs", "ramfs")


def sweep(folder: Path) -> int:
    """Remove the rings of processes that are gone; returns how many."""
    swept = 0
    for path in folder.glob("*.ring"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            swept += 1
    return swept


class RingUnseenError(Exception):
    """A ring cannot be opened: says which and why. `folder_seen`: perhaps only because its writer is gone."""

    def __init__(self, why: str, *, folder_seen: bool) -> None:
        super().__init__(why)
        self.folder_seen = folder_seen


class Ring:
    """One writer's slots of one size. Not thread-safe."""

    def __init__(self, folder: Path, pixel_bytes: int, slots: int) -> None:
        """Raises OSError where shared memory cannot be had."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.name = f"{uuid.uuid4().hex}.ring"
        self.pixel_bytes = pixel_bytes
        self._path = folder / self.name
        self._slot_bytes = HEAD_BYTES + -(-pixel_bytes // HEAD_BYTES) * HEAD_BYTES
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        os.ftruncate(self._fd, slots * self._slot_bytes)
        self._map = mmap.mmap(self._fd, slots * self._slot_bytes)
        self._bytes = np.frombuffer(self._map, np.uint8)
        # The lowest free slot is taken first, so that memory is used only for as many as are ever needed at once.
        self._free = list(range(slots - 1, -1, -1))
        self._backed: set[int] = set()
        self._count = 0

    def put(self, pixels: NDArray[np.uint8]) -> RingSlot | None:
        """Write a frame's pixels; None when every slot is taken. Raises OSError when memory runs out."""
        if not self._free:
            return None
        slot = self._free[-1]
        offset = slot * self._slot_bytes
        if slot not in self._backed:
            self._back(offset)
            self._backed.add(slot)
        self._free.pop()
        self._count += 1
        STAMP.pack_into(self._map, offset, 0)
        start = offset + HEAD_BYTES
        self._bytes[start : start + pixels.size] = pixels.reshape(-1)
        STAMP.pack_into(self._map, offset, self._count)
        return RingSlot(self.name, offset, pixels.size, self._count)

    def read(self, slot: RingSlot) -> NDArray[np.uint8]:
        """A copy of a frame that was put and is not settled."""
        start = slot.offset + HEAD_BYTES
        return self._bytes[start : start + slot.size].copy()

    def _back(self, offset: int) -> None:
        """Get memory for the slot at `offset`, the first that has none; raises OSError where too little is left."""
        # Touching a page that memory-backed storage has no room for would kill the process (SIGBUS).
        os.posix_fallocate(self._fd, offset, self._slot_bytes)
        # Looked at afterwards, so that of several writers at once none takes what another has left free.
        now = os.fstatvfs(self._fd)
        if now.f_blocks and now.f_bavail * now.f_frsize < KEPT_FREE:  # 0 blocks: a tmpfs without a limit
            os.ftruncate(self._fd, offset)
            os.ftruncate(self._fd, len(self._map))
            raise OSError(
                errno.ENOSPC,
                f"{self._path.parent} has less than {KEPT_FREE >> 10} KiB left, which health reports need; give its "
                f"file system more room than its {now.f_blocks * now.f_frsize >> 10} KiB",
            )

    def free(self, slot: RingSlot) -> None:
        """The frame is settled: its slot may be used again."""
        self._free.append(slot.offset // self._slot_bytes)
        self._free.sort(reverse=True)

    @property
    def idle(self) -> bool:
        """Whether no slot is taken."""
        return len(self._free) * self._slot_bytes == len(self._map)

    def close(self) -> None:
        """Remove the ring; readers that still look at it keep what they have mapped."""
        self._path.unlink(missing_ok=True)
        del self._bytes
        self._map.close()
        os.close(self._fd)


class SharedPixels:
    """One camera's pixels in shared memory, whatever their size; gives up for good when there is none to be had."""

    def __init__(self, folder: Path | None, slots: int) -> None:
        self._folder = folder
        self._slots = slots
        self._ring: Ring | None = None
        self._rings: dict[str, Ring] = {}  # the current one, and those of other sizes until their last frame is settled

    def put(self, pixels: NDArray[np.uint8]) -> RingSlot | None:
        """Write a frame's pixels; None when they have to travel with the message."""
        if self._folder is None:
            return None
        try:
            if self._ring is None or pixels.size > self._ring.pixel_bytes:
                self._renew(self._folder, pixels.size)
            assert self._ring is not None
            return self._ring.put(pixels)
        except OSError as error:
            log.warning("no shared memory: pixels go by socket, which costs more CPU", error=str(error))
            self._folder = None
            return None

    def _renew(self, folder: Path, pixel_bytes: int) -> None:
        old, self._ring = self._ring, Ring(folder, pixel_bytes, self._slots)
        self._rings[self._ring.name] = self._ring
        if old is not None and old.idle:
            self._rings.pop(old.name).close()

    def take_back(self, slot: RingSlot) -> NDArray[np.uint8]:
        """The pixels of a frame that is to travel with its message after all; its slot is free."""
        pixels = self._rings[slot.ring].read(slot)
        self.free(slot)
        return pixels

    def free(self, slot: RingSlot) -> None:
        """The frame is settled."""
        ring = self._rings[slot.ring]
        ring.free(slot)
        if ring is not self._ring and ring.idle:
            self._rings.pop(slot.ring).close()

    def close(self) -> None:
        """Remove everything."""
        self._folder = self._ring = None
        while self._rings:
            self._rings.popitem()[1].close()


class RingReader:
    """Copies frames out of other processes' rings. Not thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._maps: OrderedDict[str, mmap.mmap] = OrderedDict()

    def copy(self, slot: RingSlot) -> memoryview | None:
        """The pixels, or None when they are there no more (given to another frame).

        Raises RingUnseenError where the ring cannot be opened: removed with its writer, or never seen by us.
        """
        ring = self._open(slot.ring)
        if ring is None or not 0 <= slot.offset <= len(ring) - HEAD_BYTES - slot.size or slot.size < 0:
            return None
        if STAMP.unpack_from(ring, slot.offset)[0] != slot.stamp:
            return None
        start = slot.offset + HEAD_BYTES
        pixels = memoryview(ring[start : start + slot.size])
        return pixels if STAMP.unpack_from(ring, slot.offset)[0] == slot.stamp else None

    def _open(self, name: str) -> mmap.mmap | None:
        known = self._maps.get(name)
        if known is not None:
            self._maps.move_to_end(name)
            return known
        if Path(name).name != name:  # a name, never a path
            return None
        self._let_go_of_removed()
        try:
            fd = os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                ring = self._maps[name] = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
            finally:
                os.close(fd)
        except (OSError, ValueError) as error:
            seen = isinstance(error, FileNotFoundError) and self._folder.is_dir()
            raise RingUnseenError(str(error), folder_seen=seen) from error
        while len(self._maps) > RINGS_OPEN:
            self._maps.popitem(last=False)[1].close()
        return ring

    def _let_go_of_removed(self) -> None:
        """Unmap the rings of writers that are gone: a file that is mapped keeps its memory though it has no name."""
        for name in [name for name in self._maps if not (self._folder / name).exists()]:
            self._maps.pop(name).close()

    def close(self) -> None:
        """Let go of all rings."""
        while self._maps:
            self._maps.popitem()[1].close()
