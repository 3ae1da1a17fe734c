"""Builder: finds or makes a cell and the artefacts that it needs, each of them once."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from engine import models
from engine.data import imagenet
from engine.data.sets import LabelledSet, Sets
from engine.evaluation import features, passes
from engine.machine import ranks
from engine.machine.files import cache_folder
from engine.methods import linear_probe
from engine.methods.base import Mixed, Trained, siblings
from engine.methods.context import Context
from engine.models import checkpoints
from engine.models.form import Form
from engine.recipe import modules
from engine.recipe.request import Request
from engine.recipe.schema import Recipe
from engine.run import Run
from engine.store import cells, tensors
from engine.store.artifacts import Store
from engine.store.cells import Cell, Mix
from engine.training import fisher, loop
from loaders.files import file_hash

log = logging.getLogger(__name__)


class Builder(Context[Cell]):
    """Makes the cell of a recipe (`build`). To its method it is the `Context`."""

    def __init__(
        self,
        request: Request,
        recipe: Recipe,
        device: torch.device,
        sets: Sets | None = None,
        start: Cell | None = None,
    ) -> None:
        """start: the model to start from, where that is not the recipe's pre-trained model."""
        self.request = request
        self.recipe = recipe
        self.device = device
        self.store = Store(Path(recipe.runs) / "store")
        self.sets = sets or Sets(recipe, device, cache_folder())
        self.start = start

    @cached_property
    def run(self) -> Run:
        """What the cell works with. The base model is made now if there is none."""
        base = self.start or self._pre_trained()
        return Run(self.recipe, self.device, self.sets, self.store, base)

    def build(self) -> Cell:
        """The recipe's cell: found by its key, or made and stored."""
        recipe, key = self.recipe, self.key()
        label = f"{recipe.method.name}-{recipe.downstream}"
        artifact = self.run.find("cells", label, key)
        if artifact is not None and self._has_parents(Cell(artifact)):
            return Cell(artifact)
        method = modules.find(recipe.method.module).Method(recipe.method)
        if isinstance(method, Mixed):
            entries = method.entries(self)

            def write(folder: Path) -> None:
                cells.write_mixed(folder, recipe, entries, self._description())
        else:
            assert isinstance(method, Trained), method
            if terms := imagenet.terms(recipe):
                log.warning(terms)
            with self.run.threads():
                export, history = loop.fit(method, self.run, self)

            def write(folder: Path) -> None:
                backbone = self.base.backbone
                cells.write_trained(folder, recipe, export, backbone, self._description())
                (folder / "history.json").write_text(history)

        return Cell(ranks.first(lambda: self.store.make("cells", label, key, write)))

    def key(self) -> dict[str, Any]:
        """Everything that determines the cell's weights."""
        recipe = self.recipe
        method = dataclasses.asdict(recipe.method)
        module = Path(recipe.method.module)
        if module.suffix == ".py":
            method["sha256"] = file_hash(module)
            method["module"] = module.name  # a file that moved is the same method
        form = Form.of_training(recipe, self.device)
        return {
            "base": self.base.name,
            "target": self.target.pack.fingerprint,
            "upstream": self.upstream.pack.fingerprint,
            "split": [
                *self.target.split_key(recipe.dataset),
                *self.upstream.split_key(recipe.dataset)[2:],
            ],
            "method": {k: v for k, v in method.items() if k != "title"},
            "needs": [self.sibling(name).key() for name, _ in self._needs()],
            "optimizer": dataclasses.asdict(recipe.optimizer),
            "train": dataclasses.asdict(recipe.train) | {"compile": False} | form.key,
            "seed": recipe.seed,
            "machine": self.run.machine,
        }

    def seeded(self) -> list[Builder]:
        """The builder of each training seed that the recipe asks for."""
        seeds = range(self.recipe.seed, self.recipe.seed + self.recipe.seeds)
        return [self._of(dataclasses.replace(self.recipe, seed=seed)) for seed in seeds]

    def row(self, method: str) -> Builder:
        """The builder of a row of the campaign's table, in the same column."""
        return self._beside(self.request, method)

    def sibling(self, method: str) -> Builder:
        """The builder of a method in the same column that the cell needs: in its variant."""
        return self._beside(self.request.for_needs(self.recipe), method)

    def cell(self, method: str) -> Cell:
        """The cell of a method that the cell needs, trained now if there is none."""
        return self.sibling(method).build()

    @property
    def base(self) -> Cell:
        return self.run.base

    @property
    def target(self) -> LabelledSet:
        return self.run.target

    @property
    def upstream(self) -> LabelledSet:
        return self.run.upstream

    @property
    def autocast(self) -> torch.autocast:
        return self.run.autocast

    def network(self, cell: Cell) -> torch.nn.Module:
        return self.run.network(cell)

    def features(
        self, cell: Cell, labelled: LabelledSet, *, training: bool = False
    ) -> torch.Tensor:
        return features.stored(self.run, cell, labelled, training=training)

    def logits(self, cell: Cell, labelled: LabelledSet) -> Callable[[np.ndarray], torch.Tensor]:
        return features.teacher(self.run, cell, labelled)

    def fisher(self, images: int, labels: str) -> Mapping[str, torch.Tensor]:
        key = {
            "model": self.base.name,
            "pack": self.upstream.pack.fingerprint,
            "split": self.upstream.split_key(self.recipe.dataset),
            "images": images,
            "labels": labels,
            "batch_size": self.recipe.train.batch_size,  # labels are drawn batch by batch
            "machine": self.run.machine,
        }

        def write(folder: Path) -> None:
            with self.run.threads():
                values = fisher.diagonal(self.run, images, labels)
            tensors.save(values, folder / "fisher.safetensors")

        label = self.recipe.model.name
        artifact = ranks.first(lambda: self.store.make("fisher", label, key, write))
        return load_file(artifact.checked("fisher.safetensors"))

    def holdout_accuracy(self, mix: Mix) -> float:
        return passes.holdout_accuracy(self.run, mix)

    def _pre_trained(self) -> Cell:
        """The pre-trained model. A head that it lacks is a linear probe of the upstream set."""
        model, dataset = self.recipe.model, self.recipe.dataset
        cache, seed = cache_folder(), dataset.seed
        backbone = ranks.first(lambda: checkpoints.backbone(model, self.store, cache, seed))
        if not model.head.fit:
            return Cell(backbone)
        probe = linear_probe.first_head(self.request.recipe("linear_probe", dataset.upstream))
        start = Cell(backbone)
        return Builder(self.request, probe, self.device, self.sets, start).build()

    def _description(self) -> dict[str, Any]:
        """What `cell.json` says of the model: the head's classes, and how it sees images."""
        return {
            "classes": list(self.sets.classes),
            "model": models.description(self.recipe.model),
        }

    def _has_parents(self, cell: Cell) -> bool:
        """Whether the cells of its mixes are still there, on every rank."""
        names = {name for entry in cell.entries for name in entry.mix}
        return ranks.all_agree(all(cells.find(self.store, name) for name in names))

    def _needs(self) -> list[tuple[str, Recipe]]:
        """The methods that the cell needs. Raises RecipeError where one of them mixes cells."""
        return siblings(self.recipe.method, lambda name: self.sibling(name).recipe)

    def _beside(self, request: Request, method: str) -> Builder:
        recipe = request.recipe(method, self.recipe.downstream)
        recipe = dataclasses.replace(recipe, seed=self.recipe.seed)
        return Builder(request, recipe, self.device, self.sets)

    def _of(self, recipe: Recipe) -> Builder:
        return Builder(self.request, recipe, self.device, self.sets)
