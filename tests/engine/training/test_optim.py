"""Optimizers with EWC's penalty, and the learning rate."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from engine.methods.base import Penalty
from engine.recipe.schema import OptimizerRecipe
from engine.training.optim import Penalised, build, learning_rate

ADAMW, SGD = OptimizerRecipe(lr=0.01, weight_decay=0.1), OptimizerRecipe(name="sgd", lr=0.01)


def linear() -> tuple[nn.Module, dict[str, nn.Parameter], Penalty]:
    torch.manual_seed(0)
    model = nn.Linear(3, 4)
    anchor = {name: torch.randn(p.shape) for name, p in model.named_parameters()}
    fisher = {name: torch.rand(p.shape) for name, p in model.named_parameters()}
    return model, dict(model.named_parameters()), Penalty(0.5, anchor, fisher)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 3, generator=generator)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("identity", [False, True])
@pytest.mark.parametrize("options", [ADAMW, SGD])
def test_a_step_is_torchs_with_the_penalty_in_the_loss(options, identity):
    model, named, penalty = linear()
    fisher = penalty.fisher if not identity else {n: torch.ones(()) for n in named}
    assert fisher is not None
    of_run = dataclasses.replace(penalty, fisher=None) if identity else penalty
    optimizer = build(named, options, of_run)
    plain, plain_named, _ = linear()
    torchs = build(plain_named, options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        x = torch.randn(5, 3, generator=generator)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        torchs.zero_grad()
        pulls = [fisher[n] * (p - penalty.anchor[n]) ** 2 for n, p in plain_named.items()]
        pull = penalty.lam / 2 * sum(each.sum() for each in pulls)
        (plain(x).square().mean() + pull).backward()
        torchs.step()
    for name, expected in plain_named.items():
        torch.testing.assert_close(named[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [ADAMW, SGD])
def test_the_penalty_is_its_formula_when_it_is_read(options):
    model, named, penalty = linear()
    optimizer = build(named, options, penalty)
    assert isinstance(optimizer, Penalised) and penalty.fisher is not None
    for _ in range(2):
        train(model, optimizer, steps=2)
        pulls = (penalty.fisher[n] * (p - penalty.anchor[n]) ** 2 for n, p in named.items())
        expected = penalty.lam / 2 * sum(pull.sum().item() for pull in pulls)
        assert optimizer.penalty() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("options", [ADAMW, SGD])
def test_a_step_is_the_same_in_another_memory_format(options):
    """The weight's shape is the same in either order of its dimensions."""
    ends = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        model.to(memory_format=memory_format)  # type: ignore[call-overload]
        named = dict(model.named_parameters())
        penalty = Penalty(0.5, *({n: torch.rand(p.shape) for n, p in named.items()} for _ in "ab"))
        optimizer = build(named, options, penalty)
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.arange(150.0).reshape(2, 3, 5, 5).cos()).square().sum().backward()
            optimizer.step()
        ends.append(named)
    for name, expected in ends[0].items():
        torch.testing.assert_close(ends[1][name], expected, rtol=1e-5, atol=1e-6)


def test_parameters_without_a_gradient_are_pulled_to_the_anchor():
    _, named, penalty = linear()
    identity = Penalty(1.0, penalty.anchor)
    optimizer = build(named, dataclasses.replace(SGD, lr=0.5, momentum=0.0), identity)
    for _ in range(40):
        optimizer.step()
    for name, parameter in named.items():
        torch.testing.assert_close(parameter.detach(), penalty.anchor[name])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_returns_to_the_anchor_however_stiff_the_penalty(momentum):
    theta = nn.Parameter(torch.ones(12))
    penalty = Penalty(2.0, {"t": torch.zeros(12)}, {"t": torch.logspace(-3, 8, 12)})
    for fisher in (penalty.fisher, None):
        stiff = dataclasses.replace(penalty, lam=1e7 if fisher is None else 2.0, fisher=fisher)
        nn.init.ones_(theta)
        options = dataclasses.replace(SGD, momentum=momentum)
        optimizer = build({"t": theta}, options, stiff)
        for _ in range(200):
            theta.grad = torch.zeros(12)
            optimizer.step()
        assert theta.abs().max() <= 1
        assert theta[5:].abs().max() < 0.01  # lr * lam * F of at least 2


@pytest.mark.parametrize("label", ["anchor", "fisher"])
def test_names_and_shapes_that_do_not_fit_are_refused(label):
    _, named, penalty = linear()
    tensors = dict(getattr(penalty, label))
    bias = tensors.pop("bias")
    with pytest.raises(ValueError, match=rf"(?i){label} has no parameter 'bias'"):
        build(named, SGD, dataclasses.replace(penalty, **{label: tensors}))
    tensors |= {"bias": bias[:2], "other": bias}
    with pytest.raises(ValueError, match=rf"(?i){label} of 'bias' is \[2\], but .* \[4\]"):
        build(named, SGD, dataclasses.replace(penalty, **{label: tensors}))
    build(named, SGD, dataclasses.replace(penalty, **{label: tensors | {"bias": bias}}))


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        build({}, ADAMW)


def test_apex_is_used_where_it_is_and_another_package_of_its_name_is_named(monkeypatch):
    _, named, penalty = linear()
    with pytest.raises(ValueError, match=r"apex.optimizers.FusedAdam .* NVIDIA's apex"):
        build(named, OptimizerRecipe(name="apex_adamw"))
    optimizers = []
    package = SimpleNamespace(FusedAdam=lambda parameters, **options: optimizers.append(options))
    monkeypatch.setitem(sys.modules, "apex", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "apex.optimizers", package)
    build(named, OptimizerRecipe(name="apex_adamw"))
    assert optimizers[0]["betas"] == (0.9, 0.999)
    assert isinstance(build(named, OptimizerRecipe(name="apex_sgd"), penalty), Penalised)


def test_learning_rate_warms_up_and_falls_along_half_a_cosine():
    rates = [learning_rate(step, 100, 10, 2.0) for step in range(101)]
    assert rates[0] == 0.2 and rates[9] == rates[10] == 2.0 and rates[100] == 0.0
    assert rates[55] == pytest.approx(1.0)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert learning_rate(0, 5, 0, 1.0) == 1.0 and learning_rate(3, 2, 10, 1.0) == 0.4
