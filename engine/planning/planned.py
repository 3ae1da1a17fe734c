"""The place of a `Context` in a dry run: notes what methods ask for and gives empty tensors."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from engine import methods, models
from engine.cells import SELF
from engine.context import Context
from engine.data.sets import LabelledSet
from engine.machine import precision
from engine.merge import Mix, essential
from engine.methods.base import Entry, Export, Mixed, Trained
from engine.schema import OptimizerRecipe, Recipe, TrainRecipe

if TYPE_CHECKING:
    from engine.planning.dry_run import DryRun


@dataclass(frozen=True)
class Work:
    """Images that pass through a model for one purpose, and the operations that takes.

    job: `prepare`, or the set that heads a column. kind: features | fisher | training | evaluation.
    Training counts an image once an epoch, evaluation once a model; `rows` are predictions kept,
    of which those from stored features pass no image through a model.
    """

    job: str
    kind: str
    label: str
    images: int
    flops: float
    steps: int = 0
    rows: int = 0


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


class PlannedContext:
    """Stands where methods expect an `engine.context.Context`, and notes what they ask it for."""

    def __init__(self, dry_run: DryRun, job: str, recipe: Recipe) -> None:
        self.dry_run = dry_run
        self.device = dry_run.device
        self.job = job
        self.recipe = recipe
        self.asked_for_accuracy = False

    @property
    def context(self) -> Context:
        """Itself, as methods know it: they ask for nothing that it does not have."""
        return cast(Context, self)

    @property
    def target(self) -> LabelledSet:
        return _maskless(self.dry_run.labelled[self.recipe.downstream])

    @property
    def upstream(self) -> LabelledSet:
        return _maskless(self.dry_run.labelled[self.recipe.dataset.upstream])

    @property
    def base(self) -> PlannedCell:
        head, upstream = self.recipe.model.head, self.recipe.dataset.upstream
        weights = self.dry_run.weights
        if not head.fit or self.recipe.downstream == upstream:
            return weights
        if found := self.dry_run.cells.get(("linear_probe", upstream, 0)):
            return found
        probe = self.dry_run.recipe_of("linear_probe", upstream)
        return self.build(
            dataclasses.replace(
                probe,
                method=dataclasses.replace(probe.method, variant="canonical"),
                optimizer=OptimizerRecipe(),
                train=TrainRecipe(epochs=head.epochs, batch_size=head.batch_size),
                seed=0,
            )
        )

    def sibling(self, method: str) -> Recipe:
        found = self.dry_run.recipe_of(method, self.recipe.downstream)
        return dataclasses.replace(found, seed=self.recipe.seed)

    def cell(self, method: str) -> PlannedCell:
        return self.build(self.sibling(method))

    def build(self, recipe: Recipe) -> PlannedCell:
        """The cell of a recipe, its work noted when it is asked for first."""
        key = recipe.method.name, recipe.downstream, recipe.seed
        if key not in self.dry_run.cells:
            planned = self.dry_run.context(self.job, recipe)
            method = methods.find(recipe.method.module).Method(recipe.method)
            mixed = isinstance(method, Mixed)
            self.dry_run.cells[key] = planned.mix(method) if mixed else planned.train(method)
        return self.dry_run.cells[key]

    def mix(self, method: Mixed) -> PlannedCell:
        entries = method.entries(self.context)
        return PlannedCell(self.name, entries, self.name, chosen=self.asked_for_accuracy)

    def train(self, method: Trained) -> PlannedCell:
        method.prepare(self.network(self.base), self.context)
        method.to(self.device)
        train = self.recipe.train
        images = len(self.target.split("train")) * train.epochs
        steps = -(-len(self.target.split("train")) // train.batch_size) * train.epochs
        each = self.dry_run.step_flops(method, self) / train.batch_size
        self.note("training", self.recipe.method.title, images, images * each, steps=steps)
        export = method.export()
        backbone = self.base.backbone if export.shares_backbone else self.name
        return PlannedCell(self.name, [Entry({self.name: 1.0})], backbone, size_of(export), export)

    @property
    def name(self) -> str:
        return f"{self.recipe.method.name}-{self.recipe.downstream}-{self.recipe.seed}"

    def network(self, cell: PlannedCell) -> nn.Module:
        return copy.deepcopy(self.dry_run.net)

    def features(
        self, cell: PlannedCell, labelled: LabelledSet, *, training: bool = False
    ) -> torch.Tensor:
        section = self.recipe.train if training else self.recipe.evaluate
        device = torch.device("cpu" if self.recipe.device == "cpu" else "cuda")
        kind = precision.resolve(section.precision, device)
        size = str(self.recipe.evaluate.batch_size)
        key = cell.backbone, labelled.name, kind, size
        images = len(labelled.labels)
        if key not in self.dry_run.features:
            self.dry_run.features[key] = images
            work = images * self.dry_run.forward_flops
            self.note("features", f"features of {labelled.name}", images, work)
        return torch.zeros(images, models.head(self.dry_run.net).in_features, device=self.device)

    def logits(self, cell: PlannedCell, labelled: LabelledSet) -> torch.Tensor:
        self.features(cell, labelled, training=True)
        return torch.zeros(len(labelled.labels), self.dry_run.classes, device=self.device)

    def fisher(self, images: int, labels: str) -> Mapping[str, torch.Tensor]:
        images = images or len(self.upstream.split("train"))
        key = "fisher", f"{images} {labels}"
        if key not in self.dry_run.cells:
            parameters = list(self.dry_run.net.parameters())
            size = sum(p.numel() * p.element_size() for p in parameters)
            self.dry_run.cells[key] = PlannedCell("fisher", [], "", size)
            self.note("fisher", "Fisher", images, images * self.dry_run.fisher_flops)
        return {name: torch.ones(()) for name, _ in self.dry_run.net.named_parameters()}

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
        labelled = self.dry_run.labelled[name]
        split = split if len(labelled.holdout) else "all"
        images = len(labelled.split(split)) if drawn is None else drawn
        models_run = rows = 0
        for made, mix in mixes:
            one = essential({made.name if n == SELF else n: w for n, w in mix.items()})
            key = (*sorted(one.items()), made.name if made.chosen else "", name, split)
            if key in self.dry_run.predicted:
                continue
            self.dry_run.predicted.add(key)
            rows += images
            if len(one) == 1 and self._backbone(next(iter(one))) == self.base.backbone:
                self.features(self.base, labelled)
            else:
                models_run += 1
        if rows:
            seen = images * models_run
            work = seen * self.dry_run.forward_flops
            self.note("evaluation", f"evaluation on {name}", seen, work, rows=rows)

    def note(
        self, kind: str, label: str, images: int, work: float, *, steps: int = 0, rows: int = 0
    ) -> None:
        self.dry_run.work.append(Work(self.job, kind, label, images, work, steps, rows))

    def _backbone(self, name: str) -> str:
        return next(made.backbone for made in self.dry_run.cells.values() if made.name == name)


def _maskless(labelled: LabelledSet) -> LabelledSet:
    """Masks cost nothing, and losses look into them."""
    return dataclasses.replace(labelled, mask=None, members=None)


def size_of(export: Export) -> int:
    """Bytes of its tensors, on disk as in memory."""
    tensors = [*export.state.values(), *([] if export.prompt is None else [export.prompt])]
    return sum(t.numel() * t.element_size() for t in tensors)
