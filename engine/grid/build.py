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
        self, request: Request, recipe: Recipe, device: torch.device, sets: Sets | None = None
    ) -> None:
        self.request = request
        self.recipe = recipe
        self.device = device
        self.store = Store(Path(recipe.runs) / "store")
        self.sets = sets or Sets(recipe, device, cache_folder())

    @cached_property
    def run(self) -> Run:
        """What the cell works with. The base model is made now if there is none."""
        return Run(self.recipe, self.device, self.sets, self.store, self._base())

    def build(self) -> Cell:
        """The recipe's cell: found by its key, or made and stored."""
        method = modules.method_of(self.recipe)  # before any work: its `check` may refuse
        recipe, key = self.recipe, self.key()
        label = f"{recipe.method.name}-{recipe.downstream}"
        artifact = self.run.find("cells", label, key)
        if artifact is not None and self._has_parents(Cell(artifact)):
            return Cell(artifact)
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
            "needs": [self._of(needed).key() for needed in siblings(recipe.method, self.sibling)],
            "optimizer": dataclasses.asdict(recipe.optimizer),
            "train": dataclasses.asdict(recipe.train) | {"compile": False} | form.key,
            "seed": recipe.seed,
            "machine": self.run.machine,
        }

    def seeded(self) -> list[Builder]:
        """The builder of each training seed that the recipe asks for."""
        seeds = range(self.recipe.seed, self.recipe.seed + self.recipe.seeds)
        return [self._of(dataclasses.replace(self.recipe, seed=seed)) for seed in seeds]

    def sibling(self, method: str) -> Recipe:
        """The recipe of another method in the same column."""
        recipe = self.request.recipe(method, self.recipe.downstream)
        return dataclasses.replace(recipe, seed=self.recipe.seed)

    def cell(self, method: str) -> Cell:
        """The cell of another method in the same column, trained now if there is none."""
        return self._of(self.sibling(method)).build()

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

    def _base(self) -> Cell:
        """The pre-trained model. A head that it lacks is a linear probe of the upstream set."""
        model, dataset = self.recipe.model, self.recipe.dataset
        cache, seed = cache_folder(), dataset.seed
        backbone = ranks.first(lambda: checkpoints.backbone(model, self.store, cache, seed))
        if not model.head.fit or self.recipe.downstream == dataset.upstream:
            return Cell(backbone)
        probe = self.request.recipe("linear_probe", dataset.upstream)
        return self._of(linear_probe.first_head(probe)).build()

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

    def _of(self, recipe: Recipe) -> Builder:
        return Builder(self.request, recipe, self.device, self.sets)
