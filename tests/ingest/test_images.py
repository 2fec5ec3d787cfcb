from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import SourceError
from ingest.frames import Picture, Skipped
from ingest.images import ImageError, ImageReader, decode_image, image_size, natural_key
from ingest.sources import parse

LIMIT = 8192 * 8192


def two_tone(height: int = 40, width: int = 60) -> np.ndarray:
    """Left half dark, right half bright (BGR)."""
    image = np.full((height, width, 3), 30, np.uint8)
    image[:, width // 2 :] = 220
    return image


def save(path: Path, image: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), image)
    return path


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """Insert an EXIF block that says how the camera was held."""
    tiff = b"II*\0\x08\0\0\0" + b"\x01\0" + b"\x12\x01\x03\0\x01\0\0\0" + bytes([orientation, 0, 0, 0]) + b"\0\0\0\0"
    exif = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]


def read(path: Path, max_pixels: int = LIMIT) -> list[Picture | Skipped]:
    return list(ImageReader(parse(str(path)), 2.0, max_pixels).deliveries())


def test_images_come_in_natural_order_with_even_event_times(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        save(tmp_path / f"img{number}.png", np.full((4, 4, 3), number, np.uint8))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.jpg").mkdir()
    found = read(tmp_path)
    assert [int(each.image[0, 0, 0]) for each in found if isinstance(each, Picture)] == [1, 2, 10]
    assert [each.pts_s for each in found if isinstance(each, Picture)] == [0, 0.5, 1]


def test_bad_images_are_counted_and_the_others_come(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.jpg", two_tone(200, 200)).read_bytes()
    (tmp_path / "b.jpg").write_bytes(whole[: len(whole) // 2])  # cut short: decoders would fill it with grey
    (tmp_path / "c.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (tmp_path / "d.bmp").write_bytes(b"")
    (tmp_path / "e.tif").write_bytes(b"II*\0")
    (tmp_path / "f.jpg").write_bytes(whole + b"maker's trailing notes")
    kinds = ["picture" if isinstance(each, Picture) else each.cause for each in read(tmp_path)]
    assert kinds == ["picture", "decode_error", "decode_error", "decode_error", "decode_error", "picture"]


@pytest.mark.parametrize(("orientation", "bright"), [(1, "right"), (3, "left"), (6, "bottom"), (8, "top")])
def test_exif_orientation_is_honoured(tmp_path: Path, orientation: int, bright: str) -> None:
    path = save(tmp_path / "a.jpg", two_tone())
    path.write_bytes(with_orientation(path.read_bytes(), orientation))
    image = decode_image(path, LIMIT)
    rows, columns = image.shape[:2]
    sides = {"left": image[:, 2], "right": image[:, -3], "top": image[2], "bottom": image[-3]}
    assert max(sides, key=lambda side: float(sides[side].mean())) == bright
    assert (rows, columns) == ((60, 40) if orientation in {6, 8} else (40, 60))


@pytest.mark.parametrize(
    "image",
    [
        np.full((9, 7), 77, np.uint8),  # grey
        np.full((9, 7, 4), 77, np.uint8),  # alpha
        np.full((9, 7, 3), 77 * 257, np.uint16),  # 16 bits
        np.full((1, 1, 3), 77, np.uint8),
    ],
)
def test_grey_alpha_deep_and_tiny_images_become_8_bit_colour(tmp_path: Path, image: np.ndarray) -> None:
    decoded = decode_image(save(tmp_path / "a.png", image), LIMIT)
    assert decoded.dtype == np.uint8 and decoded.shape == (*image.shape[:2], 3)
    assert (decoded == 77).all()


def test_an_oversized_image_is_refused_from_its_header(tmp_path: Path) -> None:
    png = bytearray(save(tmp_path / "a.png", two_tone()).read_bytes())
    png[16:24] = (100_000).to_bytes(4, "big") * 2  # 30 GB of pixels, were they allocated
    (tmp_path / "a.png").write_bytes(png)
    with pytest.raises(ImageError, match="100000x100000"):
        decode_image(tmp_path / "a.png", LIMIT)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (33, 17), (300, 5)])
def test_the_size_is_read_from_the_header(tmp_path: Path, suffix: str, height: int, width: int) -> None:
    path = save(tmp_path / f"a.{suffix}", np.zeros((height, width, 3), np.uint8))
    assert image_size(path.read_bytes()) == (height, width)


@given(
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"RIFF0000WEBPVP8 "]), st.binary(max_size=80)
)
def test_a_broken_header_is_no_error(magic: bytes, rest: bytes) -> None:
    size = image_size(magic + rest)
    assert size is None or len(size) == 2


@given(st.lists(st.text("a1/2é٣.", min_size=1), max_size=8))
def test_any_names_have_one_order_however_they_came(names: list[str]) -> None:
    backwards = names[::-1]
    keys = [natural_key(path) for path in sorted(map(Path, names), key=natural_key)]
    assert keys == [natural_key(path) for path in sorted(map(Path, backwards), key=natural_key)]
    assert all(one <= other for one, other in itertools.pairwise(keys))


def test_empty_and_missing_folders_are_typed_errors(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        read(tmp_path)
    assert caught.value.kind == "empty"
    with pytest.raises(SourceError) as caught:
        read(tmp_path / "missing.jpg")
    assert caught.value.kind == "not_found"
