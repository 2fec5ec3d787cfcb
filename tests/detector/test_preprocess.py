"""Pixels become the tensor a model wants; letterboxed pictures keep their geometry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.errors import BadFrame
from detector.model import read_model
from detector.preprocess import GREY, TensorFiller, letterbox
from wire.messages import FrameHeader, InputSpec

Array = np.ndarray[Any, Any]
Header = Callable[..., FrameHeader]


def noise(*shape: int) -> Array:
    return np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("uint8", 0), ("float32", 1e-6), ("float16", 1e-3)])
@pytest.mark.parametrize("pixel_format", ["rgb24", "i420"])
def test_every_pixel_arrives_in_the_models_own_form(
    graphs: ModuleType, tmp_path: Path, header: Header, layout: str, dtype: str, tolerance: float, pixel_format: str
) -> None:
    model = read_model(graphs.cells(tmp_path / "m.onnx", dtype=dtype, layout=layout))
    filler = TensorFiller(model, 2, 64, 96)
    pixels = noise(64, 96, 3) if pixel_format == "rgb24" else noise(96, 96)
    rgb = pixels if pixel_format == "rgb24" else cv2.cvtColor(pixels, cv2.COLOR_YUV2RGB_I420)
    expected = rgb if dtype == "uint8" else rgb / 255
    for payload in (pixels, memoryview(pixels).cast("B")):
        tensor = filler.fill(header(64, 96, pixel_format=pixel_format), payload)
        assert (str(tensor.dtype), tensor.shape[0]) == (dtype, 2)
        picture = tensor[0].transpose(1, 2, 0) if layout == "nchw" else tensor[0]
        assert np.abs(picture.astype(np.float64) - expected).max() <= tolerance


def test_pixels_that_belie_their_header_are_refused(graphs: ModuleType, tmp_path: Path, header: Header) -> None:
    filler = TensorFiller(read_model(graphs.cells(tmp_path / "m.onnx")), 1, 64, 64)
    whole = noise(64, 64, 3)
    for pixels in (whole[:63], whole.reshape(-1)[:-1], memoryview(b""), whole[:, ::-1], whole.astype(np.float32)):
        with pytest.raises(BadFrame, match="camera door"):
            filler.fill(header(64, 64), pixels)


@given(st.integers(1, 700), st.integers(1, 700), st.booleans())
def test_a_letterbox_fits_and_leads_back_to_the_source(height: int, width: int, rectangular: bool) -> None:
    spec = InputSpec(128, 160, 32, rectangular)
    fitted = letterbox(np.full((height, width, 3), 255, np.uint8), spec)
    full = fitted.pixels.shape[:2]
    assert full[0] <= 128 and full[1] <= 160 and full[0] % 32 == 0 and full[1] % 32 == 0
    assert rectangular or full == (128, 160)
    inside = np.argwhere(fitted.pixels[:, :, 0] != GREY)
    (top, left), (bottom, right) = inside.min(axis=0), inside.max(axis=0) + 1
    assert (left, top) == (fitted.pad_left, fitted.pad_top)
    # One pixel of the letterbox is what rounding may cost; a side squeezed below one pixel keeps one.
    for start, end, size in ((left, right, width), (top, bottom, height)):
        assert start + size * fitted.scale == pytest.approx(end, abs=1.0)
    assert full[0] - (bottom - top) < 32 or not rectangular
    assert abs((full[0] - bottom) - top) <= 1 and abs((full[1] - right) - left) <= 1


def test_letterboxed_pixels_are_rgb() -> None:
    blue = np.zeros((64, 64, 3), np.uint8)
    blue[:, :, 0] = 200
    assert letterbox(blue, InputSpec(64, 64, 32, True)).pixels[10, 10].tolist() == [0, 0, 200]


@pytest.mark.parametrize(
    "shape", [(50, 70), (50, 70, 1), (50, 70, 3), (50, 70, 4), (1, 1, 3), (1, 5000, 3), (4320, 7680, 3)]
)
def test_grey_alpha_tiny_and_huge_pictures_are_taken(shape: tuple[int, ...]) -> None:
    assert letterbox(np.zeros(shape, np.uint8), InputSpec(64, 64, 32, True)).pixels.shape[2] == 3


@pytest.mark.parametrize(
    "picture", [np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5, 2), np.uint8), np.zeros((5, 5), float)]
)
def test_what_is_no_picture_is_refused(picture: Array) -> None:
    with pytest.raises(BadFrame):
        letterbox(picture, InputSpec(64, 64, 32, True))
