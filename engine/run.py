"""Run: what a cell works with. Training, evaluation and the Fisher read it; it makes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine import models
from engine.data.sets import LabelledSet, Sets
from engine.machine import precision, ranks, threads
from engine.recipe.schema import Recipe
from engine.store.alone import alone
from engine.store.artifacts import Artifact, Store
from engine.store.cells import Cell


@dataclass(frozen=True)
class Run:
    """A resolved recipe and where its work happens.

    base: the pre-trained model that the cell starts from, with a head for the upstream classes.
    shares_features: models that share its backbone are evaluated from its stored features.
    """

    recipe: Recipe
    device: torch.device
    sets: Sets
    store: Store
    base: Cell
    shares_features: bool = True

    @property
    def target(self) -> LabelledSet:
        """The set that is trained on."""
        return self.sets[self.recipe.downstream]

    @property
    def upstream(self) -> LabelledSet:
        return self.sets[self.recipe.dataset.upstream]

    @property
    def autocast(self) -> torch.autocast:
        """Autocast for training: bf16 where the recipe or the device asks for it."""
        return precision.autocast(self.recipe.train.precision, self.device)

    @property
    def machine(self) -> dict[str, Any]:
        """What is known of the machine in advance and changes bits; part of every artefact's key.

        The processor and the number of ranks stand in the versions file of a cell.
        """
        if self.device.type == "cpu":
            return {"device": "cpu", "threads": self.recipe.threads}
        return {"device": self.device.type}

    def find(self, kind: str, label: str, key: Mapping[str, Any]) -> Artifact | None:
        """A finished artefact, or None unless every rank finds it: all then make it together."""
        artifact = self.store.find(kind, label, key)
        return artifact if ranks.all_agree(artifact is not None) else None

    def make(
        self,
        kind: str,
        label: str,
        key: Mapping[str, Any],
        compute: Callable[[], Callable[[Path], object]],
    ) -> Artifact:
        """The artefact of this key; where there is none, one launch makes it on all its ranks.

        compute: works on every rank and returns what writes a folder on the first. Raises
        FileNotFoundError where the artefact is missing from a store that only finds.
        """
        if artifact := self.find(kind, label, key):
            return artifact
        self.store.check_makes(kind, label, key)
        with alone(self.store, self.store.place(kind, label, key).name):
            if artifact := self.find(kind, label, key):
                return artifact  # another launch made it meanwhile
            with self.threads():
                write = compute()
            return ranks.first(lambda: self.store.make(kind, label, key, write))

    def threads(self) -> AbstractContextManager[None]:
        """Compute on the recipe's number of CPU threads, whatever a launcher allows."""
        return nullcontext() if self.device.type != "cpu" else threads.threads(self.recipe.threads)

    def network(self, cell: Cell) -> torch.nn.Module:
        """A cell's model, loaded on the device, in eval mode.

        The head of a bare backbone, which has other classes, is replaced by a seeded new head.
        """
        torch.manual_seed(0)
        model = self.recipe.model
        net = models.create(model, len(self.sets.classes))
        state, file = cell.state(), ""
        if cell.artifact.kind == "weights":
            file = model.weights.path
            if model.head.fit:
                fresh = net.state_dict()
                state |= {name: fresh[name] for name in models.head_names(model)}
        source = f"{file} ({cell.name})" if file else cell.name
        return models.load_state(net, state, source).to(self.device).eval()
