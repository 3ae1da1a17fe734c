"""Snapshots in the store: models during training, whose weights wait there for their evaluation.

Their weights are removed once they are evaluated, so a snapshot is finished when all its
predictions are there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.evaluation import passes
from engine.recipe.schema import Recipe
from engine.run import Run
from engine.store.artifacts import Artifact, Store
from engine.training.saving import snapshot_steps

KIND = "snapshots"


@dataclass(frozen=True)
class Followed:
    """The cells whose training leaves snapshots, if their recipes ask for any.

    cells: those of a column's rows, without the cells that they need. downstreams: the sets that
    the plan fine-tunes on.
    """

    cells: Collection[Recipe] = ()
    downstreams: Collection[str] = ()


@dataclass(frozen=True)
class Snapshot:
    """A cell's model after `step` optimizer steps; label and key name its artefact."""

    step: int
    label: str
    key: Mapping[str, Any]

    def name(self, store: Store) -> str:
        """Its name in a mix."""
        return store.place(KIND, self.label, self.key).name

    def weights(self, run: Run) -> Artifact | None:
        """The artefact of its weights, or None unless every rank finds it."""
        return run.find(KIND, self.label, self.key)


def points(run: Run, downstreams: Collection[str]) -> list[int]:
    """The steps of a grid's curves, the same in every column (`downstreams`): the last is the
    longest training's.

    A column whose training ends earlier stays at its end, so each point is a mean over all columns.
    """
    recipe = run.recipe
    totals = [recipe.train.steps(len(run.sets[name].training(recipe))) for name in downstreams]
    return snapshot_steps(recipe.train.snapshots, max(totals))


def of_cell(run: Run, downstreams: Collection[str], cell: str, total: int) -> list[Snapshot]:
    """The snapshots that a run's recipe takes of a cell (its name), which takes `total` steps.

    downstreams: as in `points`. From the last step on, the model is the cell itself.
    """
    recipe = run.recipe
    label = f"{recipe.method.name}-{recipe.downstream}"
    return [
        Snapshot(step, f"{label}-step{step}", {"cell": cell, "step": step})
        for step in points(run, downstreams)
        if step < total
    ]


def missing(run: Run, taken: Sequence[Snapshot]) -> list[Snapshot]:
    """Those that only training can give: some prediction is missing, and so are the weights."""
    without = [snapshot for snapshot in taken if snapshot.weights(run) is None]
    if not without:
        return []
    splits = {name: run.recipe.split_of(name) for name in run.recipe.dataset.evaluated_sets}

    def evaluated(snapshot: Snapshot) -> bool:
        mix = {snapshot.name(run.store): 1.0}
        return all(passes.find(run, mix, name, split) is not None for name, split in splits.items())

    return [snapshot for snapshot in without if not evaluated(snapshot)]
