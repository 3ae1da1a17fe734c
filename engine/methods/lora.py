"""LoRA: trains low-rank updates of frozen weights (Hu et al. 2021).

On a ViT, LoRA adapts the query and value rows of the fused qkv. On a convolutional model,
`original` adapts the 1x1 convolutions. The forward pass uses the merged weight W + scale * B A,
which computes the same function and runs every timm model unchanged.

`released` follows the released benchmark: beside the factors it trains the class token, position
embedding and the norms outside the blocks, and it freezes the head.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import nn

from engine import models
from engine.methods.base import Context, FrozenBackbone
from engine.methods.linear_probe import RELEASED_TRAINS
from engine.methods.options.lora import Recipe
from engine.store.cells import Export


class LowRank(nn.Module):
    """Maps W [out, in, ...] to W + scale * B A.

    thirds: adapt only the first and last third of the rows, the q and v of a fused qkv.
    """

    def __init__(self, weight: torch.Tensor, rank: int, scale: float, thirds: bool) -> None:
        super().__init__()
        self.scale = scale
        rows, columns = weight.shape[0], weight[0].numel()
        self.blocks = 2 if thirds else 1
        self.rows = rows // 3 if thirds else rows
        like = {"device": weight.device, "dtype": weight.dtype}
        self.A = nn.Parameter(torch.empty(self.blocks, rank, columns, **like))
        self.B = nn.Parameter(torch.zeros(self.blocks, self.rows, rank, **like))
        for block in self.A:
            nn.init.kaiming_uniform_(block, a=math.sqrt(5))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        update = self.scale * (self.B @ self.A)
        if self.blocks == 2:
            update = torch.cat([update[0], torch.zeros_like(update[0]), update[1]])
        return weight + update.reshape(weight.shape)


@functools.cache
def adapted(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass of `kind` whose weight is `low_rank(frozen)`.

    torch's parametrizations create a class per module. The compiler guards on classes, so it would
    recompile for every cell.
    """
    merged = property(lambda module: module.low_rank(module.frozen))
    return type(f"LowRank{kind.__name__}", (kind,), {"weight": merged})


def adapt(module: Any, low_rank: LowRank) -> None:
    """Replace a layer's weight by one with low-rank factors, in place."""
    frozen = module.weight
    del module.weight
    module.__class__ = adapted(type(module))
    module.frozen, module.low_rank = frozen, low_rank


def in_thirds(attention: nn.Module) -> bool:
    """Whether the rows of its fused qkv hold all of q, then all of k, then all of v, as in a ViT.

    CoAtNet, LeViT and TinyViT interleave q, k and v by head, and GC ViT may share q.
    """
    of_heads = getattr(attention, "head_first", False) or hasattr(attention, "val_dim")
    return not (of_heads or getattr(attention, "use_global", False))


class Method(FrozenBackbone):
    recipe: Recipe
    factors = LowRank

    def prepare(self, net: nn.Module, context: Context) -> None:
        super().prepare(net, context)
        places: dict[Any, bool] = {}
        for name, module in net.named_modules():
            if name.endswith("attn.qkv"):
                if not in_thirds(net.get_submodule(name.removesuffix(".qkv"))):
                    raise ValueError(
                        f"{name} of {context.recipe.model.arch} mixes the rows of q, k and v, and "
                        "LoRA adapts only q and v; choose another architecture or method"
                    )
                places[module] = True
        if not places and self.recipe.variant == "released":
            raise ValueError("LoRA variant=released exists for ViTs only; use variant=original")
        if not places:
            places = {
                m: False
                for m in net.modules()
                if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and m.groups == 1
            }
        if not places:
            raise ValueError(f"{type(net).__name__} has no qkv and no 1x1 convolution for LoRA")
        for module, thirds in places.items():
            factors = self.factors(module.weight, self.recipe.rank, self.recipe.scale, thirds)
            adapt(module, factors)
        self.adapted = [name for name, m in net.named_modules() if m in places]
        if self.recipe.variant == "released":
            for name, parameter in net.named_parameters():
                if name.split(".")[0] in RELEASED_TRAINS:
                    parameter.requires_grad_(True)
        elif self.recipe.train_head:
            models.head(net).requires_grad_(True)

    def export(self) -> Export:
        state = self.net.state_dict()
        for name in self.adapted:
            factors = [key for key in state if key.startswith(f"{name}.low_rank.")]
            for key in (f"{name}.frozen", *factors):
                del state[key]
            layer: Any = self.net.get_submodule(name)
            state[f"{name}.weight"] = layer.weight.detach()
        return Export(state)
