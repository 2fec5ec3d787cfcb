"""Pruned and quantised networks train, stop, go on and leave for every engine as the same networks."""

from __future__ import annotations

import copy
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from trainer.checkpoint import Checkpoint, build
from trainer.errors import RecipeError, TrainerError
from trainer.facts import Facts
from trainer.model import SIZES, YoloV5
from trainer.quantised import Activations, exportable, is_quantised
from trainer.recipes import parse, read_recipe, to_yaml
from trainer.tidy import tidy
from trainer.unpickle import unpickle

pytest.importorskip("sparseml", reason="the training extra is not installed")

from trainer.oneshot import oneshot, write_oneshot
from trainer.sparsify import Sparsifier, apply_structure, plain_name, plain_state, sparsity

EPOCHS, STEPS = 5, 2
RECIPE = read_recipe("yolov5.pruned_quantized", num_epochs=EPOCHS)


def _network() -> YoloV5:
    torch.manual_seed(0)
    return YoloV5(SIZES["n"], 2, activation="hardswish").train()


def _optimizer(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


def _train(sparsifier: Sparsifier, network: nn.Module, first: int, last: int) -> None:
    for epoch in range(first, last):
        for step in range(STEPS):
            torch.manual_seed(100 * epoch + step)
            network.train()
            loss = sum(level.square().mean() for level in network(torch.rand(2, 3, 64, 64)))
            assert isinstance(loss, Tensor)
            loss.backward()
            sparsifier.step(epoch=epoch + step / STEPS)
            sparsifier.optimizer.zero_grad()


@pytest.fixture(scope="module")
def trained() -> tuple[YoloV5, Sparsifier]:
    network = _network()
    sparsifier = Sparsifier(RECIPE, network, _optimizer(network), steps_per_epoch=STEPS)
    assert (sparsifier.epochs, sparsifier.quantises_at, sparsifier.prunes, sparsifier.sets_lr) == (5, 4, True, False)
    _train(sparsifier, network, 0, EPOCHS)
    return network, sparsifier


def test_weights_become_zero_in_blocks_of_four_input_channels(trained: tuple[YoloV5, Sparsifier]) -> None:
    network, _ = trained
    layers = {plain_name(name): one.weight for name, one in network.named_modules() if isinstance(one, nn.Conv2d)}
    zeros = sum(int((weight == 0).sum()) for weight in layers.values())
    assert zeros / sum(weight.numel() for weight in layers.values()) >= 0.75
    shares = sparsity(network)
    assert shares["model.0.conv"] == shares["model.24.m.0"] == 0
    assert shares["model.9.cv2.conv"] == pytest.approx(0.85, abs=0.01)
    for name, weight in layers.items():
        if shares[name]:
            blocks = (weight == 0).unflatten(1, (-1, 4)).float().mean(2)
            assert set(blocks.unique().tolist()) == {0.0, 1.0}, name


def test_an_average_is_as_sparse_as_its_network(trained: tuple[YoloV5, Sparsifier]) -> None:
    network, sparsifier = trained
    average = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.add_(0.01)
    sparsifier.hold(average)
    ours = sparsity(network)
    assert {name: share for name, share in sparsity(average).items() if ours[name]} == pytest.approx(
        {name: share for name, share in ours.items() if share}
    )


def test_a_network_is_quantised_in_the_first_step_of_its_epoch_and_not_before() -> None:
    network = _network()
    sparsifier = Sparsifier(RECIPE, network, _optimizer(network), steps_per_epoch=STEPS)
    _train(sparsifier, network, 0, 4)
    assert not sparsifier.quantised(4)
    assert not sparsifier.complete(3)
    _train(sparsifier, network, 4, 5)
    assert sparsifier.quantised(4)
    assert sparsifier.complete(4)
    assert not any("model.24" in name for name, one in network.named_modules() if isinstance(one, Activations))


@pytest.mark.parametrize("stop", [2, 4])
def test_a_run_that_was_interrupted_ends_with_the_same_weights(trained: tuple[YoloV5, Sparsifier], stop: int) -> None:
    network = _network()
    sparsifier = Sparsifier(RECIPE, network, _optimizer(network), steps_per_epoch=STEPS)
    _train(sparsifier, network, 0, stop)
    saved = copy.deepcopy((network.state_dict(), sparsifier.optimizer.state_dict()))

    again = _network()
    apply_structure(again, RECIPE, stop)
    again.load_state_dict(saved[0])
    optimizer = _optimizer(again)
    optimizer.load_state_dict(saved[1])
    _train(Sparsifier(RECIPE, again, optimizer, steps_per_epoch=STEPS, epoch=stop), again, stop, EPOCHS)
    whole = trained[0].state_dict()
    assert whole.keys() == again.state_dict().keys()
    for name, value in again.state_dict().items():
        assert torch.equal(value, whole[name]), name


def test_validation_leaves_no_trace_in_the_ranges(trained: tuple[YoloV5, Sparsifier]) -> None:
    network = copy.deepcopy(trained[0]).eval()
    before = copy.deepcopy(network.state_dict())
    network(torch.rand(1, 3, 64, 64) * 5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_zeros_stay_in_sparse_transfer(trained: tuple[YoloV5, Sparsifier]) -> None:
    network = _network()
    network.load_state_dict(plain_state(trained[0].state_dict()))
    before = sparsity(network)
    recipe = read_recipe("yolov5.transfer_pruned_quantized", num_epochs=3)
    sparsifier = Sparsifier(recipe, network, _optimizer(network), steps_per_epoch=STEPS)
    _train(sparsifier, network, 0, 3)
    assert sparsifier.quantised(2)
    assert sparsity(network) == before


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (["re:model\\.77\\."], "no parameter of this network"),
        (["re:model\\.(4.*"], "is no regular expression: missing \\)"),
        (None, "params: empty; expected a list of names"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused_in_words(params: object, words: str) -> None:
    network = _network()
    recipe = parse(RECIPE)
    recipe.modifiers[1].values["params"] = params
    with pytest.raises(RecipeError, match=f"the recipe: .*{words}"):
        Sparsifier(to_yaml(recipe), network, _optimizer(network), steps_per_epoch=STEPS)


@pytest.fixture(scope="module")
def exported(trained: tuple[YoloV5, Sparsifier], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    pictures = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    torch.onnx.export(exportable(trained[0]), (pictures,), str(path), opset_version=13, dynamo=False)
    model = onnx.load_model(str(path))
    tidy(model)
    onnx.checker.check_model(model)
    onnx.save_model(model, str(path))
    return path


def _pictures() -> Tensor:
    torch.manual_seed(1)
    return (torch.rand(1, 3, 64, 64) * 255).to(torch.uint8)


def test_the_exported_graph_has_the_form_that_runs_fast(exported: Path) -> None:
    graph = onnx.load_model(str(exported)).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("ConvInteger") == 57
    assert kinds.count("Conv") == 3  # the head's last
    assert not {"DequantizeLinear", "Identity", "Constant", "BatchNormalization", "HardSwish"} & set(kinds)
    (picture,) = graph.input
    assert picture.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    makers = {name: node.op_type for node in graph.node for name in node.output}
    sources = [makers.get(node.input[0], "picture") for node in graph.node if node.op_type == "ConvInteger"]
    assert sources.count("picture") == 1
    assert set(sources) == {"picture", "QuantizeLinear"}


def test_the_network_in_integers_is_the_one_that_was_trained(trained: tuple[YoloV5, Sparsifier]) -> None:
    network, pictures = trained[0].eval(), _pictures()
    with torch.no_grad():
        wanted, found = network(pictures / 255), exportable(network)(pictures)
    # A value on the edge between two steps may fall to either side: 1 of 255 of a range, here and there.
    assert float((wanted - found).abs().mean()) < 0.05
    assert float((wanted - found)[..., 4:].abs().max()) < 0.02


def test_engines_agree_with_torch(trained: tuple[YoloV5, Sparsifier], exported: Path, tmp_path: Path) -> None:
    pictures = _pictures()
    with torch.no_grad():
        wanted = exportable(trained[0])(pictures).numpy()
    session = onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: pictures.numpy()})
    assert np.abs(found - wanted).mean() < 0.02
    assert np.abs(found - wanted)[..., 4:].max() < 0.02
    if importlib.util.find_spec("deepsparse") is None:
        pytest.skip("no DeepSparse for this machine")
    np.save(tmp_path / "pictures.npy", pictures.numpy())
    copied = tmp_path / "copy.onnx"  # the engine may rewrite it
    copied.write_bytes(exported.read_bytes())
    code = (
        "import os; os.environ['NM_DISABLE_ANALYTICS'] = '1'\n"
        "import sys, numpy, deepsparse\n"
        "engine = deepsparse.Engine('copy.onnx', batch_size=1, num_cores=1)\n"
        "numpy.save('found.npy', engine.run([numpy.load('pictures.npy')])[0])\n"
        "assert engine.fraction_of_supported_ops == 1.0\n"
    )
    # A child: DeepSparse ends its process on a graph it dislikes.
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    found = np.load(tmp_path / "found.npy")
    assert np.abs(found - wanted).mean() < 0.02
    assert np.abs(found - wanted)[..., 4:].max() < 0.02


def test_only_quantised_networks_leave_as_integers() -> None:
    network = _network()
    assert not is_quantised(network)
    with pytest.raises(ValueError, match="not quantised"):
        exportable(network)


def test_a_checkpoint_is_quantised_at_once_from_pictures(tmp_path: Path) -> None:
    network = _network()
    checkpoint = Checkpoint("small", network.state_dict(), "n", 2, "hardswish", None, (8, 16, 32), (64, 64))
    torch.manual_seed(2)
    batches = [(torch.rand(2, 3, 64, 64) * 255).to(torch.uint8) for _ in range(4)]
    dense = build(checkpoint)
    quantised, recipe = oneshot(checkpoint, batches)
    with torch.no_grad():
        wanted, found = dense(batches[0] / 255), quantised(batches[0] / 255)
    assert float((wanted - found)[..., 4:].abs().max()) < 0.02
    write_oneshot(tmp_path / "small.pt", quantised, recipe, checkpoint, Facts(epochs=97))
    saved = unpickle((tmp_path / "small.pt").read_bytes(), "small.pt")
    again = YoloV5(SIZES["n"], 2, activation="hardswish")
    apply_structure(again, saved["recipe"], saved["recipe_epoch"])
    again.load_state_dict(saved["ema"])
    with torch.no_grad():
        assert torch.equal(again.eval()(batches[0] / 255), found)

    sparse, _ = oneshot(checkpoint, batches, sparsity=0.5)
    assert sparsity(sparse)["model.9.cv2.conv"] == pytest.approx(0.5, abs=0.01)
    with pytest.raises(TrainerError, match="no pictures"):
        oneshot(checkpoint, [])
