"""Run: the recipe, device, datasets, store and base model of a cell, read by all stages."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from engine import models
from engine.data.sets import LabelledSet, Sets
from engine.machine import precision, ranks
from engine.machine.devices import cpu_threads
from engine.recipe.schema import Recipe
from engine.store.artifacts import Artifact, Store
from engine.store.cells import Cell
from loaders.files import locks

log = logging.getLogger(__name__)


class Run:
    """A resolved recipe with its device, datasets and store."""

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        sets: Sets,
        store: Store,
        start: Cell | None = None,
        *,
        shares_features: bool = True,
    ) -> None:
        """start: the model that the cell starts from, with a head for the upstream classes.

        shares_features: whether models with its backbone are evaluated on its stored features.
        """
        self.recipe, self.device, self.sets, self.store = recipe, device, sets, store
        self.start, self.shares_features = start, shares_features

    @cached_property
    def base(self) -> Cell:
        """The pretrained model."""
        assert self.start is not None, "a builder makes it"
        return self.start

    @property
    def target(self) -> LabelledSet:
        """The downstream dataset."""
        return self.sets[self.recipe.downstream]

    @property
    def upstream(self) -> LabelledSet:
        """The upstream dataset, or what the cell trains on in place of one."""
        return self.sets[self.recipe.upstream]

    @property
    def autocast(self) -> torch.autocast:
        """Autocast for training: bf16 if the recipe or the device requires it."""
        return precision.autocast(self.recipe.train.precision, self.device)

    @property
    def machine(self) -> dict[str, Any]:
        """Properties of the machine that change the bits of results; part of artefacts' keys.

        A cell's versions file records the CPU and the number of ranks.
        """
        if self.device.type == "cpu":
            return {"device": "cpu", "threads": self.recipe.threads}
        return {"device": self.device.type}

    def find(self, kind: str, label: str, key: Mapping[str, Any]) -> Artifact | None:
        """Returns a finished artefact, or None if any rank lacks it; all ranks then make it."""
        artifact = self.store.find(kind, label, key)
        return artifact if ranks.all_agree(artifact is not None) else None

    def make(
        self,
        kind: str,
        label: str,
        key: Mapping[str, Any],
        compute: Callable[[], Callable[[Path], object]],
        find: Callable[[], Artifact | None] | None = None,
    ) -> Artifact:
        """Returns the artefact of this key; if missing, one launch makes it on all its ranks.

        compute: runs on every rank and returns a function that the first rank calls to write the
        folder. find: looks on every rank, in place of `find`, for all that belongs to it.
        """
        find = find or (lambda: self.find(kind, label, key))
        if artifact := find():
            return artifact
        with self.alone(self.store.place(kind, label, key).name):
            if artifact := find():  # another launch may have made it meanwhile
                return artifact
            with self.threads():
                write = compute()
            return ranks.first(lambda: self.store.make(kind, label, key, write))

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Excludes other launches, also on other machines, from the work `name`; they find it done
        when they get there.

        All ranks enter; rank 0 holds the lock.
        """
        path = self.store.root / "locks" / name
        with ExitStack() as stack:

            def lock() -> None:
                if ranks.rank() == 0:
                    stack.enter_context(locks.held(path, wait, self.store.files))

            def wait() -> None:
                log.info("%s: waiting for another launch (%s)", name, locks.holder(path))

            ranks.first(lock)
            yield

    def threads(self) -> AbstractContextManager[None]:
        """Use the recipe's number of CPU threads, whatever the launcher set."""
        return nullcontext() if self.device.type != "cpu" else cpu_threads(self.recipe.threads)

    def network(self, cell: Cell) -> torch.nn.Module:
        """A cell's model on the device, in eval mode.

        If `model.head.fit`, the head of pretrained weights is replaced by a new one with seeded
        random weights.
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
