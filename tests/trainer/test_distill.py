"""What a teacher's answers teach."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from trainer.checkpoint import Checkpoint, build  # noqa: E402
from trainer.device import Place  # noqa: E402
from trainer.distill import Distillation  # noqa: E402
from trainer.errors import TrainerError  # noqa: E402
from trainer.features import apart, watched  # noqa: E402
from trainer.hyp import Hyp  # noqa: E402
from trainer.model import COCO_ANCHORS, SIZES, STRIDES, YoloV5  # noqa: E402
from trainer.network import head_of  # noqa: E402

_SIDE, _CLASSES = 64, 2
_PLACE = Place(torch.device("cpu"), torch.float32)


def checkpoint(size: str = "n", seed: int = 0, classes: int = _CLASSES, anchors: float = 1.0) -> Checkpoint:
    torch.manual_seed(seed)
    network = YoloV5(SIZES[size], classes, anchors=torch.tensor(COCO_ANCHORS) * anchors)
    with torch.no_grad():  # sure of some cells, as a trained network is
        for conv in head_of(network).m:
            conv.weight.mul_(8)
    return Checkpoint("a.pt", network.state_dict(), size, classes, "silu", None, STRIDES, (_SIDE, _SIDE))


def lesson(teacher: Checkpoint, **hyp: float) -> Distillation:
    return Distillation(teacher, build(checkpoint()), Hyp.model_validate(hyp), _SIDE, _PLACE, maps=False)


def answers(of: Checkpoint, pictures: Tensor) -> list[Tensor]:
    """Raw levels that may be changed."""
    network = build(of)
    head_of(network).training = True
    with torch.no_grad():
        return [level.clone() for level in network(pictures)]


def test_nobody_answers_better_than_the_teacher_itself() -> None:
    pictures = torch.rand(2, 3, _SIDE, _SIDE)
    teach, own = lesson(checkpoint()), answers(checkpoint(), pictures)
    least = float(teach(pictures, own, {})[0])
    levels = [level.requires_grad_() for level in own]
    gradients = torch.autograd.grad(teach(pictures, levels, {})[0], levels)
    assert max(float(one.abs().max()) for one in gradients) < 1e-4
    generator = torch.Generator().manual_seed(1)
    for size in (0.01, 0.1, 1.0):
        moved = [level.detach() + size * torch.randn(level.shape, generator=generator) for level in own]
        assert float(teach(pictures, moved, {})[0]) > least


def test_what_it_says_of_a_box_counts_only_where_it_sees_an_object() -> None:
    pictures = torch.rand(1, 3, _SIDE, _SIDE)
    teacher = checkpoint()
    with torch.no_grad():  # it sees nothing anywhere
        for level in range(3):
            teacher.state[f"model.24.m.{level}.bias"].view(3, -1)[:, 4] -= 100
    own = answers(teacher, pictures)
    teach = lesson(teacher)
    _, before = teach(pictures, own, {})
    for level in own:
        level[..., :4] += 2
        level[..., 5:] -= 2
    _, after = teach(pictures, own, {})
    assert after.tolist() == before.tolist()
    assert before[0] == before[2] == 0
    for level in own:
        level[..., 4] += 200
    assert float(teach(pictures, own, {})[1][1]) > float(before[1])


def test_a_little_doubt_about_background_does_not_count_like_an_object() -> None:
    pictures = torch.rand(1, 3, _SIDE, _SIDE)
    teacher = checkpoint()
    counted = []
    for wanted in (-3.5, 3.5):  # objectness of 0.03 and of 0.97, in one cell of the coarsest level
        with torch.no_grad():
            for level in range(3):
                bias = teacher.state[f"model.24.m.{level}.bias"].view(3, -1)
                weight = teacher.state[f"model.24.m.{level}.weight"].view(3, bias.shape[1], -1)
                weight[:, 4], bias[:, 4] = 0, -100
            bias[0, 4] = wanted
        moved = answers(teacher, pictures)
        for one in moved:
            one[..., :4] += 2
        counted.append(float(lesson(teacher)(pictures, moved, {})[1][0]))
    cells = (_SIDE // 32) ** 2
    assert 0 < counted[0] == pytest.approx(counted[1] * 0.0293 * cells, rel=0.05)


def test_the_gain_scales_all_it_says() -> None:
    pictures = torch.rand(1, 3, _SIDE, _SIDE)
    raw = answers(checkpoint(seed=1), pictures)
    whole, half = (lesson(checkpoint(), distill=gain)(pictures, raw, {}) for gain in (1, 0.5))
    assert torch.allclose(whole[1] / 2, half[1])
    assert float(whole[0]) == pytest.approx(2 * float(half[0]))


def test_a_student_of_another_size_learns_its_teachers_answers_without_any_truth() -> None:
    torch.manual_seed(0)
    teacher = checkpoint("s", seed=3)
    student = build(checkpoint("n", seed=4)).train()
    teach = Distillation(teacher, student, Hyp(), _SIDE, _PLACE, maps=False)
    pictures = torch.rand(4, 3, _SIDE, _SIDE)
    wanted = answers(teacher, pictures)
    optimizer = torch.optim.Adam(student.parameters(), 0.003)

    def apart() -> float:
        """Mean difference of objectness, 0..1."""
        with torch.no_grad():
            raw = student(pictures)
        both = zip(raw, wanted, strict=True)
        return float(torch.cat([(a[..., 4].sigmoid() - b[..., 4].sigmoid()).abs().flatten() for a, b in both]).mean())

    begun = apart()
    for _ in range(60):
        optimizer.zero_grad()
        teach(pictures, student(pictures), {})[0].backward()
        optimizer.step()
    assert apart() < begun / 2


@pytest.mark.parametrize(("changed", "words"), [({"classes": 5}, "5 classes"), ({"anchors": 1.5}, "anchors")])
def test_a_teacher_that_means_something_else_is_refused_in_words(changed: dict[str, float], words: str) -> None:
    with pytest.raises(TrainerError, match=words):
        lesson(checkpoint(**changed))  # type: ignore[arg-type]  # an int and a float, each by its name


def maps_of(network: nn.Module, pictures: Tensor) -> dict[str, Tensor]:
    with torch.no_grad(), watched(network) as maps:
        network(pictures)
    return maps


def test_maps_are_those_of_the_blocks_and_are_noted_only_while_watched() -> None:
    network = build(checkpoint())
    pictures = torch.rand(2, 3, _SIDE, _SIDE)
    with torch.no_grad(), watched(network) as maps:
        network(pictures)
    assert list(maps) == [f"model.{number}" for number in (2, 4, 6, 8, 9, 13, 17, 20, 23)]
    assert maps["model.17"].shape == (2, 64, _SIDE // 8, _SIDE // 8)
    before = dict(maps)
    with torch.no_grad():
        network(torch.rand_like(pictures))
    assert all(maps[name] is one for name, one in before.items())


def test_maps_are_apart_by_the_share_of_their_squares() -> None:
    maps = {"a": torch.rand(1, 2, 3, 3) + 1, "b": torch.rand(1, 2, 3, 3) * 1000 + 1}
    zeros = {name: torch.zeros_like(one) for name, one in maps.items()}
    assert float(apart(maps, maps)) == 0
    assert float(apart(zeros, maps)) == pytest.approx(1)
    assert float(apart({**maps, "a": zeros["a"]}, maps)) == pytest.approx(0.5)
    assert float(apart({"a": maps["a"] * 1.1}, {"a": maps["a"]})) == pytest.approx(0.01, rel=1e-3)
    # One that is zero throughout has nothing to be a share of.
    assert float(apart(maps, zeros)) == 0


def test_gradients_of_maps_are_laid_out_as_the_maps_are() -> None:
    # Others make the backward pass of the normalisations behind them four times as slow on a CPU.
    shape = (2, 4, 3, 5)
    mine, wanted = (torch.rand(shape).to(memory_format=torch.channels_last) for _ in range(2))
    mine.requires_grad_()
    (gradient,) = torch.autograd.grad(apart({"a": mine}, {"a": wanted}), mine)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    assert not gradient.is_contiguous()


def test_a_student_of_its_teachers_shape_learns_every_blocks_map() -> None:
    torch.manual_seed(0)
    pictures = torch.rand(4, 3, _SIDE, _SIDE)
    own = build(checkpoint(seed=3)).train()
    for layer in own.modules():  # normalisations as a trained network has them: of what it sees
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    own(pictures)
    teacher = dataclasses.replace(checkpoint(), state=own.state_dict())
    wanted = maps_of(build(teacher), pictures)
    student = build(checkpoint(seed=4)).train()
    teach = Distillation(teacher, student, Hyp(distill=1e-6, distill_maps=1.0), _SIDE, _PLACE, maps=True)
    optimizer = torch.optim.Adam(student.parameters(), 0.003)
    history = []
    for _ in range(40):
        optimizer.zero_grad()
        with teach.watching(student) as maps:
            raw = student(pictures)
        history.append({name: float(apart({name: one.detach()}, {name: wanted[name]})) for name, one in maps.items()})
        teach(pictures, raw, maps)[0].backward()
        optimizer.step()
    for name, begun in history[0].items():
        assert history[-1][name] < 0.8 * begun, name


def test_without_maps_to_compare_the_answers_alone_count() -> None:
    pictures = torch.rand(1, 3, _SIDE, _SIDE)
    student = build(checkpoint(seed=4))
    head_of(student).training = True
    teach = Distillation(checkpoint("s", seed=3), student, Hyp(), _SIDE, _PLACE, maps=False)
    with torch.no_grad(), teach.watching(student) as maps:
        raw = student(pictures)
    assert not maps
    loss, parts = teach(pictures, raw, maps)
    assert float(loss) == pytest.approx(float(parts.sum()))
