"""The interface of methods: three hooks of a training run, or a rule that combines finished cells.

The rest of the engine never asks which method it runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from engine import models
from engine.data import grouping
from engine.methods.context import Context
from engine.recipe.schema import MethodRecipe
from engine.store.cells import Entry, Export, Gated
from loaders.batch import Batch


@dataclass(frozen=True)
class Penalty:
    """lam / 2 * sum_i fisher_i (theta_i - anchor_i)^2, by parameter name; fisher None: identity.

    anchor and fisher: shaped like the parameters, on any device; names that belong to no trained
    parameter are ignored.
    """

    lam: float
    anchor: Mapping[str, Tensor]
    fisher: Mapping[str, Tensor] | None = None


class Trained(nn.Module):
    """A method that trains: `prepare`, then `loss` for every batch, then `export`.

    Where `prepare` sets `fits_head`, `fit_head` takes the place of training on batches.
    """

    penalty: Penalty | None = None  # a quadratic pull that the optimizer applies
    rates: Mapping[str, float] = MappingProxyType({})  # shares of the rate, by parameter; 1 if none
    fits_head: bool = False

    def __init__(self, recipe: MethodRecipe) -> None:
        super().__init__()
        self.recipe = recipe

    @property
    def passes(self) -> float:
        """The cost per training image, in forward passes through the model.

        A backward pass counts two. 0: only the head is fitted, from features that are stored.
        """
        return 3.0

    def prepare(self, net: nn.Module, context: Context) -> None:
        """Take the base model: freeze or wrap it, and get what the loss needs."""
        self.net = net
        self.freeze_batchnorm = context.recipe.train.freeze_batchnorm
        self.autocast = context.autocast
        self.normalize = models.Normalize(context.recipe.model, context.device)
        target = context.target
        self.targets_N = target.labels.to(context.device)
        self.mask_C = None if target.mask is None else target.mask.to(context.device)
        self.members_GM = None if target.members is None else target.members.to(context.device)

    def logits(self, batch: Batch) -> torch.Tensor:
        """Logits [b, C] of a batch, as `grouped` gives them."""
        return self.grouped(self.net(self.normalize(batch.images)))

    def grouped(self, logits_BC: torch.Tensor) -> torch.Tensor:
        """A head's outputs as logits of the set's classes; unchanged where each is an output."""
        return grouping.grouped(logits_BC, self.members_GM)

    def targets(self, batch: Batch) -> torch.Tensor:
        """Class numbers [b] in the head's order."""
        return self.targets_N[batch.rows]

    def loss(self, batch: Batch) -> torch.Tensor:
        """Loss of each sample [b]: the cross-entropy over the set's classes."""
        from kernels.distill import distill_loss  # torch.compile's seconds, not for a plan

        return distill_loss(self.logits(batch), None, self.targets(batch), mask=self.mask_C)

    def before_step(self) -> None:
        """Called before each optimizer step; gradients are averaged over ranks, and not clipped."""

    def after_step(self) -> None:
        """Called after each optimizer step. It may change weights, on every rank alike."""

    def fit_head(self, label: str) -> dict[str, float]:
        """Make the head, the same on every rank; returns the history's entry.

        label: names the cell in warnings and errors.
        """
        raise NotImplementedError

    def forward(self, batch: Batch) -> torch.Tensor:
        """`loss` [b] under autocast; ValueError where it is not a number a sample."""
        with self.autocast:  # inside: DeepSpeed switches off an autocast around its engine
            losses_B = self.loss(batch)
        if losses_B.shape != (len(batch),):
            raise ValueError(
                f"method {self.recipe.name}: loss(batch) has the shape {list(losses_B.shape)}, not "
                f"[{len(batch)}], a loss a sample: return it without .mean() or .sum()"
            )
        return losses_B

    def train(self, mode: bool = True) -> Trained:
        super().train(mode)
        if mode and self.freeze_batchnorm:
            for module in self.net.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def export(self) -> Export:
        """The trained model as a plain state dict of its architecture.

        It is called during training too, where snapshots are taken, and leaves the method as it is.
        """
        return Export(self.net.state_dict())


class FrozenBackbone(Trained):
    """A trained method whose backbone stays in eval mode and takes no gradient."""

    @property
    def passes(self) -> float:
        return 2.0  # the backward pass computes no gradient of the backbone's weights

    def prepare(self, net: nn.Module, context: Context) -> None:
        super().prepare(net, context)
        self.net.requires_grad_(False)

    def train(self, mode: bool = True) -> FrozenBackbone:
        super().train(mode)
        self.net.eval()
        return self


class Derived:
    """A method that trains nothing: it makes models of finished cells."""

    def __init__(self, recipe: MethodRecipe) -> None:
        self.recipe = recipe

    @property
    def models(self) -> int:
        """How many models an evaluation runs for it, in addition to its members; 0 if
        their outputs are averaged."""
        return 1

    def make(self, context: Context) -> Export | Gated | Sequence[Entry]:
        """A model as a plain state dict of its architecture, or averages of the cells' weights or
        outputs.

        Averages are taken where they are evaluated; exactly one of them is the headline.
        """
        raise NotImplementedError
