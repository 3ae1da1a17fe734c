"""A network's blocks by name, and the precision of what they pass on."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

CHAINS = (nn.Sequential, nn.ModuleList)


def blocks(net: nn.Module, prefix: str = "") -> list[str]:
    """Names of a network's blocks in their order: what its chains of modules consist of.

    A chain within a chain is followed: a ViT has its transformer blocks, an EfficientNet and a
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
    """Let every block of a network take its input in bf16, whatever the block before it gave.

    Under autocast that is what the residual stream is in, but where a norm or a scale within a
    block makes fp32 of it. A network without blocks stays as it is.
    """
    for name in blocks(net):
        block = net.get_submodule(name)
        block.__class__ = _taking_bf16(type(block))


@functools.cache
def _taking_bf16(kind: type[nn.Module]) -> type[nn.Module]:
    """A class rather than a hook: graphs are compiled anew for another class, but a graph that was
    compiled without a hook would be taken for a network that has it."""

    class TakesBf16(kind):
        def forward(self, x: torch.Tensor, *others: Any, **options: Any) -> Any:
            return kind.forward(self, x.to(torch.bfloat16), *others, **options)

    return TakesBf16
