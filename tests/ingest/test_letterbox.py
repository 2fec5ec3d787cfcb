from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.letterbox import Letterboxer, fit, target_shape
from wire.messages import InputSpec

SPEC = InputSpec(416, 416, 32, True)
SIZES = st.one_of(st.integers(1, 64), st.integers(1, 8192))
SPECS = st.builds(
    lambda rows, columns, stride, rectangular: InputSpec(rows * stride, columns * stride, stride, rectangular),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([8, 16, 32, 64]),
    st.booleans(),
)


@given(SIZES, SIZES, SPECS)
def test_boxes_map_to_the_letterbox_and_back_within_a_pixel(height: int, width: int, spec: InputSpec) -> None:
    box = fit(height, width, spec)
    assert box.height <= spec.height and box.width <= spec.width
    assert box.top + box.inner_height <= box.height and box.left + box.inner_width <= box.width
    assert not any(value % 2 for value in (box.top, box.left, box.inner_height, box.inner_width))
    if spec.rectangular:
        assert box.height % spec.stride == 0 == box.width % spec.stride
        assert box.height - box.inner_height < spec.stride + 2 and box.width - box.inner_width < spec.stride + 2
    else:
        assert (box.height, box.width) == (spec.height, spec.width)
    # Where the far corner of the picture really lies, against where the header's scale and pad say it lies.
    for inner, pad, length in ((box.inner_height, box.top, height), (box.inner_width, box.left, width)):
        truly = pad + inner
        said = length * box.scale + pad
        # A side below two pixels of the letterbox is drawn two wide; everything else is off by rounding to even only.
        assert abs(truly - said) <= (1.0 if length * box.scale >= 1 else 2.0) + 1e-6
        back = (said - pad) / box.scale
        assert abs(back - length) < 1e-6 * max(1, length)


@pytest.mark.parametrize(
    ("source", "shape"),
    [
        ((338, 640), (224, 416)),
        ((1080, 1920), (256, 416)),
        ((1920, 1080), (416, 256)),
        ((416, 416), (416, 416)),
        ((1, 1), (416, 416)),
        ((1, 8192), (32, 416)),
    ],
)
def test_rectangular_shapes(source: tuple[int, int], shape: tuple[int, int]) -> None:
    assert target_shape(*source, SPEC) == shape
    assert target_shape(*source, InputSpec(416, 416, 32, False)) == (416, 416)


def first_frame(path: Path) -> av.VideoFrame:
    with av.open(str(path)) as container:
        return next(container.decode(video=0))


def rgb_of(pixels: np.ndarray, pixel_format: str) -> np.ndarray:
    return cv2.cvtColor(pixels, cv2.COLOR_YUV2RGB_I420) if pixel_format == "i420" else pixels


def reference(rgb: np.ndarray, spec: InputSpec) -> np.ndarray:
    """The letterbox as YOLOv5 does it: resize the RGB picture, pad with grey 114."""
    box = fit(rgb.shape[0], rgb.shape[1], spec)
    out = np.full((box.height, box.width, 3), 114, np.uint8)
    out[box.top : box.top + box.inner_height, box.left : box.left + box.inner_width] = cv2.resize(
        rgb, (box.inner_width, box.inner_height), interpolation=cv2.INTER_LINEAR
    )
    return out


def four_corners(_index: int, height: int, width: int) -> np.ndarray:
    """Red, green, blue and white quarters: any turn or mirror shows."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[: height // 2, : width // 2] = (200, 40, 40)
    rgb[: height // 2, width // 2 :] = (40, 200, 40)
    rgb[height // 2 :, : width // 2] = (40, 40, 200)
    rgb[height // 2 :, width // 2 :] = (200, 200, 200)
    return rgb


@pytest.mark.parametrize(
    ("pix_fmt", "codec"),
    [
        ("yuv420p", "libx264"),
        ("yuv422p", "libx264"),
        ("yuv444p", "libx264"),
        ("yuvj420p", "mjpeg"),
        ("yuvj422p", "mjpeg"),
        ("yuv420p10le", "libx264"),
        ("bgra", "ffv1"),
        ("rgb24", "png"),
        ("yuv410p", "ffv1"),
    ],
)
@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_every_pixel_format_looks_like_the_rgb_letterbox(
    tmp_path: Path, write_clip: Callable[..., Path], pix_fmt: str, codec: str, turn: int
) -> None:
    path = write_clip(
        tmp_path / "c.nut", frames=1, width=320, height=180, codec=codec, pix_fmt=pix_fmt, draw=four_corners
    )
    frame = first_frame(path)
    assert frame.format.name == pix_fmt
    boxed = Letterboxer().frame(frame, turn, SPEC)
    wanted = reference(np.ascontiguousarray(np.rot90(four_corners(0, 180, 320), -turn // 90)), SPEC)
    assert (boxed.source_height, boxed.source_width) == ((320, 180) if turn in {90, 270} else (180, 320))
    got = rgb_of(boxed.pixels, boxed.pixel_format)
    assert got.shape == wanted.shape
    error = np.abs(got.astype(int) - wanted)
    # Chroma at half resolution bleeds over the edges between the quarters, so the bulk is judged.
    assert np.percentile(error, 90) <= 8
    assert (got[0, 0] == 114).all() or boxed.box.top == 0 == boxed.box.left


@pytest.mark.parametrize("full_range", [False, True])
def test_grey_is_neutral_and_keeps_its_levels(full_range: bool) -> None:
    ramp = np.linspace(0, 255, 256, dtype=np.uint8)[None].repeat(64, 0)
    frame = av.VideoFrame.from_ndarray(ramp, format="gray")
    frame.color_range = 2 if full_range else 1
    boxed = Letterboxer().frame(frame, 0, InputSpec(64, 256, 32, False))
    assert boxed.pixel_format == "i420"
    rgb = rgb_of(boxed.pixels, "i420")
    assert (rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 1] == rgb[..., 2]).all()
    levels = np.arange(256.0)
    wanted = levels if full_range else np.clip((levels - 16) * 255 / 219, 0, 255)
    assert np.abs(rgb[32, :, 0] - wanted).max() <= 2


def test_padding_is_the_models_grey(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    frame = first_frame(write_clip(tmp_path / "c.mkv", frames=1, width=640, height=338))
    boxed = Letterboxer().frame(frame, 0, InputSpec(416, 416, 32, False))
    rgb = rgb_of(boxed.pixels, boxed.pixel_format)
    assert (rgb[: boxed.box.top - 1] == 114).all()
    assert (rgb[boxed.box.top + boxed.box.inner_height + 1 :] == 114).all()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 70), st.sampled_from([0, 90, 180, 270]), st.sampled_from(["yuv420p", "rgb24"])
)
def test_any_small_and_odd_size_is_boxed(height: int, width: int, turn: int, name: str) -> None:
    frame = av.VideoFrame(width, height, name)
    for plane in frame.planes:
        plane.update(bytes([200]) * plane.buffer_size)
    boxed = Letterboxer().frame(frame, turn, SPEC)
    rows = boxed.box.height * 3 // 2 if boxed.pixel_format == "i420" else boxed.box.height
    assert boxed.pixels.shape[:2] == (rows, boxed.box.width)
    assert boxed.pixels.flags.c_contiguous and boxed.pixels.dtype == np.uint8


def test_real_video_matches_the_rgb_letterbox(shared: Path) -> None:
    with av.open(str(shared / "videos" / "pistol.mp4")) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index % 50 == 0:
                got = rgb_of(Letterboxer().frame(frame, 0, SPEC).pixels, "i420")
                wanted = reference(frame.to_ndarray(format="rgb24"), SPEC)
                assert np.abs(got.astype(int) - wanted).mean() < 2.0


def test_an_image_is_boxed_as_rgb() -> None:
    rgb = four_corners(0, 90, 160)
    boxed = Letterboxer().image(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), 0, SPEC)
    assert boxed.pixel_format == "rgb24"
    assert np.abs(boxed.pixels.astype(int) - reference(rgb, SPEC)).max() <= 1
