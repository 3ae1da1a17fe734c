"""Depthwise convolutions on small maps against torch's, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from engine.training.depthwise import SmallMaps, use_small_maps


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 2), (2, 3), (4, 4), (4, 6), (7, 2)])
@pytest.mark.parametrize("kernel", [3, 5, (3, 7)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("images", [0, 1, 5])
def test_outputs_and_gradients_are_torchs(size, kernel, bias, images):
    torch.manual_seed(0)
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = tuple(side // 2 for side in sides)
    layer = nn.Conv2d(6, 6, kernel, padding=padding, groups=6, bias=bias).double()
    ours = copy.deepcopy(layer)
    use_small_maps(ours)
    assert type(ours) is SmallMaps
    results = []
    for each in (layer, ours):
        x = torch.randn(
            images, 6, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        ).requires_grad_()
        outputs = each(x)
        results.append(
            (outputs, *torch.autograd.grad(outputs.sin().sum(), (x, *each.parameters())))
        )
    for expected, value in zip(*results, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_only_what_trains_gets_a_gradient():
    layer = SmallMaps(3, 3, 5, padding=2, groups=3, bias=False)
    layer.weight.requires_grad_(False)
    x = torch.randn(2, 3, 2, 2, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is None
    layer.weight.requires_grad_(True)
    layer(x.detach()).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 8, 3, padding=1, groups=4),
        nn.Conv2d(4, 4, 3, 2, padding=1, groups=4),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 4, 4, padding=2, groups=4),
        nn.Conv2d(4, 4, 3, padding="same", groups=4),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="circular"),
    ],
)
def test_other_convolutions_stay(layer):
    use_small_maps(layer)
    assert type(layer) is nn.Conv2d
