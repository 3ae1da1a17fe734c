"""A network's blocks and layers in order, and the precision of the tensors between its blocks."""

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


def numbers(net: nn.Module) -> dict[str, int]:
    """The layer of each parameter, by timm: 0 before the first block; the head's is last.

    Raises ValueError for a network whose order timm does not know.
    """
    if not hasattr(net, "group_matcher"):
        raise ValueError(
            f"timm does not define the order of {type(net).__name__}'s layers: choose one of "
            "timm's models"
        )
    from timm.models import group_parameters  # seconds, which planning does without

    matcher = net.group_matcher(coarse=False)  # type: ignore[operator]
    layers: Any = group_parameters(net, matcher, reverse=True)
    return layers
