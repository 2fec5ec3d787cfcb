"""The network is YOLOv5: its published sizes, the names of its weights, and rows that lie where its formulas say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.layers import Activation, Conv, Detect, Hardswish
from trainer.model import COCO_ANCHORS, SIZES, STRIDES, YoloV5

# Published with YOLOv5 v6 for 80 classes: as trained, and with the normalisation folded away.
PUBLISHED = {
    "n": (1_872_157, 1_867_405),
    "s": (7_235_389, 7_225_885),
    "m": (21_190_557, 21_172_173),
    "l": (46_563_709, 46_533_693),
    "x": (86_749_405, 86_705_005),
}


@pytest.fixture(scope="module")
def network() -> YoloV5:
    """A nano of two classes, its weights and normalisation statistics random."""
    torch.manual_seed(0)
    made = YoloV5(SIZES["n"], 2)
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return made.eval()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("activation", ["silu", "hardswish"])
def test_every_size_has_the_published_number_of_parameters(size: str, activation: Activation) -> None:
    with torch.device("meta"):  # shapes without memory
        network = YoloV5(SIZES[size], 80, activation=activation)
    count = sum(weights.numel() for weights in network.parameters())
    folded = sum(conv.conv.out_channels for conv in network.modules() if isinstance(conv, Conv))
    assert (count, count - folded) == PUBLISHED[size]


def test_weights_have_the_names_that_public_recipes_use(network: YoloV5) -> None:
    names = dict(network.named_parameters())
    for name in (
        "model.0.conv.weight",
        "model.2.m.0.cv2.bn.bias",
        "model.9.cv2.conv.weight",
        "model.23.cv3.conv.weight",
        "model.24.m.2.bias",
    ):
        assert name in names
    assert "model.24.anchors" in dict(network.named_buffers())
    assert len(network.model) == 25


@given(st.floats(-1e4, 1e4, width=32))
def test_hardswish_is_pytorchs_own(value: float) -> None:
    x = torch.tensor([value])
    assert torch.allclose(Hardswish()(x), torch.nn.functional.hardswish(x), rtol=1e-5, atol=1e-6)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.sampled_from([0, 1, 2]))
def test_rows_run_by_level_then_anchor_then_line(batch: int, high: int, wide: int, level: int) -> None:
    """A head whose outputs are all zero: every box is its anchor in the middle of its cell, every score a half."""
    anchors = torch.tensor(COCO_ANCHORS, dtype=torch.float32)
    head = Detect(1, anchors, STRIDES, (4, 4, 4)).eval()
    for conv in head.m:
        torch.nn.init.zeros_(conv.weight)
        torch.nn.init.zeros_(conv.bias)
    sizes = [(high * 4, wide * 4), (high * 2, wide * 2), (high, wide)]  # strides 8, 16, 32
    with torch.inference_mode():
        rows = head([torch.ones(batch, 4, *size) for size in sizes])
    assert rows.shape == (batch, 3 * sum(h * w for h, w in sizes), 6)
    before = 3 * sum(h * w for h, w in sizes[:level])
    height, width = sizes[level]
    for anchor in range(3):
        for y, x in ((0, 0), (height - 1, 0), (0, width - 1), (height - 1, width - 1)):
            row = rows[-1, before + (anchor * height + y) * width + x].tolist()
            middle = [(x + 0.5) * STRIDES[level], (y + 0.5) * STRIDES[level]]
            assert row == pytest.approx([*middle, *COCO_ANCHORS[level][anchor], 0.5, 0.5])


def test_pictures_may_be_any_rectangle_of_whole_strides(network: YoloV5) -> None:
    with torch.inference_mode():
        assert network(torch.rand(2, 3, 64, 96)).shape == (2, 3 * (8 * 12 + 4 * 6 + 2 * 3), 7)


def test_in_training_the_raw_levels_come_out(network: YoloV5) -> None:
    try:
        levels = network.train()(torch.rand(2, 3, 64, 96))
    finally:
        network.eval()
    assert [tuple(level.shape) for level in levels] == [(2, 3, 8, 12, 7), (2, 3, 4, 6, 7), (2, 3, 2, 3, 7)]


def test_folding_the_normalisation_changes_no_box(network: YoloV5) -> None:
    fused = YoloV5(SIZES["n"], 2)
    fused.load_state_dict(network.state_dict())
    fused.eval().fuse()
    picture = torch.rand(1, 3, 96, 96)
    with torch.inference_mode():
        assert torch.allclose(fused(picture), network(picture), rtol=1e-3, atol=1e-3)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
