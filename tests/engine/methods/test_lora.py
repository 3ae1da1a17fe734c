"""LoRA against low-rank layers in plain torch that are never merged."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from grids import CONV, Prepared, grid, prepared
from plain_losses import LORA_PAPER, ON_FEW, check, cross_entropy, selected
from torch import nn

from engine.methods import lora

__all__ = ["grid"]


class QueryValue(nn.Module):
    """Hu et al. 2021, equation 3, on the query and value of a fused qkv: never merged."""

    def __init__(self, qkv: nn.Linear, low_rank: lora.LowRank) -> None:
        super().__init__()
        self.qkv, self.scale = qkv, low_rank.scale
        self.A, self.B = (nn.Parameter(p.detach().double()) for p in (low_rank.A, low_rank.B))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q = q + self.scale * F.linear(F.linear(x, self.A[0]), self.B[0])
        v = v + self.scale * F.linear(F.linear(x, self.A[1]), self.B[1])
        return torch.cat([q, k, v], dim=-1)


class Pointwise(nn.Module):
    """A 1x1 convolution and, beside it, two more of low rank."""

    def __init__(self, conv: nn.Conv2d, low_rank: lora.LowRank) -> None:
        super().__init__()
        self.conv, self.scale = conv, low_rank.scale
        self.A, self.B = (nn.Parameter(p.detach().double()) for p in (low_rank.A, low_rank.B))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        down = F.conv2d(x, self.A[0, :, :, None, None], stride=self.conv.stride)
        return self.conv(x) + self.scale * F.conv2d(down, self.B[0, :, :, None, None])


def with_factors(
    case: Prepared, wrapper: Callable[[nn.Module, lora.LowRank], nn.Module]
) -> dict[str, torch.Tensor]:
    """Put the method's factors beside the reference's layers; the factors by the method's names."""
    trained: dict[str, torch.Tensor] = {}
    for name, module in list(case.method.net.named_modules()):
        if not isinstance(module, lora.LowRank):
            continue
        place = name.removesuffix(".low_rank")
        parent, _, attribute = place.rpartition(".")
        beside = wrapper(case.net.get_submodule(place), module)
        setattr(case.net.get_submodule(parent), attribute, beside)
        trained |= {f"{name}.A": beside.A, f"{name}.B": beside.B}
    return trained


def grown(case: Prepared) -> None:
    """B starts at zero, where A has no gradient; give it values."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in case.method.named_parameters():
        if name.endswith(".B"):
            assert not parameter.any()
            parameter.data.normal_(generator=generator)
        elif name.endswith(".A"):
            bound = 1 / math.sqrt(parameter.shape[-1])  # Kaiming with a = sqrt(5)
            assert 0.8 * bound < parameter.abs().max() <= bound


@pytest.mark.parametrize(
    ("extra", "also_trained"),
    [
        (("method.variant=canonical",), ("head.weight", "head.bias")),
        (("method.variant=canonical", "method.train_head=false"), ()),
        (("method.variant=canonical", "method.rank=3", "method.scale=2", ON_FEW), LORA_PAPER[-2:]),
        (("method.variant=paper",), LORA_PAPER),
    ],
)
def test_lora_adds_low_rank_factors_to_query_and_value(grid, extra, also_trained):
    case = prepared(grid, "method=lora", *extra)
    grown(case)
    trained = with_factors(case, QueryValue)
    assert len(trained) == 2 * len(case.net.blocks)
    expected_B = cross_entropy(case.net(case.x), case.y, ON_FEW in extra)
    # `norm.weight` of the method's net is a plain parameter, so names agree with the reference's.
    check(case, expected_B, trained | selected(case.net, *also_trained))
    assert case.method.recipe.scale == (2 if "method.scale=2" in extra else 1 / 8)


def test_lora_of_a_convolutional_model_sits_on_its_pointwise_convolutions(grid):
    case = prepared(grid, f"model.arch={CONV}", "method=lora")
    grown(case)
    pointwise = [m for m in case.net.modules() if getattr(m, "kernel_size", 0) == (1, 1)]
    trained = with_factors(case, Pointwise)
    assert len(trained) == 2 * len(pointwise) > 0
    expected_B = cross_entropy(case.net(case.x), case.y)
    check(case, expected_B, trained | selected(case.net, "classifier.weight", "classifier.bias"))


def test_lora_refuses_what_it_cannot_adapt(grid):
    with pytest.raises(ValueError, match="exists for ViTs only; use variant=canonical"):
        prepared(grid, f"model.arch={CONV}", "method=lora", "method.variant=paper")
