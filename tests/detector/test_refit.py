"""Frames made for another model's input: the picture, and boxes in source pixels, stay where they are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.errors import BadFrame
from detector.refit import fitted_shape, is_fitted, refit
from ingest.letterbox import Letterboxer, fit
from wire.messages import FrameHeader, InputSpec

sides = st.integers(16, 4000)
specs = st.builds(
    lambda height, width, stride, rectangular: InputSpec(height * stride, width * stride, stride, rectangular),
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from([32, 64]),
    st.booleans(),
)


def framed(height: int, width: int, spec: InputSpec) -> FrameHeader:
    box = fit(height, width, spec)
    return FrameHeader(
        "door", "s", 1, False, 0, 0, "rgb24", box.height, box.width, height, width, box.scale, box.left, box.top
    )


@given(sides, sides, specs)
def test_what_ingest_sends_needs_no_fitting(height: int, width: int, spec: InputSpec) -> None:
    header = framed(height, width, spec)
    assert is_fitted(header, spec)
    assert fitted_shape(header, spec) == (header.height, header.width)


@given(sides, sides, specs, specs)
def test_a_frame_of_any_model_fits_any_other(height: int, width: int, old: InputSpec, new: InputSpec) -> None:
    header = framed(height, width, old)
    changed, pixels = refit(header, np.zeros((header.height, header.width, 3), np.uint8), new)
    assert is_fitted(changed, new)
    assert pixels.shape == (changed.height, changed.width, 3) and pixels.nbytes == changed.pixel_bytes


@pytest.mark.parametrize("new", [InputSpec(640, 640, 32, True), InputSpec(320, 416, 64, False)])
def test_a_box_keeps_its_place_in_the_source(new: InputSpec) -> None:
    picture = np.full((720, 1280, 3), 40, np.uint8)
    picture[200:400, 600:1000] = 250
    old = InputSpec(416, 416, 32, True)
    boxed = Letterboxer().image(picture, 0, old)
    changed, pixels = refit(framed(720, 1280, old), boxed.pixels, new)
    rows, columns = np.nonzero(pixels[:, :, 0] > 180)
    left, top = (columns.min() - changed.pad_left) / changed.scale, (rows.min() - changed.pad_top) / changed.scale
    right = (columns.max() + 1 - changed.pad_left) / changed.scale
    bottom = (rows.max() + 1 - changed.pad_top) / changed.scale
    assert (left, top, right, bottom) == pytest.approx((600, 200, 1000, 400), abs=8)  # two pixels of the smaller


def test_a_picture_that_is_not_there_is_a_bad_frame(header: Callable[..., FrameHeader]) -> None:
    spec = InputSpec(64, 64, 32, True)
    outside = header(96, 96, pad_left=200, source_height=10, source_width=10)
    with pytest.raises(BadFrame, match="camera door"):
        refit(outside, np.zeros((96, 96, 3), np.uint8), spec)
    odd = header(95, 95, pixel_format="i420")
    with pytest.raises(BadFrame):
        refit(odd, memoryview(bytes(odd.pixel_bytes)), spec)
