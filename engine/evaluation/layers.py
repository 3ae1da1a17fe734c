"""The blocks of a network, and what comes out of each while images pass through."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from engine import models
from engine.errors import RecipeError
from engine.recipe.schema import ModelRecipe

CONTAINERS = (nn.Sequential, nn.ModuleList)


def blocks(net: nn.Module, prefix: str = "") -> list[str]:
    """Names of a network's blocks in their order: what its chains of modules consist of.

    A chain within a chain is followed: a ViT has its transformer blocks, an EfficientNet and a
    ResNet their residual blocks, a ConvNeXt its stem's layers and its stages.
    """
    names = []
    for name, child in net.named_children():
        if isinstance(child, CONTAINERS):
            names += blocks(child, f"{prefix}{name}.")
        elif prefix and not isinstance(child, nn.Identity):
            names.append(f"{prefix}{name}")
    return names


def names_of(recipe: ModelRecipe) -> tuple[str, ...]:
    """`blocks` of an architecture. Raises RecipeError where it has none."""
    names = _names(recipe.arch, recipe.image_size, recipe.projection)
    if not names:
        raise RecipeError(
            f"evaluate.cka: {recipe.arch} is no chain of blocks, so no layers can be compared; set "
            "evaluate.cka=0 for it"
        )
    return names


@functools.cache
def _names(arch: str, image_size: int, projection: int) -> tuple[str, ...]:
    model = ModelRecipe(name=arch, arch=arch, image_size=image_size, projection=projection)
    with torch.random.fork_rng(devices=[]):  # weights drawn here must not change later ones
        return tuple(blocks(models.create(model, 2)))


@contextmanager
def observed(
    net: nn.Module, names: tuple[str, ...], see: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[list[torch.Tensor]]:
    """A list that every forward pass of `net` appends `see(output)` of each named block to.

    Outputs are not held beyond that, so that a pass needs no more memory than without.
    """
    seen: list[torch.Tensor] = []

    def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        seen.append(see(output))

    handles = [net.get_submodule(name).register_forward_hook(hook) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
