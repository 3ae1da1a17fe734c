"""Snapshots: models during training, stored until they are evaluated.

Their weights are removed after evaluation, so a snapshot is finished once all its predictions, and
CKA if asked for, are in the store.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.evaluation import cka, passes
from engine.recipe.schema import Recipe
from engine.run import Run
from engine.store.artifacts import Artifact, Store
from engine.training.saving import snapshot_steps

KIND = "snapshots"


@dataclass(frozen=True)
class Followed:
    """The cells whose training saves snapshots, if their recipes request them.

    cells: those of a column's rows, without the cells that they need. downstreams: all downstream
    datasets of the plan.
    """

    cells: Collection[Recipe] = ()
    downstreams: Collection[str] = ()


@dataclass(frozen=True)
class Snapshot:
    """A cell's model after `step` optimizer steps. label and key identify its artefact."""

    step: int
    label: str
    key: Mapping[str, Any]

    def name(self, store: Store) -> str:
        """Its name in an average of cells."""
        return store.place(KIND, self.label, self.key).name

    def weights(self, run: Run) -> Artifact | None:
        """The artefact with its weights, or None if any rank does not find it."""
        return run.find(KIND, self.label, self.key)


def points(run: Run, downstreams: Collection[str]) -> list[int]:
    """Steps at which a grid's training curves have points, the same for all columns.

    They extend to the end of the longest training. A shorter training keeps its final value, so
    each point is a mean over all columns.
    """
    recipe = run.recipe
    totals = [recipe.train.steps(len(run.sets[name].training(recipe))) for name in downstreams]
    return snapshot_steps(recipe.train.snapshots, max(totals))


def of_cell(run: Run, downstreams: Collection[str], cell: str, total: int) -> list[Snapshot]:
    """Snapshots before the last of a cell's `total` training steps; then the model is the cell.

    cell: its name. downstreams: as in `points`.
    """
    recipe = run.recipe
    label = f"{recipe.method.name}-{recipe.downstream}"
    return [
        Snapshot(step, f"{label}-step{step}", {"cell": cell, "step": step})
        for step in points(run, downstreams)
        if step < total
    ]


def missing(run: Run, taken: Sequence[Snapshot]) -> list[Snapshot]:
    """The snapshots that need training again: a prediction or CKA is missing, and so are the
    weights."""
    without = [snapshot for snapshot in taken if snapshot.weights(run) is None]
    if not without:
        return []
    splits = {name: run.recipe.split_of(name) for name in run.recipe.dataset.evaluated_sets}

    def evaluated(snapshot: Snapshot) -> bool:
        mix = {snapshot.name(run.store): 1.0}
        found = [passes.find(run, mix, name, split) for name, split in splits.items()]
        found += [cka.find(run, mix, name) for name in splits if run.recipe.evaluate.cka]
        return None not in found

    return [snapshot for snapshot in without if not evaluated(snapshot)]
