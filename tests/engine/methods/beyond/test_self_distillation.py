"""Self-distillation beside plain torch: its loss, and the teacher of two authors' releases."""

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from helpers.grids import CONV, VIT, prepared, reference, same, trained
from helpers.plain_losses import ON_FEW, check, cross_entropy, move, over_classes, parameters
from helpers.twins import assert_near

ON = "method=self_distillation"
Weights = dict[str, torch.Tensor]


@pytest.mark.parametrize("extra", [(), (ON_FEW, "method.weight=0.4")])
def test_the_loss_adds_the_divergence_from_the_teacher(grid, extra):
    case = prepared(grid, ON, *extra)
    move(case)
    student_BC, teacher_BC = case.net(case.x), reference(case.before)(case.x).detach()
    log_p_BK, target_BK = (
        over_classes(case, x)[0].log_softmax(1) for x in (student_BC, teacher_BC)
    )
    divergence_B = F.kl_div(log_p_BK, target_BK, reduction="none", log_target=True).sum(1)
    assert divergence_B.mean() > 1e-3
    weight = 0.4 if extra else 1.5
    expected_B = cross_entropy(case, student_BC) + weight * divergence_B
    case.method.teacher.requires_grad_(False)
    check(case, expected_B, parameters(case.net))


def carots(before: Weights, states: list[Weights], every: int) -> Iterator[Weights]:
    """Teachers after each step: param_k * m + (1 - m) * param_q, at every `every`th."""
    mean, rise = before, 0.2 * len(states)
    for step, state in enumerate(states):
        if step % every == 0:
            m = (0.9 - 0.05) / rise * step + 0.05 if step < rise else 0.9
            mean = {name: mean[name] * m + (1 - m) * state[name] for name in mean}
        yield mean


def tracers(before: Weights, states: list[Weights]) -> Iterator[Weights]:
    """Teachers after each step: the mean of all weights so far, by a beta density."""
    weights, seen = [], []
    for step, state in enumerate([before, *states]):
        weights.append(stats.beta(0.5, 0.5).pdf((step + 0.5) / (len(states) + 1)))
        seen.append(state)
        if step:
            yield {
                name: torch.stack([w * s[name] for w, s in zip(weights, seen, strict=True)]).sum(0)
                / sum(weights)
                for name in before
            }


@pytest.mark.parametrize(("average", "arch"), [("ema", VIT), ("beta", CONV)])
def test_the_teacher_follows_as_in_its_authors_release(grid, average, arch):
    words = (f"method.average={average}", f"model.arch={arch}", "train.freeze_batchnorm=false")
    case = prepared(grid, ON, *words, "train.batch_size=5")
    teachers, follow = [], case.method.teacher.follow
    (copied,) = case.method.teacher.copies

    def followed(students) -> None:
        follow(students)
        teachers.append(copy.deepcopy(copied.state_dict()))

    case.method.teacher.follow = followed
    states = trained(case)
    assert len(states) == 10 and not copied.training
    wide = [{n: t.double() for n, t in s.items() if t.is_floating_point()} for s in states]
    before = {name: case.before[name].double() for name in wide[0]}
    twins = carots(before, wide, every=1) if average == "ema" else tracers(before, wide)
    for actual, expected in zip(teachers, twins, strict=True):
        for name, tensor in expected.items():
            assert_near(actual[name], tensor, rtol=1e-4, atol=1e-6, name=name)
    assert not same(teachers[-1], states[-1])
