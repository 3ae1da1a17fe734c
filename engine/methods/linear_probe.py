"""Linear probing: the head alone learns.

`canonical` never touches the backbone, so it trains on features that were computed once.
`paper` follows the released benchmark: patch embedding and blocks are frozen, while class token,
position embedding and final norms train with the head (on a ResNet: the head alone).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from engine import models
from engine.methods.base import Export, FrozenBackbone
from engine.schema import MethodRecipe
from kernels.distill import distill_loss
from loaders.batch import Batch, on_device

if TYPE_CHECKING:
    from engine.context import Context

Recipe = MethodRecipe
PAPER_TRAINS = ("cls_token", "pos_embed", "norm_pre", "norm", "fc_norm")


class Method(FrozenBackbone):
    def prepare(self, net: nn.Module, context: Context) -> None:
        super().prepare(net, context)
        self.head = models.head(net)
        self.head.requires_grad_(True)
        self.features_ND: torch.Tensor | None = None
        if self.recipe.variant == "canonical":
            self.features_ND = context.features(context.base, context.target, training=True)
        else:
            for name, parameter in net.named_parameters():
                if name.split(".")[0] in PAPER_TRAINS:
                    parameter.requires_grad_(True)

    def loss(self, batch: Batch) -> torch.Tensor:
        if self.features_ND is None:
            return super().loss(batch)
        logits = self.grouped(self.head(self.features(batch)))
        return distill_loss(logits, None, self.targets(batch), mask=self.mask_C)

    def features(self, batch: Batch) -> torch.Tensor:
        """Features [b, D] of a batch, on the device."""
        assert self.features_ND is not None
        return on_device(self.features_ND[batch.index], self.head.weight.device)

    def export(self) -> Export:
        return Export(self.net.state_dict(), shares_backbone=self.features_ND is not None)
