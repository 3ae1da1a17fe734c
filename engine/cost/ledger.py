"""What a dry run notes: the work that was asked for, and how much of it each kind takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from engine import models
from engine.cost.flops import flops
from engine.data.sets import LabelledSet
from engine.grid.campaign import Plan
from engine.methods.base import Trained
from engine.recipe.request import Request
from engine.recipe.schema import Recipe
from engine.store.cells import Entry, Export
from loaders.batch import Batch

META = torch.device("meta")


@dataclass(frozen=True)
class Work:
    """Images that pass through a model for one purpose, and the operations that takes.

    job: `prepare`, or the set that heads a column. kind: features | fisher | training | evaluation.
    Training counts an image once an epoch, or once where a head is fitted, evaluation once a model;
    `rows` are predictions kept, of which those from stored features pass no image through a model.
    precision: bf16 | fp32.
    """

    job: str
    kind: str
    label: str
    images: int
    flops: float
    steps: int = 0
    rows: int = 0
    precision: str = "bf16"


@dataclass(frozen=True)
class PlannedCell:
    """A cell that would be there now. `bytes`: of its weights on disk, 0 for a mix."""

    name: str
    entries: Sequence[Entry]
    backbone: str
    bytes: int = 0
    export: Export | None = None
    chosen: bool = False  # its mix depends on results and is like no other, as far as one can tell

    def prompt(self) -> torch.Tensor | None:
        return self.export.prompt if self.export else None

    def state(self) -> dict[str, torch.Tensor]:
        assert self.export is not None, f"{self.name} has no weights of its own"
        return self.export.state


@dataclass
class Ledger:
    """What a plan would do to sets of these labels; whoever asks fills `work` and `cells`."""

    plan: Plan
    labelled: Mapping[str, LabelledSet]
    classes: int
    device: torch.device = META
    work: list[Work] = field(default_factory=list)
    cells: dict[tuple[Any, ...], PlannedCell] = field(default_factory=dict)
    features: dict[tuple[str, ...], int] = field(default_factory=dict)  # -> images
    predicted: set[tuple[Any, ...]] = field(default_factory=set)
    _step_flops: dict[str, float] = field(default_factory=dict)

    @cached_property
    def request(self) -> Request:
        return Request(self.plan.name, self.plan.overrides)

    @cached_property
    def recipe(self) -> Recipe:
        return self.request.recipe(self.plan.methods[0])

    def recipe_of(self, method: str, downstream: str) -> Recipe:
        """A cell's recipe; columns differ in nothing else, and resolving takes its time."""
        return dataclasses.replace(self.request.recipe(method), downstream=downstream)

    @property
    def places(self) -> list[str]:
        return [self.recipe.dataset.upstream, *self.recipe.dataset.sets]

    @cached_property
    def net(self) -> nn.Module:
        """The architecture, without content where the device has none."""
        with self.device:
            return models.create(self.recipe.model, self.classes).eval()

    @cached_property
    def weights(self) -> PlannedCell:
        """The backbone's own weights, seen as a cell."""
        export = Export(self.net.state_dict())
        made = PlannedCell("weights", [Entry({"weights": 1.0})], "weights", size_of(export), export)
        return self.cells.setdefault(("weights", ""), made)

    @cached_property
    def forward_flops(self) -> float:
        """Operations of one image's forward pass; a multiplication and an addition count two."""
        with torch.no_grad():
            return flops(lambda: self.net(self._pixels(1)))

    @cached_property
    def fisher_flops(self) -> float:
        """Of one image's part of a Fisher: a forward and a backward pass (`kernels.fisher`)."""
        return flops(lambda: self.net(self._pixels(1)).sum().backward())

    def step_flops(self, method: Trained, recipe: Recipe) -> float:
        """Of one optimizer step of a prepared method, at the recipe's batch size."""
        name = f"{recipe.method.name} {recipe.train.batch_size}"
        if name not in self._step_flops:
            size = recipe.train.batch_size
            batch = Batch(
                np.zeros(size, np.int64),
                torch.zeros(size, dtype=torch.int64),
                lambda: self._pixels(size, torch.uint8),
            )
            method.train()
            # Labels keep their content: losses check them. All else is without.
            method.targets_N = torch.zeros(1, dtype=torch.int64)
            self._step_flops[name] = flops(lambda: method(batch).sum().backward())
        return self._step_flops[name]

    def _pixels(self, batch: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        size = self.recipe.model.image_size
        return torch.zeros(batch, 3, size, size, dtype=dtype, device=self.device)


def size_of(export: Export) -> int:
    """Bytes of its tensors, on disk as in memory."""
    tensors = [*export.state.values(), *([] if export.prompt is None else [export.prompt])]
    return sum(t.numel() * t.element_size() for t in tensors)
