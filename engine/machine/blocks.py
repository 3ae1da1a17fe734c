"""A network's blocks by name, and the precision of the tensors between them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

CHAINS = (nn.Sequential, nn.ModuleList)


def blocks(net: nn.Module, prefix: str = "") -> list[str]:
    """Returns the names of a network's blocks in order: the members of its module chains.

    Chains within chains are expanded: a ViT gives its transformer blocks, an EfficientNet and a
    ResNet their residual blocks, a ConvNeXt its stem's layers and its stages.
    """
    names = []
    for name, child in net.named_children():
        if isinstance(child, CHAINS):
            names += blocks(child, f"{prefix}{name}.")
        elif prefix and not isinstance(child, nn.Identity):
            names.append(f"{prefix}{name}")
    return names


def pass_on_bf16(net: nn.Module) -> None:
    """Makes each block of a network cast its input to bf16. A network without blocks stays
    unchanged.

    Under autocast the residual stream is already in bf16, unless a norm or a scale within a block
    makes it fp32.
    """
    for name in blocks(net):
        block = net.get_submodule(name)
        block.__class__ = _taking_bf16(type(block))


@functools.cache
def _taking_bf16(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass instead of a hook: torch.compile recompiles for another class, but would reuse a
    graph compiled without a hook.
    """

    class TakesBf16(kind):
        def forward(self, x: torch.Tensor, *others: Any, **options: Any) -> Any:
            return kind.forward(self, x.to(torch.bfloat16), *others, **options)

    return TakesBf16
