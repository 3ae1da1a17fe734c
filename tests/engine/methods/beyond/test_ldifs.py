"""LDIFS beside plain torch, a block at a time."""

import pytest
import torch
from torch import Tensor, nn

from helpers.grids import CONV, VIT, prepared, reference
from helpers.plain_losses import check, cross_entropy, move, parameters


def at_depths(net: nn.Module, x: Tensor, arch: str) -> list[Tensor]:
    """Features before the first block, and after the second, third, fifth and sixth of the ViT's
    six; of the convolutional model's five blocks after the second, third, fourth and fifth."""
    if arch == VIT:
        x, after = net.norm_pre(net.patch_drop(net._pos_embed(net.patch_embed(x)))), (2, 3, 5, 6)
        chain = list(net.blocks)
    else:
        x, after = net.bn1(net.conv_stem(x)), (2, 3, 4, 5)
        chain = [block for stage in net.blocks for block in stage]
    seen = [x]
    for number, block in enumerate(chain, start=1):
        x = block(x)
        seen += [x] * (number in after)
    assert number == after[-1]
    return seen


@pytest.mark.parametrize(("arch", "words"), [(VIT, ()), (CONV, ("method.weight=700",))])
def test_the_loss_adds_the_distance_of_features_at_five_depths(grid, arch, words):
    case = prepared(grid, "method=ldifs", f"model.arch={arch}", *words)
    move(case)
    terms = []
    for f, g in zip(
        at_depths(case.net, case.x, arch),
        at_depths(reference(case.before, arch), case.x, arch),
        strict=True,
    ):
        f, g = (t / t.square().sum(1, keepdim=True).sqrt() for t in (f, g.detach()))
        terms.append(torch.stack([(a - b).square().mean() for a, b in zip(f, g, strict=True)]))
    distance_B = sum(terms) / 5
    assert distance_B.min() > 1e-4
    weight = 700 if words else 10
    expected_B = cross_entropy(case, case.net(case.x)) + weight * distance_B
    case.method(case.batch)  # features of an earlier batch do not count
    check(case, expected_B, parameters(case.net))


def test_a_network_without_blocks_is_refused(grid):
    case = prepared(grid, "method=ldifs")
    net = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"and Linear is not a chain of blocks: choose"):
        case.method.prepare(net, case.builder)
