"""The interface through which methods get artefacts (docs/extend.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from engine.data.sets import LabelledSet
from engine.run import Run
from engine.store.cells import Average, Cell
from loaders.batch import Batch


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

    def clip(self) -> Any:
        """The open_clip model, on the device, from which the base model's weights and head come.

        Returns a new copy that the method may change. Raises ValueError or RecipeError if
        open_clip or the weights are missing.
        """
        raise NotImplementedError

    def zero_shot_head(self, clip: Any) -> torch.Tensor:
        """The zero-shot head [C, E] (float32, on the CPU): a text tower's class embeddings."""
        raise NotImplementedError

    def holdout_accuracy(self, average: Average) -> float:
        """Top-1 accuracy, in percent, of an average of cells on the downstream held-out split."""
        raise NotImplementedError
