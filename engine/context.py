"""Context: what a cell is built from. Finds or makes each upstream artefact, once."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from engine import models, recipe
from engine.data import imagenet
from engine.data.sets import LabelledSet, Sets
from engine.evaluation import passes
from engine.machine import precision, ranks, workers
from engine.methods import linear_probe
from engine.methods.base import Mixed, Trained, siblings
from engine.models import checkpoints
from engine.models.form import Form
from engine.recipe import modules
from engine.recipe.schema import Recipe
from engine.store import cells, pending, tensors
from engine.store.artifacts import Artifact, Store
from engine.store.cells import Cell
from engine.training import fisher, loop
from loaders.batch import on_device

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Downloads that all runs of a user share: $RIB_CACHE, or ~/.cache/rib."""
    return Path(os.environ.get("RIB_CACHE", Path.home() / ".cache" / "rib"))


@dataclass(frozen=True)
class Request:
    """What the user asked for, kept so that sibling cells can be resolved the same way."""

    name: str
    overrides: tuple[str, ...] = ()

    @functools.cache  # noqa: B019  # a request lives as long as its process
    def recipe(self, method: str | None = None, downstream: str | None = None) -> Recipe:
        return recipe.load(self.name, self.overrides, method=method, downstream=downstream)


class Context:
    """One cell's surroundings: its recipe, its sets, its base model and its siblings."""

    keeps_features = True  # of the base model's backbone, which a column's probes share

    def __init__(
        self, request: Request, cell_recipe: Recipe, device: torch.device, sets: Sets | None = None
    ) -> None:
        self.request = request
        self.recipe = cell_recipe
        self.device = device
        self.store = Store(Path(cell_recipe.runs) / "store")
        self.sets = sets or Sets(cell_recipe, device, cache_folder())

    @property
    def target(self) -> LabelledSet:
        """The set that is trained on."""
        return self.sets[self.recipe.downstream]

    @property
    def upstream(self) -> LabelledSet:
        return self.sets[self.recipe.dataset.upstream]

    @property
    def autocast(self) -> torch.autocast:
        """bf16 autocast for training, where the recipe or the device asks for it."""
        return precision.autocast(self.recipe.train.precision, self.device)

    @property
    def machine(self) -> dict[str, Any]:
        """What of the machine changes bits and is known beforehand; a part of every name.

        The rest (processor, ranks) stands in the versions beside a cell.
        """
        if self.device.type == "cpu":
            return {"device": "cpu", "threads": self.recipe.threads}
        return {"device": self.device.type}

    def threads(self) -> AbstractContextManager[None]:
        """Compute on the recipe's number of CPU threads, whatever a launcher allows."""
        return nullcontext() if self.device.type != "cpu" else workers.threads(self.recipe.threads)

    @cached_property
    def base(self) -> Cell:
        """The model the cell starts from: pre-trained, with a head for the upstream classes.

        A head that the weights lack is the linear probe of the upstream set, from zero.
        """
        model = self.recipe.model
        cache, seed = cache_folder(), self.recipe.dataset.seed
        backbone = ranks.first(lambda: checkpoints.backbone(model, self.store, cache, seed))
        if not model.head.fit or self.recipe.downstream == self.recipe.dataset.upstream:
            return Cell(backbone)
        probe = self.request.recipe("linear_probe", self.recipe.dataset.upstream)
        return self.build(linear_probe.first_head(probe))

    def seeded(self) -> list[Context]:
        """The same surroundings for each training seed that the recipe asks for."""
        first = self.recipe.seed
        recipes = [
            dataclasses.replace(self.recipe, seed=first + k) for k in range(self.recipe.seeds)
        ]
        return [Context(self.request, one, self.device, self.sets) for one in recipes]

    def sibling(self, method: str) -> Recipe:
        """The recipe of another method in the same column."""
        found = self.request.recipe(method, self.recipe.downstream)
        return dataclasses.replace(found, seed=self.recipe.seed)

    def cell(self, method: str) -> Cell:
        """The cell of another method in the same column, trained now if there is none."""
        return self.build(self.sibling(method))

    def build(self, cell_recipe: Recipe) -> Cell:
        """The cell of a recipe; found by name, or made."""
        context = Context(self.request, cell_recipe, self.device, self.sets)
        method = modules.find(cell_recipe.method.module).Method(cell_recipe.method)
        key = context.key()
        label = f"{cell_recipe.method.name}-{cell_recipe.downstream}"
        found = self._find("cells", label, key)
        if found is not None and self._has_parents(Cell(found)):
            return Cell(found)
        if isinstance(method, Mixed):
            entries = method.entries(context)

            def write(folder: Path) -> None:
                cells.write_mixed(folder, cell_recipe, entries, context.sets.classes)
        else:
            assert isinstance(method, Trained), method
            if terms := imagenet.terms(cell_recipe):
                log.warning(terms)
            with context.threads():
                export, history = loop.fit(method, context)

            def write(folder: Path) -> None:
                backbone, classes = context.base.backbone, context.sets.classes
                cells.write_trained(folder, cell_recipe, export, backbone, classes)
                (folder / "history.json").write_text(history)

        return Cell(ranks.first(lambda: self.store.make("cells", label, key, write)))

    def _has_parents(self, cell: Cell) -> bool:
        """Whether the cells that a mix is made of are there, or were deleted since."""
        names = {name for entry in cell.entries for name in entry.mix}
        return ranks.all_agree(all(cells.find(self.store, name) for name in names))

    def key(self) -> dict[str, Any]:
        """Everything that determines the cell's weights."""
        cell_recipe = self.recipe
        method = dataclasses.asdict(cell_recipe.method)
        module = Path(cell_recipe.method.module)
        if module.suffix == ".py":
            method["sha256"] = hashlib.sha256(module.read_bytes()).hexdigest()
            method["module"] = module.name  # the same file elsewhere is the same method
        others = siblings(cell_recipe.method, self.sibling)
        settings = dataclasses.asdict(cell_recipe.train)
        form = Form.of_training(cell_recipe, self.device)
        settings |= {"compile": False} | form.key
        return {
            "base": self.base.name,
            "target": self.target.pack.fingerprint,
            "upstream": self.upstream.pack.fingerprint,
            "split": [
                *self.target.split_key(cell_recipe.dataset),
                *self.upstream.split_key(cell_recipe.dataset)[2:],
            ],
            "method": {k: v for k, v in method.items() if k != "title"},
            "needs": [
                Context(self.request, sibling, self.device, self.sets).key() for sibling in others
            ],
            "optimizer": dataclasses.asdict(cell_recipe.optimizer),
            "train": settings,
            "seed": cell_recipe.seed,
            "machine": self.machine,
        }

    def features(
        self, cell: Cell, labelled: LabelledSet, *, training: bool = False
    ) -> torch.Tensor:
        """Pre-logits [N, D] (float32, on the CPU) of a cell's backbone for a whole set.

        They are mapped from their file and read as they are used, so that a set of any size takes
        no memory: `on_device` moves the rows of a batch.
        Made in the form of evaluation, or in that of training where weights depend on them.
        """
        key = self.features_key(cell, labelled, training=training)
        label = f"{cell.backbone.rsplit('-', 1)[0]}-{labelled.name}"
        found = self._find("features", label, key)
        if found is None:
            slices = self.store.root / "pending" / self.store.place("features", label, key).name
            with self.threads():
                files = passes.features(self, cell, labelled, self._form(training), slices)

            def write(folder: Path) -> None:
                pending.join_arrays(files, folder / "features.npy")

            found = ranks.first(lambda: self.store.make("features", label, key, write))
            if ranks.rank() == 0:
                shutil.rmtree(slices, ignore_errors=True)
        # Copied where written to: torch wants arrays that can be.
        array = np.load(found.checked("features.npy"), mmap_mode="c", allow_pickle=False)
        return torch.from_numpy(array)

    def features_key(
        self, cell: Cell, labelled: LabelledSet, *, training: bool = False
    ) -> dict[str, Any]:
        """Everything that determines the features of a set."""
        return {
            "model": cell.backbone,
            "pack": labelled.pack.fingerprint,
            "batch_size": self.recipe.evaluate.batch_size,
            **self._form(training).key,
            "machine": self.machine,
        }

    def _form(self, training: bool) -> Form:
        of = Form.of_training if training else Form.of_evaluation
        return of(self.recipe, self.device)

    def logits(self, cell: Cell, labelled: LabelledSet) -> Callable[[np.ndarray], torch.Tensor]:
        """A teacher: gives logits [b, C] for the images at `index` (int64 [b]) of a set.

        They are float32, on the device, and carry no gradient. Its head reads features that were
        computed once a set, and only a batch of them is ever on the device.
        """
        features_ND = self.features(cell, labelled, training=True)
        head = models.head(self.network(cell))

        @torch.no_grad()
        def teacher(index: np.ndarray) -> torch.Tensor:
            with torch.autocast(self.device.type, enabled=False):
                return head(on_device(features_ND[index], self.device))

        return teacher

    def network(self, cell: Cell) -> torch.nn.Module:
        """A cell's model, loaded on the device, in eval mode.

        A head of another class list (a bare backbone's) is replaced by a fresh one, seeded.
        """
        torch.manual_seed(0)
        net = models.create(self.recipe.model, len(self.sets.classes))
        state = cell.state()
        weight, bias = models.head_names(net)
        if cell.artifact.kind == "weights" and self.recipe.model.head.fit:
            own = net.state_dict()
            state |= {weight: own[weight], bias: own[bias]}
        file = self.recipe.model.weights.path if cell.artifact.kind == "weights" else ""
        source = f"{file} ({cell.name})" if file else cell.name
        return models.load_state(net, state, source).to(self.device).eval()

    def fisher(self, images: int, labels: str) -> Mapping[str, torch.Tensor]:
        """Diagonal Fisher of the base model on the upstream training split, by parameter name."""
        key = {
            "model": self.base.name,
            "pack": self.upstream.pack.fingerprint,
            "split": self.upstream.split_key(self.recipe.dataset),
            "images": images,
            "labels": labels,
            "batch_size": self.recipe.train.batch_size,  # labels are drawn batch by batch
            "machine": self.machine,
        }

        def write(folder: Path) -> None:
            with self.threads():
                values = fisher.diagonal(self, images, labels)
            tensors.save(values, folder / "fisher.safetensors")

        made = ranks.first(lambda: self.store.make("fisher", self.recipe.model.name, key, write))
        return load_file(made.checked("fisher.safetensors"))

    def holdout_accuracy(self, mix: Mapping[str, float]) -> float:
        """Top-1 in percent of a mix on the downstream hold-out."""
        return passes.holdout_accuracy(self, mix)

    def _find(self, kind: str, label: str, key: Mapping[str, Any]) -> Artifact | None:
        found = self.store.find(kind, label, key)
        return found if ranks.all_agree(found is not None) else None
