"""A dry run of a campaign: everything is asked for in the order of the grid, nothing is computed.

The methods themselves say what they need: their own `prepare`, `loss`, `export` and `entries` run
on tensors without content, whose operations are counted. So a user's own method is counted too, and
an estimate cannot drift from what will run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from engine import models, outcome
from engine.campaign import Plan
from engine.context import Request
from engine.data.sets import LabelledSet
from engine.methods.base import Entry, Export, Trained
from engine.planning.flops import flops
from engine.planning.planned import PlannedCell, PlannedContext, Work, size_of
from engine.schema import Recipe
from loaders.batch import Batch

META = torch.device("meta")
PREPARE = "prepare"


@dataclass
class DryRun:
    """What a plan would do to sets of these labels; `run` fills `work` and `cells`."""

    plan: Plan
    labelled: Mapping[str, LabelledSet]
    classes: int
    device: torch.device = META
    work: list[Work] = field(default_factory=list)
    cells: dict[tuple[Any, ...], PlannedCell] = field(default_factory=dict)
    features: dict[tuple[str, ...], int] = field(default_factory=dict)  # -> images
    predicted: set[tuple[Any, ...]] = field(default_factory=set)
    _step_flops: dict[str, float] = field(default_factory=dict)

    def run(self) -> None:
        """The jobs of `engine.grid`, one after the other."""
        planned = self.context(PREPARE, self.recipe)
        for name in self.places:
            planned.features(planned.base, self.labelled[name])
            for split in (outcome.split_of(planned.context, name), "holdout"):
                planned.evaluate([(planned.base, {planned.base.name: 1.0})], name, split)
        drawn = self._drawn(planned)
        for downstream in self.plan.sets:
            first = self.recipe_of(self.plan.methods[0], downstream)
            seeds = [dataclasses.replace(first, seed=first.seed + k) for k in range(first.seeds)]
            made = [
                self.context(downstream, one).cell(method)
                for one in seeds
                for method in self.plan.methods
            ]
            mixes = [(cell, entry.mix) for cell in made for entry in cell.entries]
            planned = self.context(downstream, first)
            for name in self.places:
                split = outcome.split_of(planned.context, name)
                planned.evaluate(mixes, name, split, drawn.get(name))

    def _drawn(self, planned: PlannedContext) -> dict[str, int]:
        """Images of each set that a budget leaves: equally many, or all of a small one.

        Their total over the downstream sets is what `budget` will draw; how it spreads is
        known only when the pre-trained model has seen the sets.
        """
        share = self.recipe.evaluate.budget
        if share == 1:
            return {}
        split = {name: outcome.split_of(planned.context, name) for name in self.places}
        sizes = {name: len(self.labelled[name].split(split[name])) for name in self.places}
        upstream = sizes.pop(self.recipe.dataset.upstream)
        left = math.ceil(share * sum(sizes.values()) - 1e-9)
        drawn: dict[str, int] = {}
        for name in sorted(sizes, key=lambda name: sizes[name]):
            drawn[name] = min(sizes[name], left // (len(sizes) - len(drawn)))
            left -= drawn[name]
        return drawn | {self.recipe.dataset.upstream: min(upstream, max(drawn.values()))}

    def context(self, job: str, recipe: Recipe) -> PlannedContext:
        return PlannedContext(self, job, recipe)

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

    def step_flops(self, method: Trained, planned: PlannedContext) -> float:
        """Of one optimizer step of a prepared method, at the recipe's batch size."""
        name = f"{planned.recipe.method.name} {planned.recipe.train.batch_size}"
        if name not in self._step_flops:
            size = planned.recipe.train.batch_size
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
