"""A method's losses and gradients beside those of the same loss in plain torch, in float64."""

from collections.abc import Collection

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from helpers.grids import CLASSES, FEW, Grid, Prepared, images, labels, reference
from helpers.twins import assert_near

PLACES = [CLASSES.index(name) for name in FEW]
HEAD = ("head.weight", "head.bias")
# What the variant `released` of LoRA trains beside its factors, and that of a linear probe beside
# the head.
OUTSIDE_BLOCKS = ("cls_token", "pos_embed", "norm.weight", "norm.bias")
ON_FEW = "downstream=few"
SLACK = {"rtol": 2e-4, "atol": 2e-6}  # float32 against float64


def over_classes(case: Prepared, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of the set's classes, and the labels as places among them."""
    if case.builder.recipe.downstream != "few":
        return logits, case.y
    return logits[:, PLACES], torch.tensor([PLACES.index(int(label)) for label in case.y])


def cross_entropy(case: Prepared, logits: torch.Tensor) -> torch.Tensor:
    """Cross-entropy [b] over the classes of the set."""
    return F.cross_entropy(*over_classes(case, logits), reduction="none")


def move(case: Prepared) -> None:
    """Add the same noise to the parameters of the method's network and to those of its twin."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for mine, twin in zip(case.method.net.parameters(), case.net.parameters(), strict=True):
            mine += 0.05 * torch.randn(mine.shape, generator=generator)
            twin.copy_(mine)


def check(case: Prepared, expected_B: torch.Tensor, trained: dict[str, torch.Tensor]) -> None:
    """Losses, and the gradient of every trained parameter; no other parameter gets one.

    trained: the reference's parameters by the name that the method's have below `net.`.
    """
    losses_B = case.method(case.batch)
    assert losses_B.shape == expected_B.shape
    assert_near(losses_B, expected_B, **SLACK)
    losses_B.mean().backward()
    expected_B.mean().backward()
    learning = {n.removeprefix("net."): p for n, p in case.method.named_parameters()}
    assert {n for n, p in learning.items() if p.requires_grad} == set(trained)
    for name, parameter in learning.items():
        if name not in trained:
            assert parameter.grad is None, name
            continue
        assert_near(parameter.grad, trained[name].grad, rtol=1e-3, atol=1e-5, name=name)
    # The key's bias has no gradient at all, so a single tensor may be zero, but not all.
    assert any(trained[name].grad.abs().max() > 1e-3 for name in trained)


def parameters(net: nn.Module, names: Collection[str] | None = None) -> dict[str, torch.Tensor]:
    """The parameters of these names, for `check`; by default all."""
    return {n: p for n, p in net.named_parameters() if names is None or n in names}


def loop_fisher(
    grid: Grid, case: Prepared, arch: str, sign: float = 1.0
) -> dict[str, torch.Tensor]:
    """Squared gradients of one upstream image at a time, averaged; labels are the data's.

    sign: of the logits."""
    net = reference(case.before, arch)
    index = case.builder.upstream.split("train")
    sums = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for i in index:
        single = np.array([i])
        logits = net(images(grid, "upstream", single, arch))
        loss = F.cross_entropy(sign * logits, labels(grid, "upstream", single))
        for name, g in zip(sums, torch.autograd.grad(loss, list(net.parameters())), strict=True):
            sums[name] += g**2
    return {name: total / len(index) for name, total in sums.items()}
