"""Checkpoints load whole or are refused in words, and nothing in one is ever run."""

from __future__ import annotations

import io
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer import unpickle
from trainer.checkpoint import build, read_checkpoint
from trainer.errors import CheckpointError
from trainer.layers import Activation
from trainer.model import SIZES, YoloV5


def saved(what: object, protocol: int = 2) -> bytes:
    file = io.BytesIO()
    torch.save(what, file, pickle_protocol=protocol)
    return file.getvalue()


def refusal(what: object, protocol: int = 2) -> str:
    with pytest.raises(CheckpointError) as caught:
        build(read_checkpoint(saved(what, protocol), "m.pt"))
    return str(caught.value)


def nano(classes: int = 2, **changes: Any) -> YoloV5:
    torch.manual_seed(0)
    return YoloV5(SIZES["n"], classes, **changes).eval()


@pytest.fixture(scope="module")
def public(shared: Path) -> bytes:
    return (shared / "weights/yolov5n.pt").read_bytes()


@pytest.fixture
def pickled_whole(monkeypatch: pytest.MonkeyPatch) -> Callable[[YoloV5], object]:
    """Turns a network into one whose pickle names the classes of public checkpoints, as only their program has them."""
    homes = {"yolo": ("DetectionModel", "Detect"), "common": ("Conv", "C3", "Bottleneck", "SPPF", "Concat")}
    classes: dict[str, type] = {}
    for home, names in homes.items():
        module = ModuleType(f"models.{home}")
        for name in names:
            classes[name] = type(name, (torch.nn.Module,), {"__module__": module.__name__})
            setattr(module, name, classes[name])
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "models", ModuleType("models"))
    classes |= {"YoloV5": classes["DetectionModel"], "Hardswish": torch.nn.Hardswish}

    def make(network: YoloV5) -> object:
        for module in network.modules():
            module.__class__ = classes.get(type(module).__name__, type(module))
        return network

    return make


def test_the_public_checkpoint_tells_what_it_is(public: bytes) -> None:
    checkpoint = read_checkpoint(public, "yolov5n.pt")
    assert (checkpoint.size, checkpoint.classes, checkpoint.activation) == ("n", 80, "silu")
    assert checkpoint.labels is not None and (checkpoint.labels[0], checkpoint.labels[79]) == ("person", "toothbrush")
    assert (checkpoint.strides, checkpoint.image_size) == ((8, 16, 32), (640, 640))
    assert all(value.dtype == torch.float32 for value in checkpoint.state.values() if value.is_floating_point())


def test_the_public_checkpoint_loads_whole(public: bytes) -> None:
    checkpoint = read_checkpoint(public, "yolov5n.pt")
    network = build(checkpoint)
    assert checkpoint.state.keys() == network.state_dict().keys()
    assert all(torch.equal(value, checkpoint.state[name]) for name, value in network.state_dict().items())
    assert sum(weights.numel() for weights in network.parameters()) == 1_872_157
    assert torch.equal(network.model[24].anchors[2] * 32, torch.tensor([[116.0, 90], [156, 198], [373, 326]]))


@pytest.mark.parametrize("size", ["n", "s", "m"])
@pytest.mark.parametrize("activation", ["silu", "hardswish"])
def test_a_plain_state_dict_loads(size: str, activation: Activation) -> None:
    network = YoloV5(SIZES[size], 3, activation=activation).eval()
    what = {"state_dict": network.state_dict(), "activation": activation, "names": ["a", "b", "c"]}
    checkpoint = read_checkpoint(saved(what | {"image_size": [416, 416], "epoch": 3}), "m.pt")
    assert (checkpoint.size, checkpoint.classes, checkpoint.activation) == (size, 3, activation)
    assert (checkpoint.labels, checkpoint.image_size) == ({0: "a", 1: "b", 2: "c"}, (416, 416))
    picture = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(build(checkpoint)(picture), network(picture))


def test_bare_weights_of_half_precision_from_several_devices_load() -> None:
    halves = {f"module.{name}": value.half() for name, value in nano().state_dict().items()}
    network = build(read_checkpoint(saved(halves), "m.pt"))
    assert {weights.dtype for weights in network.parameters()} == {torch.float32}


@pytest.mark.parametrize("activation", ["silu", "hardswish"])
def test_a_network_pickled_whole_keeps_its_activation_and_anchors(
    activation: Activation, pickled_whole: Callable[[YoloV5], object]
) -> None:
    anchors = torch.arange(1.0, 19).view(3, 3, 2)
    network = nano(activation=activation, anchors=anchors)
    picture = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        expected = network(picture)
    checkpoint = read_checkpoint(saved({"ema": pickled_whole(network), "model": None}), "m.pt")
    assert checkpoint.activation == activation
    with torch.inference_mode():
        assert torch.allclose(build(checkpoint)(picture), expected, rtol=1e-4, atol=1e-4)


class Payload:
    """Runs a command where it is unpickled by the plain loader."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("nested", [False, True])
def test_a_command_in_a_checkpoint_is_refused_by_name_and_not_run(tmp_path: Path, protocol: int, nested: bool) -> None:
    proof = tmp_path / "it-ran"
    payload = Payload(f"touch {proof}")
    words = refusal({"model": nano().state_dict(), "opt": [payload]} if nested else payload, protocol)
    assert "posix.system" in words and "m.pt" in words and "state_dict()" in words
    assert not proof.exists()
    pickle.loads(pickle.dumps(payload))
    assert proof.exists(), "the payload is a real one"


def test_a_network_class_is_a_shell_that_does_nothing(pickled_whole: Callable[[YoloV5], object]) -> None:
    read = unpickle.unpickle(saved(pickled_whole(nano())), "m.pt")
    assert isinstance(read, unpickle.Shell) and read.kind == "DetectionModel"
    assert not isinstance(read, torch.nn.Module) and not callable(read)


def test_other_peoples_classes_are_refused_by_name() -> None:
    words = refusal({"model": torch.nn.Linear(2, 2)})
    assert "torch.nn.modules.linear.Linear" in words


def test_what_unpacks_to_too_much_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickle, "MAX_UNPACKED_BYTES", 1000)
    assert "1000" in refusal(nano().state_dict())


@given(st.floats(0.0, 0.999))
def test_a_checkpoint_cut_anywhere_is_refused_in_words(part: float) -> None:
    whole = saved({"weight": torch.zeros(100)})
    with pytest.raises(CheckpointError, match=r"m\.pt: .*torch\.save"):
        read_checkpoint(whole[: int(len(whole) * part)], "m.pt")


@given(st.data())
def test_a_checkpoint_with_wrong_bytes_is_refused_in_words(data: st.DataObject) -> None:
    whole = bytearray(saved({"weight": torch.zeros(4), "names": ["a"], "n": 3}))
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=8)):
        whole[place] = data.draw(st.integers(0, 255))
    with pytest.raises(CheckpointError, match=r"m\.pt: "):
        read_checkpoint(bytes(whole), "m.pt")


def test_networks_inside_themselves_are_refused(pickled_whole: Callable[[YoloV5], object]) -> None:
    network = nano()
    inner = network.model[1]
    pickled_whole(network)
    inner._modules["conv"] = inner
    assert "deep" in refusal({"model": network})


def without(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name: value for name, value in state.items() if not name.startswith(prefix)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {}, "no network in it"),
        (lambda state: {"model": None, "epoch": 3}, "no network in it, found a dictionary of model, epoch"),
        (lambda state: {"weight": torch.zeros(3)}, r"no weights model\.0\.conv\.weight"),
        (lambda state: without(state, "model.24.anchors"), r"no weights model\.24\.anchors"),
        (lambda state: without(state, "model.9.cv1.bn.weight"), r"1 weights are missing, the first model\.9\.cv1\.bn"),
        (lambda state: {**state, "model.25.bias": torch.zeros(3)}, r"1 weights are of no layer, the first model\.25"),
        (
            lambda state: {**state, "model.7.bn.bias": torch.zeros(3)},
            r"have another shape, the first model\.7\.bn\.bias",
        ),
        (lambda state: without(state, "model.2.m."), r"blocks of \[0, 2, 3, 1\] bottlenecks"),
        (lambda state: {**state, "model.24.anchors": torch.ones(4, 3, 2)}, "4 levels of 3 anchors"),
        (lambda state: {"model": state, "names": ["a", "b", "c"]}, "3 class names; the head has classes 0 to 1"),
        (lambda state: {"model": state, "activation": "relu"}, "activation 'relu'; expected silu or hardswish"),
        (lambda state: {"model": state, "image_size": 640}, r"image_size 640; expected \[height, width\]"),
    ],
)
def test_what_is_not_this_network_is_refused_in_words(change: Callable[..., Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        build(read_checkpoint(saved(change(dict(nano().state_dict()))), "m.pt"))
