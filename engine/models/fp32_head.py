"""The head of a classifier, in fp32 whatever the precision of the backbone.

A bf16 number has 8 significant bits: close logits would be equal, and the first class would win.
"""

from __future__ import annotations

import torch
from torch import nn


def logits(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Logits [B, C] of pre-logits [B, D] of any dtype, in the dtype of the weight [C, D].

    bias: [C], or None. Autocast does not change the dtype.
    """
    # The type of the tensors' device may be `meta` (a dry run), which has no autocast.
    with torch.autocast("cuda" if features.is_cuda else "cpu", enabled=False):
        return nn.functional.linear(features.to(weight.dtype), weight, bias)


class Fp32Linear(nn.Linear):
    """A linear layer that autocast leaves in the dtype of its weights, which is fp32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return logits(x, self.weight, self.bias)
