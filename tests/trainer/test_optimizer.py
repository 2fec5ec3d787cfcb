"""Rates over the epochs, the average of the weights, and the anchors."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from trainer import anchors  # noqa: E402
from trainer.ema import Ema  # noqa: E402
from trainer.hyp import Hyp  # noqa: E402
from trainer.model import COCO_ANCHORS, SIZES, YoloV5  # noqa: E402
from trainer.optimizer import Schedule, accumulate, make_optimizer  # noqa: E402


@given(st.integers(1, 400), st.booleans())
def test_the_rate_falls_from_the_first_to_its_last_share(epochs: int, cosine: bool) -> None:
    schedule = Schedule(Hyp(lrf=0.1), epochs, 10, 16, cosine)
    factors = [schedule.factor(epoch) for epoch in range(epochs + 1)]
    assert factors[0] == pytest.approx(1)
    assert factors[-1] == pytest.approx(0.1)
    assert factors == sorted(factors, reverse=True)


def test_the_warm_up_brings_weights_up_and_biases_down() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    hyp = Hyp(warmup_epochs=2)
    optimizer = make_optimizer(network, "SGD", hyp, 16)
    schedule = Schedule(hyp, 20, 100, 16, cosine=True)
    assert schedule.set_rates(optimizer, 0, 0) == 1
    assert [group["lr"] for group in optimizer.param_groups] == [hyp.warmup_bias_lr, 0, 0]
    assert optimizer.param_groups[0]["momentum"] == hyp.warmup_momentum
    assert schedule.set_rates(optimizer, 2, 0) == accumulate(hyp, 16) == 4
    target = hyp.lr0 * schedule.factor(2)
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(target)] * 3


def test_only_weights_of_convolutions_decay_and_none_is_forgotten() -> None:
    network = YoloV5(SIZES["n"], 2)
    biases, decayed, plain = make_optimizer(network, "SGD", Hyp(), 64).param_groups
    assert biases["weight_decay"] == plain["weight_decay"] == 0
    assert decayed["weight_decay"] == pytest.approx(0.0005)
    counted = sum(len(group["params"]) for group in (biases, decayed, plain))
    assert counted == len(list(network.parameters()))
    assert all(parameter.dim() == 4 for parameter in decayed["params"])


def test_the_average_follows_more_slowly_the_longer_training_goes_on() -> None:
    moved = []
    for steps in (0, 4000):
        network = torch.nn.Linear(1, 1)
        ema = Ema(network, steps)
        before = ema.network.weight.clone()
        with torch.no_grad():
            network.weight += 1
        ema.update(network)
        assert ema.steps == steps + 1
        moved.append(float(ema.network.weight - before))
    assert moved == [pytest.approx(1, abs=1e-2), pytest.approx(0.1354, abs=1e-3)]


def test_anchors_made_for_odd_boxes_reach_nearly_all_of_them() -> None:
    rng = np.random.default_rng(1)
    long = rng.normal([200, 12], [20, 2], (150, 2))
    tiny = rng.normal([5, 5], [0.5, 0.5], (150, 2))
    sizes = np.concatenate([long, tiny]).clip(2)
    coco = np.array(COCO_ANCHORS, float).reshape(-1, 2)
    assert anchors.recall(sizes, coco, 4.0) < anchors.ENOUGH
    made = anchors.make_anchors(sizes, 9, 4.0, seed=0)
    assert made.shape == (9, 2)
    assert anchors.recall(sizes, made, 4.0) > anchors.ENOUGH
    assert (np.diff(made.prod(axis=1)) >= 0).all()


def test_too_few_boxes_for_anchors_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        anchors.make_anchors(np.full((40, 2), 10.0), 9, 4.0, seed=0)
