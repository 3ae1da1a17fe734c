"""A model as two functions: embedding and head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Function = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Model:
    """embed: from normalized images, or stored features, to pre-logits [B, D]. head: from these to
    outputs [B, ...]. A shared `embed` runs once per batch."""

    embed: Function
    head: Function

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x))
