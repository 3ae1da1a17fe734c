"""Builder: finds or makes a cell and the artefacts that it needs, each of them once.

Snapshots are models during training, whose weights are removed after evaluation: a snapshot is
finished once all its predictions, and what extras make from it, are in the store.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from engine.cells.cell_plan import CellPlan
from engine.data.sets import LabelledSet, Sets
from engine.evaluation import features, passes
from engine.machine import ranks
from engine.machine.files import cache_folder
from engine.measures.rows import STEP, Setting
from engine.methods.base import Context, Derived, Trained
from engine.methods.linear_probe import first_head
from engine.model_files.descriptions import RECIPE, prompt_beside
from engine.models import pretrained
from engine.models.execution import Form, resolve_compile
from engine.recipe import extras, image_transform, methods
from engine.recipe.effects import training_values
from engine.recipe.finder import is_users, users_files_allowed
from engine.recipe.schema import Recipe
from engine.store import cells, tensors
from engine.store.artifacts import STORE, Artifact, Store
from engine.store.cells import Average, Cell, Entry, Export, Gated
from engine.store.checkpoints import CheckpointFiles
from engine.training import fisher, loop
from engine.training.saving import Saving, snapshot_steps
from loaders.batches import Batch
from loaders.files.durable import file_hash

log = logging.getLogger(__name__)
FISHER = "fisher.safetensors"
SNAPSHOTS = "snapshots"  # kind of artefacts
Address = tuple[str, str, dict[str, Any]]  # of an artefact: kind, label and key


@dataclass(frozen=True)
class Followed:
    """The cells whose training saves snapshots, if their recipes request them.

    cells: those of a column's rows, without the cells that they need. downstreams: all downstream
    datasets of the plan.
    """

    cells: Collection[Recipe] = ()
    downstreams: Collection[str] = ()


class Builder(Context):
    """Makes the cell of a recipe (`build`). It is the cell's run, and its method's `Context`."""

    def __init__(
        self,
        cell: CellPlan,
        device: torch.device,
        sets: Sets | None = None,
        followed: Followed | None = None,
        start: Cell | None = None,
        store: Store | None = None,
    ) -> None:
        """followed: the cells that leave snapshots. start: the model to start from, where that is
        not the recipe's pretrained model. store: where artefacts are found or made, by default
        below the recipe's `runs`."""
        recipe = cell.recipe
        sets = sets or Sets(recipe, device, cache_folder())
        store = store or Store(Path(recipe.runs) / STORE, recipe.generation)
        super().__init__(recipe, device, sets, store, start)
        self.plan = cell
        self.followed = followed or Followed()

    @cached_property
    def base(self) -> Cell:
        """The pretrained model, made now if there is none. A head that it lacks is fitted."""
        if self.start is not None:
            return self.start
        model, seed = self.recipe.model, self.recipe.dataset.seed
        path = model.weights.path
        if path and prompt_beside(Path(path)) is not None:
            raise ValueError(
                f"model.weights.path={path} has an input prompt, which would be lost: take the "
                "weights of a cell without one"
            )
        # The head is replaced if another is fitted, so its classes may be any.
        texts = self.sets.class_texts if model.has_text_tower and not model.head.fit else None
        backbone = ranks.first(
            lambda: pretrained.backbone(model, self.store, cache_folder(), seed, texts=texts)
        )
        if not model.head.fit:
            return Cell(backbone)
        head, start = CellPlan(first_head(self.recipe)), Cell(backbone)
        return Builder(head, self.device, self.sets, start=start, store=self.store).build()

    def build(self) -> Cell:
        """The recipe's cell: found by its key, or made and stored.

        Raises PermissionError for a missing cell of a user's method whose file may not run.
        """
        may_run = users_files_allowed() or not is_users(self.recipe.method.module)
        # Before any work, since a method's `check` may refuse.
        method = methods.method_of(self.recipe) if may_run else None
        if (artifact := self._whole()) is None:
            if not may_run:
                raise PermissionError(f"{self._name}, a cell of a user's method, is missing")
            made = functools.partial(self._made, method)
            artifact = self.make(*self._address, made, self._whole)
            if ranks.rank() == 0:
                CheckpointFiles(self.store, self._name).remove()
        return Cell(artifact)

    def is_stored(self) -> bool:
        """Whether the recipe's cell is in the store."""
        return self._whole() is not None

    def compile(self) -> None:
        """Compile the graphs that the cell's training takes, so that other processes find them.

        Nothing is done for a cell that is there, runs uncompiled, is made of other cells or starts
        from one: what such a cell trains, others train too, or its own job compiles.
        """
        option = self.recipe.train.compile
        if resolve_compile(option, self.device) == "never" or self.plan.needs:
            return
        method = methods.method_of(self.recipe)
        if isinstance(method, Trained) and self._whole() is None:
            with self.threads():
                loop.compile_graphs(method, self)

    def entries(self) -> list[Entry]:
        """The models of the recipe's cell that are evaluated, with those during its training."""
        cell = self.build()
        if not self._follows_training or not cell.steps:
            return cell.entries
        snapshots = self._snapshots(cell).items()
        names = {step: self.store.place(*address).name for step, address in snapshots}
        return cell.entries + [
            Entry({names.get(step, cell.name): 1.0}, None, False, Setting({STEP: step}))
            for step in self._points()
        ]

    def remove_snapshots(self) -> None:
        """Remove the weights of the cell's snapshots, which must be evaluated, unless the recipe
        keeps them."""
        for address in self._snapshots(self.build()).values():
            artifact = self.find(*address)
            if artifact is not None and not self.recipe.train.keep_snapshots:
                self.store.remove(artifact)

    def key(self) -> dict[str, Any]:
        """Everything that determines the cell's weights."""
        recipe, base = self.recipe, self.base
        target, upstream = self.target, self.upstream
        method = dataclasses.asdict(recipe.method)
        method["source"] = methods.source_digest(recipe.method.module)
        method["module"] = Path(recipe.method.module).name  # a file that moved is the same method
        form = Form.of(recipe.train, self.device)
        texts = self.sets.class_texts if recipe.method.reads_class_names else None
        files = recipe.method.files(recipe)
        return {
            "base": base.name,
            "target": target.pack.fingerprint,
            "upstream": upstream.pack.fingerprint,
            "split": [*target.split_key(recipe.dataset), *upstream.split_key(recipe.dataset)[2:]],
            "method": {k: v for k, v in method.items() if k != "title"},
            "needs": [self.sibling(name).key() for name in self.plan.needs],
            "optimizer": dataclasses.asdict(recipe.optimizer),
            "train": training_values(recipe.train) | {"compile": False} | form.key,
            "seed": recipe.seed,
            "machine": self.machine,
            **target.part_key(recipe),
            **(texts.key(recipe.model.weights) if texts else {}),
            **({"files": [file_hash(file) for file in files]} if files else {}),
        }

    def seeded(self) -> list[Builder]:
        """The builder of each training seed that the recipe asks for."""
        seeds = range(self.recipe.seed, self.recipe.seed + self.recipe.seeds)
        return [self.builder_of(self.plan.seeded(seed)) for seed in seeds]

    def builder_of(self, cell: CellPlan) -> Builder:
        """The builder of another cell, with the same sets and store."""
        return Builder(cell, self.device, self.sets, self.followed, None, self.store)

    def sibling(self, method: str, seed: int | None = None) -> Builder:
        """The builder of a method in the same column that the cell needs."""
        if method not in self.plan.needs:
            raise ValueError(
                f"method {self.recipe.method.name} asks for the cell of {method!r}, which is not "
                "among the `needs` of its Recipe; add it there"
            )
        need = self.plan.needs[method]
        return self.builder_of(need if seed is None else need.seeded(seed))

    def cell(self, method: str, *, seed: int | None = None) -> Cell:
        """The cell of a method that the cell needs, made now if there is none."""
        return self.sibling(method, seed).build()

    def features(
        self, cell: Cell, labelled: LabelledSet, *, training: bool = False
    ) -> torch.Tensor:
        return features.stored(self, cell, labelled, training=training)

    def embedder(self, cell: Cell, labelled: LabelledSet) -> Callable[[Batch], torch.Tensor]:
        return features.embedder(self, cell, labelled)

    def logits(self, cell: Cell, labelled: LabelledSet) -> Callable[[Batch], torch.Tensor]:
        return features.teacher(self, cell, labelled)

    def fisher(self, images: int, labels: str) -> Mapping[str, torch.Tensor]:
        key = {
            "model": self.base.name,
            "pack": self.upstream.pack.fingerprint,
            "split": self.upstream.split_key(self.recipe.dataset),
            "images": images,
            "labels": labels,
            "batch_size": self.recipe.train.batch_size,  # labels are drawn batch by batch
            "machine": self.machine,
        }

        def compute() -> Callable[[Path], object]:
            values = fisher.diagonal(self, images, labels)
            return lambda folder: tensors.save(values, folder / FISHER)

        artifact = self.make("fisher", self.recipe.model.name, key, compute)
        return load_file(artifact.checked(FISHER))

    def holdout_accuracy(self, average: Average) -> float:
        return passes.holdout_accuracy(self, average)

    @property
    def _follows_training(self) -> bool:
        return self.recipe.train.snapshots > 0 and self.recipe in self.followed.cells

    def _points(self) -> list[int]:
        """Steps at which a grid's training curves have points, the same for all columns.

        They extend to the end of the longest training. A shorter training keeps its final value,
        so each point is a mean over all columns.
        """
        recipe, downstreams = self.recipe, self.followed.downstreams
        totals = [recipe.train.steps(len(self.sets[n].training(recipe))) for n in downstreams]
        return snapshot_steps(recipe.train.snapshots, max(totals))

    def _snapshots(self, cell: Cell | None) -> dict[int, Address]:
        """The snapshots, by step, before the last step of the recipe's cell, which is the cell.

        A cell that does not exist yet counts as trained by steps; fitted heads have none.
        """
        if not self._follows_training:
            return {}
        recipe, name = self.recipe, self._name
        images = len(self.target.training(recipe))
        total = recipe.train.steps(images) if cell is None else cell.steps
        label = f"{recipe.method.name}-{recipe.downstream}-step"
        return {
            step: (SNAPSHOTS, f"{label}{step}", {"cell": name, "step": step})
            for step in self._points()
            if step < total
        }

    def _missing(self, artifact: Artifact | None) -> dict[int, Address]:
        """The snapshots of the recipe's cell that need training again: a prediction, or
        what an extra makes from the weights, is missing, and so are the weights."""
        names, missing = self.recipe.dataset.evaluated_sets, {}
        for step, address in self._snapshots(artifact and Cell(artifact)).items():
            if self.find(*address) is not None:
                continue
            mix = {self.store.place(*address).name: 1.0}
            predictions = [
                passes.find(self, mix, name, self.recipe.split_of(name)) for name in names
            ]
            stored = [
                answer
                for name in names
                for _, answer in extras.ask(self.recipe, "is_stored", self, name, mix)
            ]
            if None in predictions or not all(stored):
                missing[step] = address
        return missing

    def _whole(self) -> Artifact | None:
        """The recipe's cell, if all that belongs to it is there."""
        artifact = self.find(*self._address)
        if artifact is None or self._missing(artifact):
            return None
        parents = {name for entry in Cell(artifact).entries for name in entry.mix}
        whole = ranks.all_agree(all(cells.find(self.store, name) for name in parents))
        return artifact if whole else None

    @cached_property
    def _address(self) -> Address:
        """The recipe's cell."""
        return "cells", f"{self.recipe.method.name}-{self.recipe.downstream}", self.key()

    @property
    def _name(self) -> str:
        """The name of the recipe's cell, finished or not."""
        return self.store.place(*self._address).name

    def _made(self, method: Any) -> Callable[[Path], None]:
        """Make the recipe's cell and the snapshots that are missing; returns what writes it."""
        if isinstance(method, Derived):
            return functools.partial(self._write, made=method.make(self))
        assert isinstance(method, Trained), method
        missing = self._missing(self.find(*self._address))

        def write_snapshot(step: int, export: Export) -> None:
            self.store.make(*missing[step], functools.partial(self._write, made=export))

        minutes = self.recipe.train.checkpoint_minutes
        files = CheckpointFiles(self.store, self._name) if minutes else None
        started = time.perf_counter()
        with Saving(missing, write_snapshot, files, minutes) as saving:
            export, history = loop.fit(method, self, saving)
        seconds = time.perf_counter() - started

        def write(folder: Path) -> None:
            self._write(folder, export, train_seconds=round(seconds, 2))
            (folder / cells.HISTORY).write_text(history, "utf-8")

        return write

    def _write(
        self, folder: Path, made: Export | Gated | Sequence[Entry], **description: Any
    ) -> None:
        (folder / RECIPE).write_text(self.plan.dump(), "utf-8")
        description["classes"] = list(self.sets.classes)
        description["model"] = image_transform.description(self.recipe.model)
        cells.write_cell(folder, self.recipe, made, self.base.backbone, description)
