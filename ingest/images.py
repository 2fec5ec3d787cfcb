"""Folders of images, and single images: natural order, size checked before decoding, EXIF orientation honoured."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import structlog
from numpy.typing import NDArray

from ingest.errors import CHECK_PATH, SourceError
from ingest.frames import Delivery, Picture, Skipped
from ingest.sources import IMAGE_SUFFIXES, Source

log = structlog.get_logger()

# A file larger than this is no picture that max_pixels would let through (8192x8192 uncompressed with alpha: 256 MiB).
MAX_FILE_BYTES = 512 * 2**20


class ImageError(ValueError):
    """An image that cannot be used: says why."""


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sorts `img2` before `img10`."""
    pieces = re.split(r"(\d+)", path.name.lower())
    return [(1, int(piece), "") if piece.isascii() and piece.isdigit() else (0, 0, piece) for piece in pieces]


def image_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) from the header of a PNG, JPEG, BMP or WebP; None for other formats and broken headers."""
    try:
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
        if data[:2] == b"BM":
            height = int.from_bytes(data[22:26], "little", signed=True)
            return abs(height), int.from_bytes(data[18:22], "little")
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp_size(data)
        if data[:2] == b"\xff\xd8":
            return _jpeg_size(data)
    except IndexError:
        return None
    return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    chunk = data[12:16]
    if chunk == b"VP8X":
        return int.from_bytes(data[27:30], "little") + 1, int.from_bytes(data[24:27], "little") + 1
    if chunk == b"VP8 ":
        return int.from_bytes(data[28:30], "little") & 0x3FFF, int.from_bytes(data[26:28], "little") & 0x3FFF
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    return None


def _jpeg_markers(data: bytes) -> Iterator[tuple[int, int]]:
    """(marker, position of its length) of each segment before the entropy-coded data, and of its start."""
    at = 2
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        yield marker, at + 2
        if marker == 0xDA:
            return
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    for marker, at in _jpeg_markers(data):
        # SOF0..SOF15 but for DHT (C4), JPG (C8) and DAC (CC), which share their numbers.
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            return int.from_bytes(data[at + 3 : at + 5], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
    return None


def _cut_short(data: bytes) -> bool:
    """Whether a JPEG lacks its end mark. Decoders fill the rest with grey and say nothing."""
    if data[:2] != b"\xff\xd8":
        return False
    try:
        start = next((at for marker, at in _jpeg_markers(data) if marker == 0xDA), None)
    except IndexError:
        return True
    # In the coded data every FF is followed by 00, so after its start FFD9 is the end mark and nothing else.
    return start is None or data.find(b"\xff\xd9", start) < 0


def decode_image(path: Path, max_pixels: int) -> NDArray[np.uint8]:
    """The image, upright, as BGR (height, width, 3) uint8. Raises ImageError.

    Alpha is dropped, grey and 16-bit images become 8-bit BGR.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ImageError(f"larger than {MAX_FILE_BYTES} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(error.strerror or "cannot be read") from None
    if not data:
        raise ImageError("zero bytes")
    if _cut_short(data):
        raise ImageError("cut short: its end is missing")
    size = image_size(data)
    if size is not None and size[0] * size[1] > max_pixels:
        raise ImageError(f"{size[1]}x{size[0]} is over {max_pixels} pixels")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # OpenCV's own limits and checks
        image = None
    # Formats whose header we do not read are bounded by OpenCV (2**30 pixels), and by this.
    if image is None or image.shape[0] * image.shape[1] > max_pixels:
        raise ImageError("cannot be decoded, or is too large")
    return np.asarray(image, np.uint8)


class ImageReader:
    """Delivers the images of a folder, or one image. Raises SourceError when there are none."""

    def __init__(self, source: Source, images_per_s: float, max_pixels: int) -> None:
        self.nominal_s = 1 / images_per_s
        self.concealed = 0
        self.defect: SourceError | None = None
        self._max_pixels = max_pixels
        self._paths = _list_images(source)

    def deliveries(self) -> Iterator[Delivery]:
        """Each image once, in natural order; undecodable ones as `decode_error`."""
        for index, path in enumerate(self._paths):
            captured_ns = time.monotonic_ns()
            try:
                image = decode_image(path, self._max_pixels)
            except ImageError as error:
                log.warning("image skipped", file=str(path), error=str(error))
                yield Skipped("decode_error", 1)
            else:
                yield Picture(image, index * self.nominal_s, captured_ns)

    def close(self) -> None:
        """Nothing is held open."""


def _list_images(source: Source) -> list[Path]:
    root = Path(source.url)
    try:
        if not root.is_dir():
            root.stat()
            return [root]
        found = [path for path in root.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    except FileNotFoundError:
        raise SourceError("not_found", f"{source.shown}: no such file or folder", CHECK_PATH) from None
    except PermissionError:
        raise SourceError("permission", f"{source.shown}: permission denied") from None
    except OSError as error:
        raise SourceError("corrupt", f"{source.shown}: {error.strerror}") from None
    if not found:
        raise SourceError("empty", f"{source.shown}: no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in this folder")
    return sorted(found, key=natural_key)
