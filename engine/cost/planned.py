"""A dry run's `Context`: nothing that a method asks for is computed, all of it is noted."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from engine import models
from engine.cost.ledger import Ledger, PlannedCell, Work, size_of
from engine.data.sets import LabelledSet
from engine.machine import precision
from engine.methods import linear_probe
from engine.methods.base import Mixed, Trained
from engine.methods.context import Context
from engine.models.form import Form
from engine.recipe import modules
from engine.recipe.schema import Recipe
from engine.store.cells import SELF, Entry, Mix, essential
from engine.training import fisher, heads


class PlannedContext(Context[PlannedCell]):
    """Notes what methods ask for, and gives tensors without content."""

    def __init__(self, ledger: Ledger, job: str, recipe: Recipe) -> None:
        self.ledger = ledger
        self.device = ledger.device
        self.job = job
        self.recipe = recipe
        self.asked_for_accuracy = False

    @property
    def autocast(self) -> torch.autocast:
        """Off: operations are counted here, whatever their precision."""
        return torch.autocast("cpu", enabled=False)

    @property
    def target(self) -> LabelledSet:
        return _maskless(self.ledger.labelled[self.recipe.downstream])

    @property
    def upstream(self) -> LabelledSet:
        return _maskless(self.ledger.labelled[self.recipe.dataset.upstream])

    @property
    def base(self) -> PlannedCell:
        head, upstream = self.recipe.model.head, self.recipe.dataset.upstream
        weights = self.ledger.weights
        if not head.fit or self.recipe.downstream == upstream:
            return weights
        if fitted := self.ledger.cells.get(("linear_probe", upstream, 0)):
            return fitted
        probe = self.ledger.recipe_of("linear_probe", upstream)
        return self.build(linear_probe.first_head(probe))

    def sibling(self, method: str) -> Recipe:
        found = self.ledger.recipe_of(method, self.recipe.downstream)
        return dataclasses.replace(found, seed=self.recipe.seed)

    def cell(self, method: str) -> PlannedCell:
        return self.build(self.sibling(method))

    def build(self, recipe: Recipe) -> PlannedCell:
        """The cell of a recipe, its work noted when it is asked for first."""
        key = recipe.method.name, recipe.downstream, recipe.seed
        if key not in self.ledger.cells:
            planned = PlannedContext(self.ledger, self.job, recipe)
            method = modules.find(recipe.method.module).Method(recipe.method)
            mixed = isinstance(method, Mixed)
            self.ledger.cells[key] = planned.mix(method) if mixed else planned.train(method)
        return self.ledger.cells[key]

    def mix(self, method: Mixed) -> PlannedCell:
        entries = method.entries(self)
        return PlannedCell(self.name, entries, self.name, chosen=self.asked_for_accuracy)

    def train(self, method: Trained) -> PlannedCell:
        method.prepare(self.network(self.base), self)
        method.to(self.device)
        title, train = self.recipe.method.title, self.recipe.train
        images = len(self.target.split("train"))
        if method.problem is not None:
            work = heads.EVALUATIONS * method.problem.flops(self.ledger.classes)
            # In fp64, whose peak on an A100's tensor cores is that of fp32.
            self.note("training", title, images, work, precision="fp32")
        else:
            each = self.ledger.step_flops(method, self.recipe) / train.batch_size
            self.note(
                *("training", title, images * train.epochs, images * train.epochs * each),
                steps=-(-images // train.batch_size) * train.epochs,
                precision=self._precision(training=True),
            )
        export = method.export()
        backbone = self.base.backbone if export.shares_backbone else self.name
        return PlannedCell(self.name, [Entry({self.name: 1.0})], backbone, size_of(export), export)

    @property
    def name(self) -> str:
        return f"{self.recipe.method.name}-{self.recipe.downstream}-{self.recipe.seed}"

    def network(self, cell: PlannedCell) -> nn.Module:
        return copy.deepcopy(self.ledger.net)

    def features(
        self, cell: PlannedCell, labelled: LabelledSet, *, training: bool = False
    ) -> torch.Tensor:
        of = Form.of_training if training else Form.of_evaluation
        form = of(self.recipe, self._device)
        key = cell.backbone, labelled.name, str(form), str(self.recipe.evaluate.batch_size)
        images = len(labelled.labels)
        if key not in self.ledger.features:
            self.ledger.features[key] = images
            work = images * self.ledger.forward_flops
            label = f"features of {labelled.name}"
            self.note("features", label, images, work, precision=form.precision)
        return torch.zeros(images, models.head(self.ledger.net).in_features, device=self.device)

    def logits(
        self, cell: PlannedCell, labelled: LabelledSet
    ) -> Callable[[np.ndarray], torch.Tensor]:
        self.features(cell, labelled, training=True)
        return lambda index: torch.zeros(len(index), self.ledger.classes, device=self.device)

    def fisher(self, images: int, labels: str) -> Mapping[str, torch.Tensor]:
        images = len(fisher.drawn(self.upstream, images))
        key = "fisher", f"{images} {labels}"
        if key not in self.ledger.cells:
            parameters = list(self.ledger.net.parameters())
            size = sum(p.numel() * p.element_size() for p in parameters)
            self.ledger.cells[key] = PlannedCell("fisher", [], "", size)
            work = images * self.ledger.fisher_flops
            self.note("fisher", "Fisher", images, work, precision="fp32")  # squares of gradients
        return {name: torch.ones(()) for name, _ in self.ledger.net.named_parameters()}

    def holdout_accuracy(self, mix: Mix) -> float:
        """0 for every mix: all candidates of a greedy choice are then tried."""
        self.asked_for_accuracy = True
        made = PlannedCell("candidate", [], "")
        self.evaluate([(made, mix)], self.recipe.downstream, "holdout")
        return 0.0

    def evaluate(
        self,
        mixes: Sequence[tuple[PlannedCell, Mix]],
        name: str,
        split: str,
        drawn: int | None = None,
    ) -> None:
        """Note the models among these mixes that have not seen this split, or `drawn` of it."""
        labelled = self.ledger.labelled[name]
        split = split if len(labelled.holdout) else "all"
        images = len(labelled.split(split)) if drawn is None else drawn
        models_run = rows = 0
        for made, mix in mixes:
            one = essential({made.name if n == SELF else n: w for n, w in mix.items()})
            key = (*sorted(one.items()), made.name if made.chosen else "", name, split)
            if key in self.ledger.predicted:
                continue
            self.ledger.predicted.add(key)
            rows += images
            if len(one) == 1 and self._backbone(next(iter(one))) == self.base.backbone:
                self.features(self.base, labelled)
            else:
                models_run += 1
        if rows:
            seen = images * models_run
            work = seen * self.ledger.forward_flops
            self.note(
                *("evaluation", f"evaluation on {name}", seen, work),
                rows=rows,
                precision=self._precision(training=False),
            )

    def note(
        self,
        kind: str,
        label: str,
        images: int,
        work: float,
        *,
        steps: int = 0,
        rows: int = 0,
        precision: str,
    ) -> None:
        self.ledger.work.append(Work(self.job, kind, label, images, work, steps, rows, precision))

    def _precision(self, *, training: bool) -> str:
        section = self.recipe.train if training else self.recipe.evaluate
        return precision.resolve(section.precision, self._device)

    @property
    def _device(self) -> torch.device:
        """That of the campaign; operations are counted without one."""
        return torch.device("cpu" if self.recipe.device == "cpu" else "cuda")

    def _backbone(self, name: str) -> str:
        return next(made.backbone for made in self.ledger.cells.values() if made.name == name)


def _maskless(labelled: LabelledSet) -> LabelledSet:
    """Masks cost nothing, and losses look into them."""
    return dataclasses.replace(labelled, mask=None, members=None)
