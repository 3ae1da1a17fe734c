"""A dry run of a campaign: its jobs in their order, on tensors without content.

The methods themselves say what they need: their `prepare`, `loss`, `export` and `entries` run on
the meta device, where operations are counted and nothing is computed. So a user's own method is
counted too, and an estimate cannot drift from what will run.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn

from engine import models
from engine.cost.flops import flops
from engine.data.sets import LabelledSet
from engine.evaluation import sample
from engine.grid.campaign import Plan
from engine.methods import linear_probe
from engine.methods.base import Mixed, Trained
from engine.methods.context import Context
from engine.models.form import Form
from engine.recipe import modules
from engine.recipe.request import Request
from engine.recipe.schema import Recipe
from engine.store.cells import Entry, Export, Mix, essential
from engine.training import fisher, heads
from loaders.batch import Batch

PREPARE = "prepare"
META = torch.device("meta")


@dataclass(frozen=True)
class Work:
    """Images that pass through a model for one purpose, and the operations (`flops`) that takes.

    job: `prepare`, or the downstream set of a column. kind: features | fisher | training |
    evaluation. precision: bf16 | fp32. images: training counts an image once an epoch (once where a
    head is fitted), evaluation once a model. rows: predictions that are stored; those made from
    stored features pass no image through a model. method: the title of the method that trains.
    """

    job: str
    kind: str
    images: int
    flops: float
    precision: str = "bf16"
    steps: int = 0
    rows: int = 0
    method: str = ""


@dataclass(frozen=True)
class PlannedCell:
    """A cell that a campaign will make.

    bytes: of its weights on disk, 0 for a mix. chosen: its mix depends on results, so it is counted
    as unlike any other mix.
    """

    name: str
    entries: Sequence[Entry]
    backbone: str
    bytes: int = 0
    export: Export | None = None
    chosen: bool = False

    def prompt(self) -> torch.Tensor | None:
        return self.export.prompt if self.export else None

    def state(self) -> dict[str, torch.Tensor]:
        assert self.export is not None, f"{self.name} has no weights of its own"
        return self.export.state


class DryRun:
    """What a plan would do to sets of these labels, and how much each part of it takes.

    `run` fills `work`, `cells` (by name) and `features` (images, by what determines features).
    """

    def __init__(
        self,
        plan: Plan,
        labelled: Mapping[str, LabelledSet],
        classes: int,
        device: torch.device = META,
    ) -> None:
        self.plan, self.labelled, self.classes, self.device = plan, labelled, classes, device
        self.request = Request(plan.name, plan.overrides)
        self.recipe = self.request.recipe(plan.methods[0])
        with device:
            self.net = models.create(self.recipe.model, classes).eval()
        export = Export(self.net.state_dict())
        self.weights = _trained("weights", "weights", export)
        self.cells = {self.weights.name: self.weights}
        self.work: list[Work] = []
        self.features: dict[tuple[str, ...], int] = {}
        self.predicted: set[tuple[object, ...]] = set()
        self._step_flops: dict[tuple[str, int], float] = {}

    def run(self) -> None:
        """The jobs of `engine.grid.jobs`, one after the other."""
        places = {name: sample.split_of(self.recipe, name) for name in self.recipe.dataset.places}
        prepare = self.context(PREPARE, self.recipe)
        for name, split in places.items():
            prepare.features(prepare.base, self.labelled[name])
            for part in (split, "holdout"):
                prepare.evaluate([(prepare.base, {prepare.base.name: 1.0})], name, part)
        drawn = self._drawn({n: len(self.labelled[n].split(split)) for n, split in places.items()})
        for downstream in self.plan.sets:
            first = self.recipe_of(self.plan.methods[0], downstream)
            cells = [
                self.context(downstream, dataclasses.replace(first, seed=seed)).cell(method)
                for seed in range(first.seed, first.seed + first.seeds)
                for method in self.plan.methods
            ]
            mixes = [(cell, entry.mix) for cell in cells for entry in cell.entries]
            column = self.context(downstream, first)
            for name in places:
                column.evaluate(mixes, name, sample.split_of(first, name), drawn.get(name))

    def context(self, job: str, recipe: Recipe) -> PlannedContext:
        return PlannedContext(self, job, recipe)

    def recipe_of(self, method: str, downstream: str) -> Recipe:
        """A cell's recipe. Columns differ in nothing else, and resolving takes time."""
        return dataclasses.replace(self.request.recipe(method), downstream=downstream)

    @cached_property
    def forward_flops(self) -> float:
        """Operations of one image's forward pass; a multiplication and an addition count two."""
        with torch.no_grad():
            return flops(lambda: self.net(self._pixels(1)))

    @cached_property
    def fisher_flops(self) -> float:
        """Operations of one image's part of a Fisher: a forward and a backward pass."""
        return flops(lambda: self.net(self._pixels(1)).sum().backward())

    def step_flops(self, method: Trained, recipe: Recipe) -> float:
        """Operations of one optimizer step of a prepared method, at the recipe's batch size."""
        size = recipe.train.batch_size
        key = recipe.method.name, size
        if key not in self._step_flops:
            numbers = np.zeros(size, np.int64)
            images = torch.zeros(size, dtype=torch.int64)
            batch = Batch(numbers, images, lambda: self._pixels(size, torch.uint8))
            method.train()
            # Labels keep their content, because losses check them.
            method.targets_N = torch.zeros(1, dtype=torch.int64)
            self._step_flops[key] = flops(lambda: method(batch).sum().backward())
        return self._step_flops[key]

    def _drawn(self, sizes: dict[str, int]) -> dict[str, int]:
        """Images that a budget leaves of each set: equally many, or all of a small one.

        Their total over the downstream sets is what `budget` will draw. How it spreads is known
        only when the pre-trained model has seen the sets.
        """
        share = self.recipe.evaluate.budget
        if share == 1:
            return {}
        upstream = sizes.pop(self.recipe.dataset.upstream)
        left = math.ceil(share * sum(sizes.values()) - 1e-9)
        drawn: dict[str, int] = {}
        for name in sorted(sizes, key=lambda name: sizes[name]):
            drawn[name] = min(sizes[name], left // (len(sizes) - len(drawn)))
            left -= drawn[name]
        return drawn | {self.recipe.dataset.upstream: min(upstream, max(drawn.values()))}

    def _pixels(self, batch: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        size = self.recipe.model.image_size
        return torch.zeros(batch, 3, size, size, dtype=dtype, device=self.device)


class PlannedContext(Context[PlannedCell]):
    """Notes the work that a method asks for, and gives it tensors without content."""

    def __init__(self, dry_run: DryRun, job: str, recipe: Recipe) -> None:
        self.dry_run, self.job, self.recipe = dry_run, job, recipe
        self.device = dry_run.device
        self.compared = False  # whether hold-out accuracies were read, on which a mix then depends

    @property
    def autocast(self) -> torch.autocast:
        """Off, because operations are counted whatever their precision."""
        return torch.autocast("cpu", enabled=False)

    @property
    def target(self) -> LabelledSet:
        return self.dry_run.labelled[self.recipe.downstream]

    @property
    def upstream(self) -> LabelledSet:
        return self.dry_run.labelled[self.recipe.dataset.upstream]

    @property
    def base(self) -> PlannedCell:
        upstream = self.recipe.dataset.upstream
        if not self.recipe.model.head.fit or self.recipe.downstream == upstream:
            return self.dry_run.weights
        probe = self.dry_run.recipe_of("linear_probe", upstream)
        return self.build(linear_probe.first_head(probe))

    @property
    def name(self) -> str:
        """The name of the recipe's cell."""
        return f"{self.recipe.method.name}-{self.recipe.downstream}-{self.recipe.seed}"

    def sibling(self, method: str) -> Recipe:
        recipe = self.dry_run.recipe_of(method, self.recipe.downstream)
        return dataclasses.replace(recipe, seed=self.recipe.seed)

    def cell(self, method: str) -> PlannedCell:
        return self.build(self.sibling(method))

    def build(self, recipe: Recipe) -> PlannedCell:
        """The cell of a recipe. Its work is noted the first time."""
        context = self.dry_run.context(self.job, recipe)
        cells, name = self.dry_run.cells, context.name
        if name not in cells:
            method = modules.method_of(recipe)
            if isinstance(method, Mixed):
                entries = method.entries(context)
                cells[name] = PlannedCell(name, entries, name, chosen=context.compared)
            else:
                cells[name] = context._train(method)
        return cells[name]

    def network(self, cell: PlannedCell) -> nn.Module:
        return copy.deepcopy(self.dry_run.net)

    def features(
        self, cell: PlannedCell, labelled: LabelledSet, *, training: bool = False
    ) -> torch.Tensor:
        form = self._form(training=training)
        images = len(labelled.labels)
        key = cell.backbone, labelled.name, str(form), str(self.recipe.evaluate.batch_size)
        if key not in self.dry_run.features:
            self.dry_run.features[key] = images
            work = images * self.dry_run.forward_flops
            self.dry_run.work.append(Work(self.job, "features", images, work, form.precision))
        return torch.zeros(images, models.head(self.dry_run.net).in_features, device=self.device)

    def logits(
        self, cell: PlannedCell, labelled: LabelledSet
    ) -> Callable[[np.ndarray], torch.Tensor]:
        self.features(cell, labelled, training=True)
        return lambda index: torch.zeros(len(index), self.dry_run.classes, device=self.device)

    def fisher(self, images: int, labels: str) -> Mapping[str, torch.Tensor]:
        images = len(fisher.drawn(self.upstream, images))
        name = f"fisher-{images}-{labels}"
        parameters = dict(self.dry_run.net.named_parameters())
        if name not in self.dry_run.cells:
            self.dry_run.cells[name] = PlannedCell(name, [], "", _bytes(parameters.values()))
            work = images * self.dry_run.fisher_flops
            # Squares of gradients are taken in fp32.
            self.dry_run.work.append(Work(self.job, "fisher", images, work, "fp32"))
        return dict.fromkeys(parameters, torch.ones(()))

    def holdout_accuracy(self, mix: Mix) -> float:
        """0 for every mix, so that a greedy choice tries all candidates."""
        self.compared = True
        self.evaluate([(PlannedCell("candidate", [], ""), mix)], self.recipe.downstream, "holdout")
        return 0.0

    def evaluate(
        self,
        mixes: Sequence[tuple[PlannedCell, Mix]],
        name: str,
        split: str,
        drawn: int | None = None,
    ) -> None:
        """Note the mixes that have not seen this split of a set, or `drawn` images of it."""
        labelled = self.dry_run.labelled[name]
        split = split if len(labelled.holdout) else "all"
        images = len(labelled.split(split)) if drawn is None else drawn
        rows = through_model = 0
        for cell, mix in mixes:
            mix = essential(mix)
            key = (*mix.items(), cell.name if cell.chosen else "", name, split)
            if key in self.dry_run.predicted:
                continue
            self.dry_run.predicted.add(key)
            rows += images
            parents = [self.dry_run.cells[parent] for parent in mix]
            if [parent.backbone for parent in parents] == [self.base.backbone]:
                self.features(self.base, labelled)
            else:
                through_model += images
        if rows:
            work = through_model * self.dry_run.forward_flops
            precision = self._form(training=False).precision
            self.dry_run.work.append(
                Work(self.job, "evaluation", through_model, work, precision, rows=rows)
            )

    def _train(self, method: Trained) -> PlannedCell:
        method.prepare(self.network(self.base), self)
        method.to(self.device)
        train, seen, steps = self.recipe.train, len(self.target.split("train")), 0
        if method.problem is not None:
            work = heads.EVALUATIONS * method.problem.flops(self.dry_run.classes)
            precision = "fp32"  # fp64, whose peak on an A100's tensor cores is that of fp32
        else:
            steps = math.ceil(seen / train.batch_size) * train.epochs
            seen *= train.epochs
            work = seen * (self.dry_run.step_flops(method, self.recipe) / train.batch_size)
            precision = self._form(training=True).precision
        title = self.recipe.method.title
        self.dry_run.work.append(
            Work(self.job, "training", seen, work, precision, steps, method=title)
        )
        export = method.export()
        backbone = self.base.backbone if export.shares_backbone else self.name
        return _trained(self.name, backbone, export)

    def _form(self, *, training: bool) -> Form:
        """The form of models on the campaign's device, which need not be there."""
        device = torch.device("cpu" if self.recipe.device == "cpu" else "cuda")
        form_of = Form.of_training if training else Form.of_evaluation
        return form_of(self.recipe, device)


def _trained(name: str, backbone: str, export: Export) -> PlannedCell:
    tensors = [*export.state.values(), *([] if export.prompt is None else [export.prompt])]
    return PlannedCell(name, [Entry({name: 1.0})], backbone, _bytes(tensors), export)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
