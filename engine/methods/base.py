"""The interface of methods: hooks of a training run (`Trained`), or a merge of cells (`Derived`).

The rest of the engine never depends on which method it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from engine import models
from engine.data import masks
from engine.data.sets import LabelledSet
from engine.machine.compat import BatchNorm
from engine.recipe.schema import MethodRecipe
from engine.run import Run
from engine.store.cells import Average, Cell, Entry, Export, Gated
from loaders.batches import Batch


@dataclass(frozen=True)
class Penalty:
    """The penalty lam / 2 * sum_i fisher_i (theta_i - anchor_i)^2.

    anchor and fisher map parameter names to tensors shaped like the parameters, on any device.
    Names that match no trained parameter are ignored. If fisher is None, fisher_i is 1.
    """

    lam: float
    anchor: Mapping[str, Tensor]
    fisher: Mapping[str, Tensor] | None = None


class Trained(nn.Module):
    """A method that trains: `prepare`, then `loss` for every batch, then `export`.

    If `prepare` sets `fits_head`, `fit_head` replaces training on batches.
    """

    penalty: Penalty | None = None  # applied by the optimizer
    rates: Mapping[str, float] = MappingProxyType({})  # learning-rate factor by parameter, or 1
    fits_head: bool = False

    def __init__(self, recipe: MethodRecipe) -> None:
        super().__init__()
        self.recipe = recipe

    def prepare(self, net: nn.Module, context: Context) -> None:
        """Set up training of the base model `net`: freeze or wrap it, and load the loss's inputs.

        Called once, before the first batch.
        """
        self.net = net
        self.freeze_batchnorm = context.recipe.train.freeze_batchnorm
        self.autocast = context.autocast
        self.normalize = models.Normalize(context.recipe.model, context.device)
        target = context.target
        self.targets_N = target.labels.to(context.device)
        self.mask_C = None if target.mask is None else target.mask.to(context.device)
        self.members_GM = None if target.members is None else target.members.to(context.device)
        self.class_reduction = target.class_reduction

    def logits(self, batch: Batch) -> torch.Tensor:
        """Logits [b, C] of a batch, grouped by class."""
        return self.grouped(self.net(self.normalize(batch.images)))

    def grouped(self, logits_BC: torch.Tensor) -> torch.Tensor:
        """The head's outputs [b, C] with each class's outputs merged into one logit.

        Unchanged if every class of the dataset is a single output of the head.
        """
        return masks.grouped(logits_BC, self.members_GM, self.class_reduction)

    def targets(self, batch: Batch) -> torch.Tensor:
        """Class indices [b] (int64) in the head's order."""
        return self.targets_N[batch.rows]

    def loss(self, batch: Batch) -> torch.Tensor:
        """Per-sample losses [b]: by default, the cross-entropy over the dataset's classes."""
        return self._losses(self.logits(batch), self.targets(batch))

    def _losses(
        self,
        logits_BC: torch.Tensor,
        targets_B: torch.Tensor,
        teacher_BC: torch.Tensor | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """Cross-entropy [b] of grouped logits over the dataset's classes, plus the divergence from
        a teacher's. options: of `kernels.distill.distill_loss`."""
        from kernels.distill import distill_loss  # late: importing it takes seconds; plans skip it

        return distill_loss(logits_BC, teacher_BC, targets_B, mask=self.mask_C, **options)

    def before_step(self) -> None:
        """Called before each optimizer step. Gradients are averaged over ranks, not yet clipped."""

    def after_step(self) -> None:
        """Called after each optimizer step. It may change weights, identically on every rank."""

    def fit_head(self, label: str) -> dict[str, float]:
        """Fit the head, identically on every rank. Returns the entry for the history.

        label: name of the cell, for warnings and errors.
        """
        raise NotImplementedError

    def forward(self, batch: Batch) -> torch.Tensor:
        """Compute `loss` [b] under autocast. Raises ValueError if it is not of shape [b] or has no
        gradient."""
        with self.autocast:  # here, since DeepSpeed disables an autocast around its engine
            losses_B = self.loss(batch)
        if not isinstance(losses_B, Tensor):
            raise ValueError(
                f"{self.recipe.module}: loss(batch) returned {type(losses_B).__name__}, not a "
                "tensor: return a loss a sample"
            )
        if losses_B.shape != (len(batch),):
            raise ValueError(
                f"method {self.recipe.name}: loss(batch) has the shape {list(losses_B.shape)}, not "
                f"[{len(batch)}], a loss a sample: return it without .mean() or .sum()"
            )
        if torch.is_grad_enabled() and not losses_B.requires_grad:
            raise ValueError(
                f"method {self.recipe.name}: loss(batch) has no gradient: compute it from the "
                "model's outputs, without .detach(), .item() or torch.no_grad()"
            )
        return losses_B

    def train(self, mode: bool = True) -> Trained:
        super().train(mode)
        if mode and self.freeze_batchnorm:
            for module in self.net.modules():
                if isinstance(module, BatchNorm):
                    module.eval()
        return self

    def export(self) -> Export:
        """Return the trained model as a plain state dict of its architecture.

        Snapshots call it during training too, so it must not change the method.
        """
        return Export(self.net.state_dict())


class FrozenBackbone(Trained):
    """A trained method whose backbone is frozen and stays in eval mode."""

    def prepare(self, net: nn.Module, context: Context) -> None:
        super().prepare(net, context)
        self.net.requires_grad_(False)

    def train(self, mode: bool = True) -> FrozenBackbone:
        super().train(mode)
        self.net.eval()
        return self


class Derived:
    """A method without training: it merges finished cells into models."""

    def __init__(self, recipe: MethodRecipe) -> None:
        self.recipe = recipe

    def make(self, context: Context) -> Export | Gated | Sequence[Entry]:
        """Return a model as a plain state dict, or averages of the cells' weights or outputs.

        Averages are computed at evaluation. Exactly one of them is the headline.
        """
        raise NotImplementedError


class Context(Run):
    """The argument of `prepare` and `make`: the cell's run, and artefacts, which are computed once,
    then read from disk."""

    def features(
        self, cell: Cell, labelled: LabelledSet, *, training: bool = False
    ) -> torch.Tensor:
        """Pre-logits [N, D] (float32, on the CPU) of a cell's backbone for a whole dataset.

        training: use the precision of training. Set it if weights depend on the features.
        """
        raise NotImplementedError

    def embedder(self, cell: Cell, labelled: LabelledSet) -> Callable[[Batch], torch.Tensor]:
        """A function from a training batch to pre-logits [b, D] (float32) of a cell's backbone."""
        raise NotImplementedError

    def logits(self, cell: Cell, labelled: LabelledSet) -> Callable[[Batch], torch.Tensor]:
        """A teacher: a function from a training batch to logits [b, C] (float32)."""
        raise NotImplementedError

    def fisher(self, images: int, labels: str) -> Mapping[str, torch.Tensor]:
        """Diagonal Fisher of the base model on the upstream training split, by parameter name.

        images, labels: EWC's options `fisher_images` and `fisher_labels`.
        """
        raise NotImplementedError

    def cell(self, method: str, *, seed: int | None = None) -> Cell:
        """The cell of another method in the same column, with the recipe's seed or `seed`."""
        raise NotImplementedError

    def holdout_accuracy(self, average: Average) -> float:
        """Top-1 accuracy, in percent, of an average of cells on the downstream held-out split."""
        raise NotImplementedError
