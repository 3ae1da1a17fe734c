"""The interface that methods use to get artefacts (docs/extend.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn

from engine.recipe.schema import Recipe
from engine.store.cells import Average, Cell

if TYPE_CHECKING:
    from engine.data.sets import LabelledSet


class Context(Protocol):
    """The argument of `prepare` and `make`. Artefacts are made once and then read."""

    recipe: Recipe
    device: torch.device

    @property
    def autocast(self) -> torch.autocast:
        """bf16 for training, where the recipe or the device asks for it."""
        ...

    @property
    def target(self) -> LabelledSet:
        """The set that is trained on."""
        ...

    @property
    def upstream(self) -> LabelledSet:
        """The set that gave the pre-trained model its head."""
        ...

    @property
    def base(self) -> Cell:
        """The pre-trained model."""
        ...

    def network(self, cell: Cell) -> nn.Module:
        """A cell's model, loaded on the device, in eval mode."""
        ...

    def features(
        self, cell: Cell, labelled: LabelledSet, *, training: bool = False
    ) -> torch.Tensor:
        """Pre-logits [N, D] (float32, on the CPU) of a cell's backbone for a whole set.

        training: in the precision of training, where weights depend on the features.
        """
        ...

    def logits(self, cell: Cell, labelled: LabelledSet) -> Callable[[np.ndarray], torch.Tensor]:
        """A teacher: gives float32 logits [b, C] for the images at `index` (int64 [b]) of a set."""
        ...

    def fisher(self, images: int, labels: str) -> Mapping[str, torch.Tensor]:
        """Diagonal Fisher of the base model on the upstream training split, by parameter name."""
        ...

    def cell(self, method: str, *, seed: int | None = None) -> Cell:
        """The cell of another method in the same column; of the recipe's seed, or of this one."""
        ...

    def clip(self) -> Any:
        """open_clip's model, on the device, whose towers gave the base model weights and head.

        It is the method's to change. ValueError or RecipeError where open_clip or the weights are
        not there.
        """
        ...

    def zero_shot_head(self, clip: Any) -> torch.Tensor:
        """The head [C, E] (float32, on the CPU) that a text tower makes of the class names."""
        ...

    def holdout_accuracy(self, average: Average) -> float:
        """Top-1 in percent of an average of cells on the downstream hold-out."""
        ...
