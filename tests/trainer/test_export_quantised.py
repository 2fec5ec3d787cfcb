"""A network that was pruned and quantised leaves as integers, says what it said, and keeps its zeros."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import onnx
import pytest
import torch

pytest.importorskip("sparseml")

from detector import engines
from detector.cpu import saturates
from detector.model import parse_model
from detector.prepare.graph import Graph
from detector.prepare.integer_convs import for_openvino
from detector.prepare.report import sparsity
from trainer.errors import CheckpointError
from trainer.export import Exported, export_checkpoint, export_dense_twin
from trainer.facts import read_facts
from trainer.graph.verify import run
from trainer.model import SIZES, YoloV5
from trainer.quantised import is_quantised
from trainer.recipes import read_recipe
from trainer.restore import restore
from trainer.sparsify import Sparsifier


def noise(*shape: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(3).integers(0, 256, shape, np.uint8)


def saved(what: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.save(what, file)
    return file.getvalue()


@pytest.fixture(scope="module")
def trained() -> tuple[YoloV5, dict[str, Any]]:
    """A few steps of the whole recipe on noise, and what `sparsecam train` would save."""
    torch.manual_seed(0)
    network = YoloV5(SIZES["n"], 2, activation="hardswish").train()
    with torch.no_grad():
        for conv in network.model[24].m:
            conv.weight *= 20
    recipe = read_recipe("yolov5.pruned_quantized", num_epochs=8)
    optimizer = torch.optim.SGD(network.parameters(), 1e-4)
    steps = 2
    sparsifier = Sparsifier(recipe, network, optimizer, steps_per_epoch=steps)
    for epoch in range(8):
        for step in range(steps):
            levels = network(torch.from_numpy(noise(2, 3, 64, 64)).float() / 255)
            sum((level**2).mean() for level in levels).backward()
            sparsifier.step(epoch=epoch + step / steps)
            optimizer.zero_grad()
    network.eval()
    facts = {"size": "n", "activation": "hardswish", "names": {0: "a", 1: "b"}, "image_size": [64, 96]}
    what = {"ema": network.state_dict(), "recipe": recipe, "progress": {"epoch": 8}, **facts}
    return network, {**what, "train": {"recipe": "yolov5.pruned_quantized"}}


@pytest.fixture(scope="module")
def exported(trained: tuple[YoloV5, dict[str, Any]]) -> Exported:
    data = saved(trained[1])
    return export_checkpoint(data, "best.pt", read_facts(data, "best.pt"))


def test_a_quantised_checkpoint_comes_back_with_its_layers(trained: tuple[YoloV5, dict[str, Any]]) -> None:
    network, what = trained
    found = restore(saved(what), "best.pt")
    assert is_quantised(found.network)
    assert (found.size, found.activation, found.image_size) == ("n", "hardswish", (64, 96))
    picture = torch.from_numpy(noise(1, 3, 64, 96)).float() / 255
    with torch.inference_mode():
        assert torch.equal(found.network(picture), network(picture))


def test_it_leaves_as_integers_that_say_what_it_said(
    trained: tuple[YoloV5, dict[str, Any]], exported: Exported
) -> None:
    assert exported.quantised and max(exported.sides, exported.score) < 0.05
    kinds = [node.op_type for node in onnx.load_model_from_string(exported.onnx).graph.node]
    assert kinds.count("ConvInteger") == 57 and kinds.count("Conv") == 3, "the head's last stay float"
    assert "DequantizeLinear" not in kinds
    assert kinds.count("QuantizeLinear") == 48, "the picture is bytes already, a C3's two entries share theirs"
    for shape in ((1, 3, 64, 96), (2, 3, 96, 32)):
        pictures = noise(*shape)
        with torch.inference_mode():
            wanted = trained[0](torch.from_numpy(pictures).float() / 255).numpy()
        apart = np.abs(run(exported.onnx, pictures) - wanted)
        assert apart[..., 4:].mean() < 0.01 and apart[..., :4].mean() < 0.5


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_that_get_it_in_another_form_say_the_same(exported: Exported, engine: str) -> None:
    if engine not in engines.installed():
        pytest.skip(f"{engine} is not installed here")
    form = for_openvino(exported.onnx, saturates=False)
    kinds = [node.op_type for node in onnx.load_model_from_string(form).graph.node]
    assert "ConvInteger" not in kinds and kinds.count("DequantizeLinear") == 2 * 57
    for shape in ((1, 3, 64, 96), (2, 3, 96, 32)):
        pictures = noise(*shape)
        # On a CPU without VNNI the weights that it gets are rounded once more.
        form = for_openvino(exported.onnx, saturates=saturates()) if engine == "openvino" else exported.onnx
        wanted = run(form, pictures)
        (found,) = (
            engines.engine_class(engine)
            .load(parse_model(exported.onnx, "m").with_shape(shape[0], *shape[2:]), 1)
            .infer(pictures)
        )
        if engine == "onnxruntime":
            assert np.array_equal(found, wanted)
        else:  # sums of floats may be rounded to the next of 256 steps, and 56 layers pass that on
            apart = np.abs(found - wanted)
            assert apart[..., 4:].mean() < 0.01 and apart[..., :4].mean() < 0.5


def test_its_zeros_stay_and_its_dense_twin_has_none(trained: tuple[YoloV5, dict[str, Any]], exported: Exported) -> None:
    layers = {layer.layer: layer for layer in sparsity(Graph(exported.onnx))}
    assert len(layers) == 60
    assert layers["model.8.cv1.conv"].zeros >= 0.85 and layers["model.8.cv1.conv"].zero_blocks >= 0.84
    assert layers["model.24.m.0"].zeros < 0.01
    twin = sparsity(Graph(export_dense_twin(saved(trained[1]), "best.pt").onnx))
    assert max(layer.zeros for layer in twin) < 0.01
    assert len(exported.compressed()) < 0.25 * len(export_dense_twin(saved(trained[1]), "best.pt").onnx)


def test_a_quantised_checkpoint_that_does_not_tell_its_recipe_is_refused(
    trained: tuple[YoloV5, dict[str, Any]],
) -> None:
    what = {key: value for key, value in trained[1].items() if key != "recipe"}
    with pytest.raises(CheckpointError, match=r"best\.pt: quantised, but it does not say by which .recipe."):
        restore(saved(what), "best.pt")
