"""A finished campaign's rows on sets that it did not know: all its models, found and not trained.

The record names a file of predictions for every row, and the file names the cells of its model. The
campaign's own numbers stay as they are: a new set is no part of RI.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from engine.data.sets import Sets
from engine.evaluation import passes, user_models
from engine.grid.record import FinishedCampaign
from engine.machine.files import cache_folder
from engine.measures import bootstrap, metrics, predictions
from engine.measures.rows import PRE, Accuracy, Evaluation
from engine.recipe.request import Request
from engine.run import Run
from engine.store.artifacts import Store


@dataclass(frozen=True)
class OnOwnSet(Accuracy):
    """A row's accuracy on a user's set, and its change from the pre-trained model's, in points.

    change_low, change_high: the change's 95% interval over source images (the population:
    `bootstrap`), if asked for; error: the Monte-Carlo standard error of its ends. mask and
    classes: as in `user_models.ModelAccuracy`.
    """

    change: float | None = None
    change_low: float | None = None
    change_high: float | None = None
    error: float = 0.0
    mask: str = "none"
    classes: int = 0


def judged(
    campaign: FinishedCampaign,
    request: Request,
    places: Mapping[str, Path],
    device: torch.device,
    *,
    mask: str = "none",
    intervals: bool = False,
) -> list[OnOwnSet]:
    """Every row of a finished campaign on every set; the pre-trained model comes first.

    `places`: by name, folders with <class>/<image>, or packs. Raises ValueError for a set of the
    campaign's name, for classes that the head lacks, and for cells or predictions that are gone.
    """
    record = campaign.record
    for name in places:
        if name in (record.upstream, *record.sets):
            raise ValueError(
                f"{name} is a set of the campaign, whose numbers are in {campaign.report}; name "
                f"another set otherwise, as in --sets NAME={places[name]}"
            )
    models = {(row.arm, row.downstream, row.seed): row for row in campaign.evaluations}.values()
    mixes = [predictions.mix_of(model.path) for model in models]
    wanted = request.recipe()
    packs = {name: user_models.pack_at(wanted, place) for name, place in places.items()}
    store = Store(Path(wanted.runs) / "store")
    cells = {name: passes.stored_cell(store, name) for mix in mixes for name in mix}
    heads = [cell.meta["classes"] for cell in cells.values() if "classes" in cell.meta]
    head = heads[0] if heads else Sets(wanted, device, cache_folder()).classes
    sets = Sets(wanted, device, cache_folder(), packs, head, mask)
    user_models.check(sets, packs)
    pre_trained = next(mix for row, mix in zip(models, mixes, strict=True) if row.method == PRE)
    run = Run(wanted, device, sets, store, cells[next(iter(pre_trained))])
    rows = []
    for name in packs:
        passes.evaluate(run, mixes, [name], "all")
        evaluations = [
            replace(row, evaluated_on=name, path=passes.predicted(run, mix, name, "all"))
            for row, mix in zip(models, mixes, strict=True)
        ]
        how, classes = user_models.answers(sets, name)
        rows += _rows(evaluations, how, classes, intervals)
        sets.release(name)
    return rows


def _rows(
    evaluations: Sequence[Evaluation], mask: str, classes: int, intervals: bool
) -> list[OnOwnSet]:
    """The rows of one set."""
    grid = metrics.gather(evaluations)
    ((name, bank),) = grid.predictions.items()
    before, *after = sorted(grid.accuracy, key=lambda row: row.method != PRE)
    ends: list[tuple[float | None, float | None, float]] = [(None, None, 0.0)] * (1 + len(after))
    if intervals:
        start = bank.sums((before.arm, ""), grid.seeds)
        sums = [bank.sums((row.arm, row.downstream), grid.seeds) - start for row in after]
        columns = {name: np.stack(sums, axis=-1)}
        draws = metrics.settled_draws(grid.predictions, columns)
        ends[1:] = [bootstrap.ends(samples) for samples in draws.T]
    rows = []
    for row, end in zip([before, *after], ends, strict=True):
        change = None if row is before else row.accuracy - before.accuracy
        rows.append(
            OnOwnSet(*row.key, row.n, row.accuracy, row.headline, change, *end, mask, classes)
        )
    return rows
