"""LoRA against low-rank layers in plain torch that are never merged."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models import maxxvit
from torch import nn

from engine.methods import lora
from engine.methods.beyond import dora
from helpers.grids import CONV, Prepared, prepared, reference
from helpers.plain_losses import HEAD, ON_FEW, OUTSIDE_BLOCKS, check, cross_entropy, parameters
from helpers.twins import assert_near


def beside(
    A: torch.Tensor,
    B: torch.Tensor,
    scale: float,
    layer: nn.Module,
    inputs: tuple[torch.Tensor],
    output: torch.Tensor,
) -> torch.Tensor:
    """Hu et al. 2021, equation 3: on query and value of a fused qkv, or on a 1x1 convolution."""
    (x,) = inputs
    if isinstance(layer, nn.Conv2d):
        down = F.conv2d(x, A[0, :, :, None, None], stride=layer.stride)
        return output + scale * F.conv2d(down, B[0, :, :, None, None])
    q, v = (scale * F.linear(F.linear(x, a), b) for a, b in zip(A, B, strict=True))
    return output + torch.cat([q, torch.zeros_like(q), v], dim=-1)


def with_factors(case: Prepared) -> dict[str, torch.Tensor]:
    """Put the method's factors beside the reference's layers; the factors by the method's names."""
    trained: dict[str, torch.Tensor] = {}
    for name, module in case.method.net.named_modules():
        if isinstance(module, lora.LowRank):
            A, B = (p.detach().double().requires_grad_() for p in (module.A, module.B))
            layer = case.net.get_submodule(name.removesuffix(".low_rank"))
            layer.register_forward_hook(partial(beside, A, B, module.scale))
            trained |= {f"{name}.A": A, f"{name}.B": B}
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
        (("method.variant=original",), HEAD),
        (("method.variant=original", "method.train_head=false"), ()),
        (("method.rank=3", "method.scale=2", ON_FEW), HEAD),
        (("method.variant=released",), OUTSIDE_BLOCKS),
        ((f"model.arch={CONV}",), ("classifier.weight", "classifier.bias")),
    ],
)
def test_lora_adds_low_rank_factors_to_query_and_value_or_pointwise(grid, extra, also_trained):
    case = prepared(grid, "method=lora", *extra)
    grown(case)
    trained = with_factors(case)
    pointwise = [m for m in case.net.modules() if getattr(m, "kernel_size", 0) == (1, 1)]
    assert len(trained) == 2 * len(pointwise or case.net.blocks)
    expected_B = cross_entropy(case, case.net(case.x))
    check(case, expected_B, trained | parameters(case.net, also_trained))
    assert case.method.recipe.scale == (2 if "method.scale=2" in extra else 1 / 8)


def scaled(
    A: torch.Tensor,
    B: torch.Tensor,
    magnitude: torch.Tensor,
    layer: nn.Module,
    inputs: tuple[torch.Tensor],
    output: torch.Tensor,
) -> torch.Tensor:
    """Liu et al. 2024, equation 5, on outputs: what LoRA gives, times m / ||W + BA / 8||."""
    shape = [1, -1, 1, 1] if isinstance(layer, nn.Conv2d) else [-1]
    bias = 0 if layer.bias is None else layer.bias.reshape(shape)
    rows = layer.weight.flatten(1).split(B.shape[1])
    shares = [torch.ones_like(row[:, 0]) for row in rows]
    for place, a, b, m in zip((0, -1), A, B, magnitude, strict=False):
        shares[place] = m / (rows[place] + b @ a / 8).detach().norm(dim=1)
    adapted = beside(A, B, 1 / 8, layer, inputs, output)
    return torch.cat(shares).reshape(shape) * (adapted - bias) + bias


@pytest.mark.parametrize("words", [(), (f"model.arch={CONV}",)])
def test_dora_trains_the_length_of_each_row_beside_its_direction(grid, words):
    case = prepared(grid, "method=dora", "method.train_head=false", *words)
    assert_near(case.method.logits(case.batch), case.net(case.x), atol=1e-5)
    grown(case)
    trained = {}
    for name, module in case.method.net.named_modules():
        if isinstance(module, dora.Directions):
            module.magnitude.data *= torch.linspace(0.5, 2, module.magnitude.shape[-1])
            mine = {
                key: p.detach().double().requires_grad_() for key, p in module.named_parameters()
            }
            layer = case.net.get_submodule(name.removesuffix(".low_rank"))
            layer.register_forward_hook(partial(scaled, mine["A"], mine["B"], mine["magnitude"]))
            trained |= {f"{name}.{key}": p for key, p in mine.items()}
    assert len(trained) >= 3 * 6
    check(case, cross_entropy(case, case.net(case.x)), trained)
    merged = reference(case.method.export().state, case.builder.recipe.model.arch)
    with torch.no_grad():
        assert_near(merged(case.x), case.net(case.x), rtol=1e-4, atol=1e-4)


def test_dora_leaves_a_row_of_zeros_as_it_is():
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    weight[2] = 0
    adapted = dora.Directions(weight, rank=2, scale=1.0, thirds=False)(weight)
    assert_near(adapted, weight, atol=1e-6)
    adapted.sum().backward()
    assert adapted[2].abs().max() == 0


def test_lora_refuses_what_it_cannot_adapt(grid, monkeypatch):
    with pytest.raises(ValueError, match="exists for ViTs only; use variant=original"):
        prepared(grid, f"model.arch={CONV}", "method=lora", "method.variant=released")
    assert maxxvit.Attention2d(32).head_first  # CoAtNet's: q, k and v of each head together
    monkeypatch.setattr(Attention, "head_first", True, raising=False)
    with pytest.raises(ValueError, match=r"attn.qkv of \w+ mixes the rows of q, k and v"):
        prepared(grid, "method=lora")
