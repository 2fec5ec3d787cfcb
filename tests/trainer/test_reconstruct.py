"""What pruning at once takes away, the weights that are left give back as far as they can."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from trainer.reconstruct import reconstruct


class _Doubled(nn.Module):
    """Every colour twice, so that of each pair one weight can do the work of both."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 5, 3, padding=1, bias=True)
        self.after = nn.Conv2d(5, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.conv(torch.cat((x, x), 1)).relu())


def _pictures() -> Tensor:
    return torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def _apart(a: nn.Module, b: nn.Module) -> float:
    x = _pictures().float() / 255
    return float((a(x) - b(x)).square().mean() / b(x).var())


def test_weights_that_can_stand_in_for_pruned_ones_do_so_and_zeros_stay() -> None:
    torch.manual_seed(0)
    dense = _Doubled().eval()
    pruned = copy.deepcopy(dense)
    with torch.no_grad():
        pruned.conv.weight[:, 3:] = 0
        before = _apart(pruned, dense)
        reconstruct(pruned, dense, [_pictures()[:4], _pictures()[4:]])
    assert bool((pruned.conv.weight[:, 3:] == 0).all())
    assert _apart(pruned, dense) < 0.01 * before  # the damping alone keeps it from being the same


def test_a_later_layer_mends_what_an_earlier_one_could_not() -> None:
    torch.manual_seed(0)
    dense = _Doubled().eval()
    pruned = copy.deepcopy(dense)
    with torch.no_grad():
        pruned.conv.weight[:, [0, 3]] = 0  # one colour is lost for good
        pruned.after.weight[0, 0] = 0
        before = _apart(pruned, dense)
        reconstruct(pruned, dense, [_pictures()])
    assert _apart(pruned, dense) < 0.5 * before
    assert bool((pruned.after.weight[0, 0] == 0).all())


def test_what_is_not_pruned_is_not_touched() -> None:
    dense = _Doubled().eval()
    same = copy.deepcopy(dense)
    reconstruct(same, dense, [_pictures()])
    assert torch.equal(same.conv.weight, dense.conv.weight)
    assert torch.equal(same.after.weight, dense.after.weight)
