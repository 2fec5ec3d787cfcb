"""A recording of detections: a file that `sparsecam record` writes and `sparsecam replay` reads, with no model.

Two forms, told apart by the file's name. `.jsonl`: lines of JSON, the first one `{"sparsecam_recording": 1}`, for
people and other programs. `.msgpack`: the same in MessagePack, each piece after its length (4 bytes, the highest
first); smaller, and it keeps boxes that are no numbers (NaN), which JSON cannot.
Every piece after the first is one frame: the record as the worker published it, and the id of its entry in Redis.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

import msgspec
import structlog
from msgspec import Struct

from wire.messages import MALFORMED, DetectionRecord

log = structlog.get_logger()

VERSION = 1
JSON_LINES, MESSAGE_PACK = ".jsonl", ".msgpack"
SUFFIXES = (JSON_LINES, MESSAGE_PACK)
# A record of the 10,000 boxes that a detector may be allowed has less than 1 MiB; a longer piece is not of ours.
LONGEST_PIECE = 16 << 20
_LENGTH = struct.Struct(">I")


class RecordingError(ValueError):
    """A file that is no recording, or cannot be read or written: says which, where, and what was expected."""


class Recorded(Struct, frozen=True):
    """One frame of a recording."""

    id: str  # of its entry in the stream: milliseconds of the wall clock of its publishing, a dash, a number
    record: DetectionRecord

    @property
    def published_ms(self) -> int:
        """When Redis took it (wall clock, milliseconds since the epoch); 0 where the id does not say."""
        milliseconds = self.id.partition("-")[0]
        return int(milliseconds) if milliseconds.isdecimal() else 0


class _Head(Struct, frozen=True):
    sparsecam_recording: int


class RecordingWriter:
    """Writes a new file. `size` is its bytes so far, `frames` its frames."""

    def __init__(self, path: Path, *, replace: bool = False) -> None:
        """Raises RecordingError when the file is there already (without `replace`) or cannot be made.

        A file that is replaced stays as it is until the first frame, or `close`.
        """
        self._lines = _is_lines(path)
        self._path = path
        self._encoder: msgspec.json.Encoder | msgspec.msgpack.Encoder
        self._encoder = msgspec.json.Encoder() if self._lines else msgspec.msgpack.Encoder()
        self.frames = self.size = 0
        self._file: BinaryIO | None = None
        if replace and path.exists():
            self._open("ab").close()  # whether it can be written is told now
        else:
            self._begin("wb" if replace else "xb")

    def write(self, frame: Recorded) -> None:
        """Append a frame; raises RecordingError (a full disk)."""
        self._put(frame, self._file or self._begin())
        self.frames += 1

    def flush(self) -> None:
        """Hand everything to the operating system, so that a killed process loses nothing; raises RecordingError."""
        try:
            if self._file is not None:
                self._file.flush()
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Finish the file; raises RecordingError."""
        try:
            (self._file or self._begin()).close()
        except OSError as error:
            raise self._unwritable(error) from error

    def discard(self) -> None:
        """Instead of `close`, where no frame came: leave no new file, and the old one as it was."""
        if self._file is not None:
            with suppress(OSError):  # a full disk: nothing of it is kept
                self._file.close()
            self._path.unlink(missing_ok=True)

    def _open(self, mode: str) -> BinaryIO:
        try:
            return cast(BinaryIO, self._path.open(mode))
        except FileExistsError:
            raise RecordingError(f"{self._path} is there already; name another file, or say --force") from None
        except OSError as error:
            raise RecordingError(f"{self._path}: cannot be written: {error.strerror}") from error

    def _begin(self, mode: str = "wb") -> BinaryIO:
        self._file = self._open(mode)
        self._put(_Head(VERSION), self._file)
        return self._file

    def _put(self, piece: Struct, file: BinaryIO) -> None:
        data = self._encoder.encode(piece)
        data = data + b"\n" if self._lines else _LENGTH.pack(len(data)) + data
        try:
            file.write(data)
        except OSError as error:
            raise self._unwritable(error) from error
        self.size += len(data)

    def _unwritable(self, error: OSError) -> RecordingError:
        return RecordingError(f"{self._path}: cannot be written on: {error.strerror}; {self.frames} frames are in it")


def is_recording(path: str) -> bool:
    """Whether a name is one of a recording."""
    return path.lower().endswith(SUFFIXES)


def read_recording(path: Path) -> Iterator[Recorded]:
    """Yield the frames of a recording in the order they were published. Raises RecordingError.

    A file that ends in mid-frame, because its writer was killed, ends with the frame before; that is logged.
    """
    lines = _is_lines(path)
    try:
        with path.open("rb") as file:
            pieces = _lines(file, path) if lines else _packed(file, path)
            yield from _frames(pieces, path, lines)
    except OSError as error:
        raise RecordingError(f"{path}: cannot be read: {error.strerror}") from error


def _frames(pieces: Iterator[bytes], path: Path, lines: bool) -> Iterator[Recorded]:
    expected = (
        f"expected a recording made by `sparsecam record`, whose first piece is {{sparsecam_recording: {VERSION}}}"
    )
    head = msgspec.json.Decoder(_Head) if lines else msgspec.msgpack.Decoder(_Head)
    frame = msgspec.json.Decoder(Recorded) if lines else msgspec.msgpack.Decoder(Recorded)
    first = next(pieces, b"")
    try:
        version = head.decode(first).sparsecam_recording
    except MALFORMED:
        raise RecordingError(f"{path}: {expected}") from None
    if version != VERSION:
        raise RecordingError(f"{path}: a recording of version {version}; this build reads version {VERSION}")
    for number, piece in enumerate(pieces, start=2):
        try:
            yield frame.decode(piece)
        except MALFORMED as error:
            raise RecordingError(f"{path}:{number}: not a frame of a recording: {error}") from None


def _lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    while line := file.readline(LONGEST_PIECE):
        if line.endswith(b"\n"):
            yield line
        elif len(line) == LONGEST_PIECE:
            raise RecordingError(f"{path}: a line of more than {LONGEST_PIECE} bytes; expected one frame a line")
        else:
            log.warning("recording ends in mid-frame", file=str(path))


def _packed(file: BinaryIO, path: Path) -> Iterator[bytes]:
    while start := file.read(_LENGTH.size):
        length = _LENGTH.unpack(start)[0] if len(start) == _LENGTH.size else 0
        if length > LONGEST_PIECE:
            raise RecordingError(f"{path}: a piece of {length} bytes; expected a recording made by `sparsecam record`")
        piece = file.read(length)
        if not length or len(piece) < length:
            log.warning("recording ends in mid-frame", file=str(path))
            return
        yield piece


def _is_lines(path: Path) -> bool:
    if not is_recording(path.name):
        raise RecordingError(f"{path}: expected a name that ends in {' or '.join(SUFFIXES)}")
    return path.name.lower().endswith(JSON_LINES)
