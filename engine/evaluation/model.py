"""A model in two parts, the second of which reads what the first gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Function = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Model:
    """embed: normalised images, or stored features, to pre-logits [B, D]. head: these to outputs
    [B, ...]. Several models may share an `embed`, which then runs once a batch."""

    embed: Function
    head: Function

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x))
