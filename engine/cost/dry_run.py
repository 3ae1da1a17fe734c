"""A dry run of a campaign: its jobs in their order, on tensors without content.

The methods themselves say what they need: their `prepare`, `loss`, `export`, `entries` and `merge`
run on the meta device, where operations are counted and nothing is computed. So a user's own method
is counted too, and an estimate cannot drift from what will run.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from engine import models
from engine.data.sets import LabelledSet
from engine.evaluation import sample
from engine.grid.campaign import Plan
from engine.grid.columns import Column
from engine.machine.files import digest
from engine.machine.flops import flops
from engine.methods import heads
from engine.methods.base import Merged, Mixed, Trained
from engine.methods.context import Context
from engine.methods.first_head import first_head
from engine.models import clip
from engine.models.form import Form
from engine.recipe import modules, varied
from engine.recipe.request import Request
from engine.recipe.resolve import without_options
from engine.recipe.schema import Recipe
from engine.store.cells import Entry, Export, Mix, essential
from engine.training import fisher, snapshots
from engine.training.loop import warmup_steps
from engine.training.schedule import total_steps
from loaders.batch import Batch

PREPARE = "prepare"
META = torch.device("meta")


@dataclass(frozen=True)
class Work:
    """Images that pass through a model for one purpose, and the operations (`flops`) that takes.

    job: `prepare`, or the name of a column. kind: features | fisher | training |
    evaluation | cka. precision: bf16 | fp32. images: training counts an image once an epoch (once
    where a head is fitted), evaluation once a model. rows: predictions that are stored; those made
    from stored features pass no image through a model. method: the title of the method that trains.
    row: the row of the table for which a column is trained. evaluated_on: the set on which its
    models are evaluated once all rows are trained.
    """

    job: str
    kind: str
    images: int
    flops: float
    precision: str = "bf16"
    steps: int = 0
    rows: int = 0
    method: str = ""
    row: str = ""
    evaluated_on: str = ""


@dataclass(frozen=True)
class PlannedCell:
    """A cell that a campaign will make.

    bytes: of its weights on disk, 0 for a mix. chosen: its mix depends on results, so it is counted
    as unlike any other mix. steps: optimizer steps that make it.
    """

    name: str
    entries: Sequence[Entry]
    backbone: str
    bytes: int = 0
    export: Export | None = None
    chosen: bool = False
    steps: int = 0

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
        self.prepared: dict[str, tuple[bool, float, Export]] = {}  # by what determines it
        self._row = self._evaluated_on = ""

    def note(self, work: Work) -> None:
        """Add work, with what it is for."""
        self.work.append(replace(work, row=self._row, evaluated_on=self._evaluated_on))

    def run(self) -> None:
        """The jobs of `engine.grid.jobs`, one after the other."""
        places = {name: sample.split_of(self.recipe, name) for name in self.recipe.dataset.places}
        prepare = self.context(self.recipe)
        for name, split in places.items():
            prepare.features(prepare.base, self.labelled[name])
            for part in (split, "holdout"):
                prepare.evaluate([(prepare.base, {prepare.base.name: 1.0})], name, part)
        drawn = self._drawn({n: len(self.labelled[n].split(split)) for n, split in places.items()})
        for column in self.plan.columns:
            rows = [self.recipe_of(self.request, method, column) for method in self.plan.methods]
            first = rows[0]
            mixes: list[tuple[PlannedCell, Mix]] = []
            headlines: list[Mix] = []
            for seed in range(first.seed, first.seed + first.seeds):
                for method, row in zip(self.plan.methods, rows, strict=True):
                    self._row = method
                    cell = self.context(replace(row, seed=seed), column).build()
                    mixes += [(cell, entry.mix) for entry in cell.entries]
                    headlines += [entry.mix for entry in cell.entries if entry.headline]
                    taken = self._snapshots(cell, row)
                    mixes += [(snapshot, {snapshot.name: 1.0}) for snapshot in taken]
            self._row, of_column = "", self.context(first, column)
            for self._evaluated_on in places:
                name = self._evaluated_on
                split = sample.split_of(first, name)
                of_column.evaluate(mixes, name, split, drawn.get(name))
                of_column.compare(headlines, name, split)
            self._evaluated_on = ""

    def context(self, recipe: Recipe, column: Column | None = None) -> PlannedContext:
        return PlannedContext(self, recipe, column)

    def recipe_of(self, request: Request, method: str, column: Column | None) -> Recipe:
        """The recipe of a method in a column, or in what all columns share. Columns differ in
        nothing but what they vary, and resolving takes longer than `varied`."""
        recipe = request.recipe(method)
        if column is None:
            return recipe
        recipe = replace(recipe, downstream=column.downstream)
        return varied(recipe, column.overrides)

    @cached_property
    def forward_flops(self) -> float:
        """Operations of one image's forward pass; a multiplication and an addition count two."""
        with torch.no_grad():
            return flops(lambda: self.net(self._pixels(1)))

    @cached_property
    def fisher_flops(self) -> float:
        """Operations of one image's part of a Fisher: a forward and a backward pass."""
        return flops(lambda: self.net(self._pixels(1)).sum().backward())

    @cached_property
    def clip(self) -> nn.Module:
        """open_clip's model with both towers."""
        return clip.blank(self.recipe.model.weights.clip).to(self.device)

    def step_flops(self, method: Trained, recipe: Recipe) -> float:
        """Operations of one optimizer step of a prepared method, at the recipe's batch size."""
        size = recipe.train.batch_size
        key = str(recipe.method), size
        if key not in self._step_flops:
            numbers = np.zeros(size, np.int64)
            batch = Batch(numbers, torch.device("cpu"), lambda: self._pixels(size, torch.uint8))
            method.train()
            # Labels keep their content, because losses check them.
            method.targets_N = torch.zeros(1, dtype=torch.int64)
            self._step_flops[key] = flops(lambda: method(batch).sum().backward())
        return self._step_flops[key]

    def _snapshots(self, cell: PlannedCell, recipe: Recipe) -> list[PlannedCell]:
        """The snapshots of a cell. Their weights count where the recipe keeps them."""
        size = cell.bytes if recipe.train.keep_snapshots else 0
        images = [len(self.labelled[name].training(recipe)) for name in self.plan.downstreams]
        longest = total_steps(recipe.train, max(images))
        steps = snapshots.steps(recipe.train.snapshots, longest)
        names = [f"{cell.name}-step{step}" for step in steps if step < cell.steps]
        planned = [PlannedCell(name, [], name, size) for name in names]
        self.cells |= {snapshot.name: snapshot for snapshot in planned}
        return planned

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

    def __init__(
        self,
        dry_run: DryRun,
        recipe: Recipe,
        column: Column | None,
        start: PlannedCell | None = None,
    ) -> None:
        """column: None for what all columns share. start: the model to start from, where that is
        not the pre-trained model."""
        self.dry_run, self.recipe, self.column, self.start = dry_run, recipe, column, start
        self.device = dry_run.device
        self.compared = False  # whether hold-out accuracies were read, on which a mix then depends

    @property
    def job(self) -> str:
        return self.column.name if self.column else PREPARE

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
        if self.start or not self.recipe.model.head.fit:
            return self.start or self.dry_run.weights
        upstream = self.recipe.dataset.upstream
        probe = replace(self.dry_run.request.recipe("linear_probe"), downstream=upstream)
        probe = first_head(probe)
        return PlannedContext(self.dry_run, probe, self.column, self.dry_run.weights).build()

    @property
    def name(self) -> str:
        """The name of the recipe's cell."""
        recipe = self.recipe
        options = dataclasses.asdict(recipe.method) | {"title": ""}
        start = self.start.name if self.start else ""
        key = [options, recipe.optimizer, recipe.train, recipe.dataset, recipe.seed, start]
        return f"{recipe.method.name}-{recipe.downstream}-{digest(list(map(str, key)))}"

    def sibling(self, method: str, seed: int | None = None) -> Recipe:
        """The recipe of a method that the cell needs, as `engine.grid.build` resolves it."""
        request = self.dry_run.request.for_needs(self.recipe)
        column = self.column
        if column is not None:
            column = replace(column, overrides=tuple(without_options(column.overrides)))
        recipe = self.dry_run.recipe_of(request, method, column)
        return replace(recipe, seed=self.recipe.seed if seed is None else seed)

    def cell(self, method: str, *, seed: int | None = None) -> PlannedCell:
        return self.dry_run.context(self.sibling(method, seed), self.column).build()

    def build(self) -> PlannedCell:
        """The recipe's cell. Its work is noted the first time."""
        cells, name = self.dry_run.cells, self.name
        if name not in cells:
            method = modules.method_of(self.recipe)
            if isinstance(method, Mixed):
                entries = method.entries(self)
                cells[name] = PlannedCell(name, entries, name, chosen=self.compared)
            elif isinstance(method, Merged):
                cells[name] = _trained(name, name, method.merge(self))
            else:
                cells[name] = self._train(method)
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
            self.dry_run.note(Work(self.job, "features", images, work, form.precision))
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
            self.dry_run.note(Work(self.job, "fisher", images, work, "fp32"))
        return dict.fromkeys(parameters, torch.ones(()))

    def clip(self) -> Any:
        return copy.deepcopy(self.dry_run.clip)

    def zero_shot_head(self, clip: Any) -> torch.Tensor:
        """Its sentences are not counted: they are few beside those of training."""
        return torch.zeros_like(models.head(self.dry_run.net).weight)

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
            self.dry_run.note(
                Work(self.job, "evaluation", through_model, work, precision, rows=rows)
            )

    def compare(self, mixes: Sequence[Mix], name: str, split: str) -> None:
        """Note the passes of CKA: of the pre-trained model, and of each mix once. The products of
        features, a small share, are not counted."""
        images = min(self.recipe.evaluate.cka, len(self.dry_run.labelled[name].split(split)))
        models = 1 + len({tuple(essential(mix).items()) for mix in mixes})
        if images:
            work = models * images * self.dry_run.forward_flops
            precision = self._form(training=False).precision
            self.dry_run.note(Work(self.job, "cka", models * images, work, precision))

    def _train(self, method: Trained) -> PlannedCell:
        fits_head, step_flops, export = self._prepared(method)
        train, seen, steps = self.recipe.train, len(self.target.training(self.recipe)), 0
        if fits_head:
            work = heads.flops(seen, models.head(self.dry_run.net))
            precision = "fp32"  # fp64, whose peak on an A100's tensor cores is that of fp32
        else:
            steps = total_steps(train, seen)
            warmup_steps(train, steps)  # refuses or warns before anything is trained
            seen *= train.epochs
            work = seen * (step_flops / train.batch_size)
            precision = self._form(training=True).precision
        title = self.recipe.method.title
        self.dry_run.note(Work(self.job, "training", seen, work, precision, steps, method=title))
        backbone = self.base.backbone if export.shares_backbone else self.name
        return replace(_trained(self.name, backbone, export), steps=steps)

    def _prepared(self, method: Trained) -> tuple[bool, float, Export]:
        """Whether a method fits a head, the operations of one of its steps, and its export.

        Cells that differ in learning rate, length or seed share them, because they would ask for
        the same artefacts; not where a method starts from cells of its column.
        """
        recipe, form = self.recipe, self._form(training=True)
        key = str((recipe.method, recipe.dataset, recipe.downstream, recipe.train.batch_size, form))
        key = f"{self.base.name} {key}"
        known = self.dry_run.prepared.get(key)
        if known is None or method.needs:
            method.prepare(self.network(self.base), self)
            method.to(self.device)
            fits = method.fits_head
            known = fits, 0 if fits else self.dry_run.step_flops(method, recipe), method.export()
            self.dry_run.prepared[key] = known
        return known

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
