"""All models of a finished campaign on a user's sets. Nothing is trained.

The record names a file of predictions for every row, and its artefact names the cells of its model.
The campaign's numbers stay as they are: a new set is no part of RI.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from engine.data.sets import Sets
from engine.evaluation import passes, user_models
from engine.grid import export
from engine.grid.record import FinishedCampaign
from engine.machine.files import cache_folder
from engine.measures import bootstrap, dynamics, metrics, predictions
from engine.measures.rows import PRE, Accuracy, Evaluation
from engine.run import Run
from engine.store.artifacts import Store


@dataclass(frozen=True)
class OnUsersSet(Accuracy):
    """A row's accuracy on a user's set, and its change from the pre-trained model's, in points.

    change_low, change_high: the change's 95% interval over source images (the population:
    `bootstrap`), or None. mask and classes: as in `user_models.ModelAccuracy`.
    """

    change: float | None = None
    change_low: float | None = None
    change_high: float | None = None
    mask: str = "none"
    classes: int = 0


def evaluate(
    campaign: FinishedCampaign,
    places: Mapping[str, Path],
    device: torch.device,
    *,
    mask: str = "none",
    intervals: bool = False,
) -> list[OnUsersSet]:
    """Every row of a finished campaign on every set; the pre-trained model comes first.

    Snapshots are left out: their weights may be gone.

    `places`: by name, folders with <class>/<image>, or packs. Raises ValueError for a name of the
    campaign's sets, classes that the head lacks, and missing predictions; FileNotFoundError for
    missing cells.
    """
    record = campaign.record
    for name in places:
        if name in (record.upstream, *record.sets):
            raise ValueError(
                f"{name} is a set of the campaign, whose numbers are in {campaign.report}; give "
                f"this set another name, as in --sets NAME={places[name]}"
            )
    finished = [row for row in campaign.evaluations if dynamics.step_of(row.arm) is None]
    models = {(row.arm, row.downstream, row.seed): row for row in finished}.values()
    mixes = [predictions.mix_of(row.path) for row in models]
    resolved = campaign.plan.recipe
    packs = {name: user_models.pack_at(resolved, place) for name, place in places.items()}
    store = Store(campaign.store)
    cells = {name: passes.stored_cell(store, name) for mix in mixes for name in mix}
    head = export.description_of(cells.values(), resolved).classes or ()
    sets = Sets(resolved, device, cache_folder(), packs, head, mask)
    user_models.check(sets, packs)
    base = next(
        name for row, mix in zip(models, mixes, strict=True) if row.method == PRE for name in mix
    )
    run = Run(resolved, device, sets, store, cells[base])
    rows = []
    for name in packs:
        passes.evaluate(run, mixes, [name], "all")
        evaluations = [
            replace(row, evaluated_on=name, path=passes.predicted(run, mix, name, "all"))
            for row, mix in zip(models, mixes, strict=True)
        ]
        rows += _rows(evaluations, *user_models.answers(sets, name), intervals)
        sets.release(name)
    return rows


def _rows(
    evaluations: Sequence[Evaluation], mask: str, classes: int, intervals: bool
) -> list[OnUsersSet]:
    """The rows of one set."""
    grid = metrics.gather(evaluations, metrics.DRAWS if intervals else 1)
    before, *after = sorted(grid.accuracy, key=lambda row: row.method != PRE)
    ends: list[tuple[float | None, float | None]] = [(None, None)] * (1 + len(after))
    if intervals:
        draws = grid.draws.of([{row.cell: 1.0, before.cell: -1.0} for row in after])
        ends[1:] = [(low, high) for low, high in bootstrap.interval(draws).T.tolist()]
    rows = []
    for row, end in zip([before, *after], ends, strict=True):
        change = None if row is before else row.accuracy - before.accuracy
        rows.append(
            OnUsersSet(*row.key, row.n, row.accuracy, row.headline, change, *end, mask, classes)
        )
    return rows
