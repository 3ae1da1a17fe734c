"""`SAME` padding of kernels against timm's padding of images."""

from __future__ import annotations

import platform

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from engine.models.form import Form
from engine.models.same_padding import PaddedKernel, pad_kernels
from engine.recipe.schema import ModelRecipe


@pytest.mark.parametrize("size", [(8, 8), (9, 9), (7, 10), (1, 2), (2, 1), (1, 1)])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5, (3, 5)])
@pytest.mark.parametrize("stride", [1, 2, 3, (2, 1)])
@pytest.mark.parametrize("groups", [1, 8])
def test_outputs_and_gradients_are_timms(size, kernel, stride, groups):
    torch.manual_seed(0)
    # With fewer than 8 channels oneDNN may damage memory on processors without AVX-512.
    layer = Conv2dSame(8, 16, kernel, stride, groups=groups)
    images = torch.randn(3, 8, *size).to(memory_format=torch.channels_last).requires_grad_()
    results = []
    for kind in (Conv2dSame, PaddedKernel):
        layer.__class__ = kind
        outputs = layer(images)
        inputs = (images, layer.weight, layer.bias)
        gradients = torch.autograd.grad(outputs.square().sum(), inputs)
        results.append((outputs, *gradients))
    for timms, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, timms)


def test_layers_that_are_dilated_or_of_another_kind_stay():
    layers = [
        Conv2dSame(3, 3, 3, 2),
        Conv2dSame(3, 3, 3, 2, dilation=2),
        nn.Conv2d(3, 3, 3, 2),
    ]
    net = nn.Sequential(*layers)
    pad_kernels(net)
    assert [type(layer) for layer in net] == [PaddedKernel, Conv2dSame, nn.Conv2d]


@pytest.mark.parametrize("side", [64, 75])
def test_a_whole_backbone_gives_the_same_outputs(side):
    recipe = ModelRecipe(name="lite", arch="tf_efficientnet_lite0", image_size=side)
    backbone = Form("fp32", "never", folded=True).backbone(recipe, 2, torch.device("cpu"))
    layers = [layer for layer in backbone.modules() if isinstance(layer, PaddedKernel)]
    assert len(layers) == 5
    images = torch.randn(4, 3, side, side).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        ours = backbone(images)
        for layer in layers:
            layer.__class__ = Conv2dSame
        timms = backbone(images)
    torch.testing.assert_close(ours, timms)
    assert torch.equal(ours, timms) or platform.machine() != "x86_64"
