"""Optimizers with a penalty, whose whole runs `methods/test_pulls.py` has; the learning rate."""

import dataclasses
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from engine.methods.base import Penalty
from engine.recipe.schema import OptimizerRecipe
from engine.training.optim import Penalised, build, learning_rate
from helpers.twins import assert_near
from kernels import ewc

ADAMW, SGD = OptimizerRecipe(lr=0.01, weight_decay=0.1), OptimizerRecipe(name="sgd", lr=0.01)


@pytest.mark.parametrize("options", [ADAMW, SGD])
def test_a_step_is_the_same_in_another_memory_format(options):
    """The weight's shape is the same in either order of its dimensions."""
    ends = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        model.to(memory_format=memory_format)
        named = dict(model.named_parameters())
        penalty = Penalty(0.5, *({n: torch.rand(p.shape) for n, p in named.items()} for _ in "ab"))
        optimizer = build(named, options, penalty)
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.arange(150.0).reshape(2, 3, 5, 5).cos()).square().sum().backward()
            optimizer.step()
        ends.append(named)
    for name, expected in ends[0].items():
        assert_near(ends[1][name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [ADAMW, SGD])
def test_only_gradients_are_looked_at_in_every_step(options, monkeypatch):
    """What is checked once has the bits of what is checked in every step, also after a moment was
    replaced, as by a checkpoint."""
    checks, check = [], ewc.check
    monkeypatch.setattr(ewc, "check", lambda name, *rest: checks.append(name) or check(name, *rest))
    ends = []
    for anew in (False, True):
        torch.manual_seed(0)
        named = {str(n): nn.Parameter(torch.randn(3, 4 * n)) for n in (1, 2, 3)}
        optimizer = build(named, options, Penalty(0.5, {k: t + 1 for k, t in named.items()}))
        for step in range(6):
            for theta in named.values():
                theta.grad = torch.randn_like(theta)
            if anew:
                optimizer._groups.clear()
            if step == 4:
                for state in optimizer.state.values():
                    state.update({k: t.clone() for k, t in state.items()})
            checks.clear()
            optimizer.step()
            assert (set(checks) == {"grad"}) == (not anew and step not in (0, 4))
        ends.append(
            [*named.values(), *(state[next(iter(state))] for state in optimizer.state.values())]
        )
    assert all(map(torch.equal, *ends))


def test_rates_are_those_of_torchs_warm_up_and_cosine():
    total, warmup, base = 11, 3, 0.2
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], base)
    linear = LinearLR(optimizer, 1 / warmup, total_iters=warmup - 1)
    cosine = CosineAnnealingLR(optimizer, total - warmup)
    schedule = SequentialLR(optimizer, [linear, cosine], [warmup])
    for step in range(total):
        expected = schedule.get_last_lr()[0]
        assert learning_rate(step, total, warmup, base) == pytest.approx(expected, rel=1e-9)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_returns_to_the_anchor_however_stiff_the_penalty(momentum):
    """Without any gradient."""
    theta = nn.Parameter(torch.ones(12))
    penalty = Penalty(2.0, {"t": torch.zeros(12)}, {"t": torch.logspace(-3, 8, 12)})
    optimizer = build({"t": theta}, dataclasses.replace(SGD, momentum=momentum), penalty)
    for _ in range(200):
        optimizer.step()
    assert theta.abs().max() <= 1
    assert theta[5:].abs().max() < 0.01  # lr * lam * F of at least 2


def test_a_pull_that_sgd_cannot_follow_is_logged_and_refused_where_it_is_all_of_it(caplog):
    """Two strengths above the bound would train the same weights under two names."""
    theta, zeros = {"t": nn.Parameter(torch.ones(4))}, {"t": torch.zeros(4)}
    options = dataclasses.replace(SGD, lr=0.01, momentum=0.9)
    build(theta, options, Penalty(190.0, zeros))
    build(theta, options, Penalty(190.0, zeros, {"t": torch.ones(4)}))
    assert not caplog.records
    build(theta, options, Penalty(1.0, zeros, {"t": torch.tensor([0.0, 1, 189, 191])}))
    assert "the penalty on 1 of 4 weights is limited to the largest" in caplog.text
    for fisher in (None, {"t": torch.ones(4)}):
        with pytest.raises(
            ValueError, match=r"strength 300 .* at optimizer.lr=0.01: .* at most 190"
        ):
            build(theta, options, Penalty(300.0, zeros, fisher))
    build(theta, dataclasses.replace(options, name="adamw"), Penalty(300.0, zeros))


@pytest.mark.parametrize("label", ["anchor", "fisher"])
def test_names_and_shapes_that_do_not_fit_are_refused(label):
    tensors = {"t": torch.ones(4)}
    fitting = Penalty(0.5, tensors, tensors)
    for given, size in (({"t": torch.ones(2)}, r"\[2\]"), ({}, "missing")):
        with pytest.raises(ValueError, match=rf"(?i){label} of 't' is {size}, but .* \[4\]"):
            build(tensors, SGD, dataclasses.replace(fitting, **{label: given}))
    build(tensors, SGD, dataclasses.replace(fitting, **{label: tensors | {"other": torch.ones(1)}}))


def test_apex_is_used_where_it_is_and_another_package_of_its_name_is_named(monkeypatch):
    named = {"t": torch.ones(4)}
    with pytest.raises(ValueError, match=r"apex.optimizers.FusedAdam .* NVIDIA's apex"):
        build(named, OptimizerRecipe(name="apex_adamw"))
    optimizers = []
    package = SimpleNamespace(FusedAdam=lambda parameters, **options: optimizers.append(options))
    monkeypatch.setitem(sys.modules, "apex", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "apex.optimizers", package)
    build(named, OptimizerRecipe(name="apex_adamw"))
    assert optimizers[0]["betas"] == (0.9, 0.999)
    assert isinstance(
        build(named, OptimizerRecipe(name="apex_sgd"), Penalty(1.0, named)), Penalised
    )
