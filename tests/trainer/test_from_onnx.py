"""A training begins with an ONNX export of ours, since what is shipped and deployed is ONNX."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from trainer.checkpoint import build, read_checkpoint
from trainer.errors import CheckpointError
from trainer.export import export_network
from trainer.facts import Facts
from trainer.from_onnx import read_onnx, unfold
from trainer.model import SIZES, YoloV5
from trainer.network import start_network
from trainer.settings import TrainSettings

_NAMES = {0: "square", 1: "bar"}


def _pictures(count: int = 2) -> Tensor:
    return torch.from_numpy(np.random.default_rng(5).integers(0, 256, (count, 3, 64, 64), np.uint8))


@pytest.fixture(scope="module", params=["hardswish", "silu"])
def network(request: pytest.FixtureRequest) -> YoloV5:
    """With normalisations that do something."""
    torch.manual_seed(1)
    made = YoloV5(SIZES["n"], 2, activation=request.param)
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.3, 0.3)
            assert layer.running_mean is not None
            assert layer.running_var is not None
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)
            nn.init.uniform_(layer.running_var, 0.05, 0.5)
    return made.eval()


@pytest.fixture(scope="module")
def exported(network: YoloV5) -> bytes:
    return export_network(network, _NAMES, Facts(), image_size=(64, 64)).onnx


@torch.no_grad()
def _outputs(network: nn.Module, pictures: Tensor) -> Tensor:
    found: Tensor = network(pictures.float() / 255)
    return found


def test_a_float_export_comes_back_as_the_network_it_was(network: YoloV5, exported: bytes) -> None:
    found = read_onnx(exported, "model.onnx")
    assert (found.size, found.classes, found.labels, found.image_size) == ("n", 2, _NAMES, (64, 64))
    assert found.folded
    torch.testing.assert_close(
        _outputs(build(found), _pictures()), _outputs(network, _pictures()), rtol=1e-3, atol=1e-3
    )


def test_unfolding_changes_nothing_but_the_statistics(exported: bytes) -> None:
    folded = build(read_onnx(exported, "model.onnx"))
    before = _outputs(folded, _pictures())
    unfold(folded, [_pictures(8)])
    torch.testing.assert_close(_outputs(folded, _pictures()), before, rtol=1e-3, atol=1e-3)
    # In training the normalisations take a batch's own moments: on the pictures of the statistics those are the same.
    one = _outputs(folded, _pictures(8))
    with torch.no_grad():
        levels = folded.train()(_pictures(8).float() / 255)
        torch.testing.assert_close(folded.eval().model[-1].decode(levels), one, rtol=2e-2, atol=2e-2)


def test_a_quantised_export_comes_back_within_half_a_step_and_with_its_zeros() -> None:
    pytest.importorskip("sparseml")
    from trainer.oneshot import oneshot

    torch.manual_seed(1)
    network = YoloV5(SIZES["n"], 2, activation="hardswish").eval()
    file = io.BytesIO()
    torch.save({"model": network.state_dict(), "activation": "hardswish", "image_size": [64, 64]}, file)
    checkpoint = read_checkpoint(file.getvalue(), "dense.pt")
    quantised, _ = oneshot(checkpoint, [_pictures(8)], sparsity=0.75)
    found = read_onnx(export_network(quantised, _NAMES, Facts(), image_size=(64, 64)).onnx, "model.onnx")
    back = build(found)
    convolutions: list[tuple[Any, Any]] = [
        (quantised.get_submodule(f"{name}.module"), layer)
        for name, layer in back.named_modules()
        if name.endswith(".conv")
    ]
    assert len(convolutions) == 57
    for ours, theirs in convolutions:
        wanted = ours.folded()[0].detach()
        step = wanted.abs().amax((1, 2, 3), keepdim=True) / 127
        assert bool(((theirs.weight - wanted).abs() <= step * 0.51 + 1e-6).all())
    zeros = [float((theirs.weight == 0).float().mean()) for _, theirs in convolutions]
    assert sum(share > 0.7 for share in zeros) > 40
    # What is left apart is the rounding of activations, which the network that came back does not do.
    apart = (_outputs(back, _pictures()) - _outputs(quantised, _pictures())).abs()
    assert float(apart[..., 4:].mean()) < 0.02


def test_training_starts_with_the_weights_of_an_export(exported: bytes, network: YoloV5, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(exported)
    settings = TrainSettings(data=tmp_path / "data.yaml", weights=file)
    made, activation, size, begun = start_network(settings, 2)
    assert begun is not None
    assert (size, activation) == ("n", begun.activation)
    torch.testing.assert_close(made.model[24].m[0].weight, network.model[24].m[0].weight)


def test_pruning_at_once_takes_the_statistics_of_an_export_anew_and_not_its_biases(exported: bytes) -> None:
    """Normalisations of an export only add: taking mean and variance anew without `unfold` would change the network."""
    pytest.importorskip("sparseml")
    from trainer.oneshot import oneshot

    checkpoint = read_onnx(exported, "model.onnx")
    pruned, _ = oneshot(checkpoint, [_pictures(8)], sparsity=0.05)
    before = _outputs(build(checkpoint), _pictures(8))[..., 4:]
    apart = (_outputs(pruned, _pictures(8))[..., 4:] - before).abs().mean()
    assert float(apart) < 0.2 * float((before - before.mean((0, 1))).abs().mean()) + 0.01


def test_what_is_no_export_of_ours_is_refused(exported: bytes) -> None:
    for garbage in (b"not a model", b"\x12\x02\x00\x80"):  # the second: a name that is no text
        with pytest.raises(CheckpointError, match="no ONNX file"):
            read_onnx(garbage, "x.onnx")
    foreign = onnx.load_model_from_string(exported)
    for node in foreign.graph.node:
        node.name = f"node_{node.name.replace('.', '_')}"
    with pytest.raises(CheckpointError, match=r"x\.onnx: a convolution named .*sparsecam export"):
        read_onnx(foreign.SerializeToString(), "x.onnx")
    prepared = onnx.load_model_from_string(exported)
    prepared.graph.node.append(onnx.helper.make_node("HardSigmoid", ["images"], ["y"]))
    with pytest.raises(CheckpointError, match=r"HardSigmoid among its nodes.*models prepare"):
        read_onnx(prepared.SerializeToString(), "x.onnx")
    bare = onnx.load_model_from_string(exported)
    del bare.metadata_props[:]
    with pytest.raises(CheckpointError, match="metadata lack"):
        read_onnx(bare.SerializeToString(), "x.onnx")
