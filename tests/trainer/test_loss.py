"""The loss: CIoU, and which cells and anchors answer for which boxes."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from trainer.boxes import ciou  # noqa: E402
from trainer.hyp import Hyp  # noqa: E402
from trainer.loss import Loss, assign  # noqa: E402
from trainer.model import SIZES, YoloV5  # noqa: E402
from trainer.network import head_of  # noqa: E402

sides = st.floats(0.5, 100, width=32)
places = st.floats(-200, 200, width=32)
boxes = st.tuples(places, places, sides, sides)


@given(boxes)
def test_a_box_is_one_with_itself(box: tuple[float, ...]) -> None:
    a = torch.tensor([box])
    assert float(ciou(a, a)) == pytest.approx(1.0, abs=1e-4)


@given(boxes, boxes)
def test_ciou_is_at_most_the_iou_and_does_not_depend_on_the_order(a: tuple[float, ...], b: tuple[float, ...]) -> None:
    one, other = torch.tensor([a]), torch.tensor([b])
    value = float(ciou(one, other))
    assert value <= _iou(a, b) + 1e-4
    assert value == pytest.approx(float(ciou(other, one)), abs=1e-4)


def _iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    wide = min(a[0] + a[2] / 2, b[0] + b[2] / 2) - max(a[0] - a[2] / 2, b[0] - b[2] / 2)
    high = min(a[1] + a[3] / 2, b[1] + b[3] / 2) - max(a[1] - a[3] / 2, b[1] - b[3] / 2)
    both = max(wide, 0) * max(high, 0)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def test_boxes_apart_still_pull_together() -> None:
    a = torch.tensor([[10.0, 10, 4, 4]], requires_grad=True)
    (1 - ciou(a, torch.tensor([[30.0, 10, 4, 4]]))).sum().backward()
    assert a.grad is not None
    assert float(a.grad[0, 0]) < 0  # descending moves it to the right
    assert torch.isfinite(a.grad).all()


shares = st.floats(0, 1, width=32)


@settings(max_examples=60)
@given(st.lists(st.tuples(shares, shares, st.floats(0.01, 1), st.floats(0.01, 1)), min_size=1, max_size=8))
def test_every_assigned_cell_lies_in_the_level_within_reach_of_its_box(rows: list[tuple[float, ...]]) -> None:
    targets = torch.tensor([[0, 0, *row] for row in rows])
    anchors = torch.tensor([[1.5, 2.0], [4.0, 3.0], [10.0, 12.0]])
    found = assign(targets, anchors, 9, 13, 4.0)
    assert ((found.rows >= 0) & (found.rows < 9) & (found.columns >= 0) & (found.columns < 13)).all()
    # The head can say centres from -0.5 to 1.5 cells of its own and sizes up to four times the anchor.
    assert (found.boxes[:, :2] >= -0.501).all()
    assert (found.boxes[:, :2] <= 1.501).all()
    ratio = found.boxes[:, 2:] / anchors[found.anchors]
    assert (torch.maximum(ratio, 1 / ratio) < 4).all()


def test_a_box_in_the_middle_belongs_to_three_cells_of_each_anchor_that_fits() -> None:
    targets = torch.tensor([[0, 0, 4.3 / 8, 5.8 / 8, 2 / 8, 2 / 8]])
    found = assign(targets, torch.tensor([[2.0, 2.0], [30.0, 30.0]]), 8, 8, 4.0)
    cells = sorted(zip(found.rows.tolist(), found.columns.tolist(), strict=True))
    assert cells == [(5, 3), (5, 4), (6, 4)]  # its own, the one to the left and the one below
    assert set(found.anchors.tolist()) == {0}


def test_a_network_learns_the_box_it_is_shown() -> None:
    torch.manual_seed(0)
    network = YoloV5(SIZES["n"], 2)
    hyp = Hyp()
    loss = Loss(head_of(network), hyp, 64)
    picture = torch.rand(1, 3, 64, 64)
    targets = torch.tensor([[0, 1, 0.5, 0.5, 0.3, 0.4]])
    optimizer = torch.optim.Adam(network.parameters(), 0.003)
    first = last = 0.0
    for step in range(120):  # after 60, seeds and CPUs differ by up to 4 pixels; after 120 by one
        value, parts = loss(network.train()(picture), targets)
        first = first or float(value.detach())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        last = float(value.detach())
        assert parts.shape == (3,), step
    assert last < first / 3
    network.train()
    with torch.no_grad():
        rows = head_of(network).decode(network(picture))[0]
    best = rows[rows[:, 4].argmax()]
    assert best[:4].tolist() == pytest.approx([32, 32, 19.2, 25.6], abs=3)
    assert best[6] > best[5]


def test_a_batch_without_any_object_has_only_the_objectness_to_learn() -> None:
    network = YoloV5(SIZES["n"], 3).train()
    value, parts = Loss(head_of(network), Hyp(), 64)(network(torch.rand(2, 3, 64, 64)), torch.zeros(0, 6))
    assert float(parts[0]) == 0
    assert float(parts[2]) == 0
    assert float(value) == pytest.approx(float(parts[1]) * 2)
