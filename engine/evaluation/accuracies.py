"""Models on sets: the accuracy of each on each, wherever the models and the sets come from.

A model is a mix of a store's cells with the row that it is in tables: of a campaign, or a user's
file. A set is a pack under a name: of a benchmark, or a user's folder. Nothing is trained, and what
an earlier command predicted is found.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
import torch

from engine.data.sets import Sets, names_in_head, published_among_its_classes
from engine.evaluation import passes
from engine.machine.files import cache_folder
from engine.measures import bootstrap
from engine.measures.predictions import SetPredictions
from engine.measures.rows import Accuracy, ModelOnSet
from engine.recipe.schema import Recipe
from engine.run import Run
from engine.store.artifacts import Store
from engine.store.cells import Cell, Mix
from loaders.pack import Pack

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A mix of cells, its row in tables (without a set), and the seed of its training."""

    row: ModelOnSet
    mix: Mix
    seed: int = 0
    headline: bool = True


@dataclass(frozen=True)
class OnSet(Accuracy):
    """Top-1 accuracy of a model on a set in percent, a mean over the model's seeds.

    low, high: its 95% interval over source images (the population: `bootstrap`), or None. change:
    from the first model's accuracy, in points, with its interval; None of the first model. classes:
    how many of the head's classes are possible answers; mask: `none`, or `present` where only the
    set's classes are.
    """

    low: float | None = None
    high: float | None = None
    change: float | None = None
    change_low: float | None = None
    change_high: float | None = None
    mask: str = "none"
    classes: int = 0


def evaluate(
    resolved: Recipe,
    store: Store,
    models: Sequence[Model],
    packs: Mapping[str, Pack],
    device: torch.device,
    *,
    base: Cell,
    classes: Sequence[str],
    mask: str = "none",
    intervals: bool = False,
    shares_features: bool = True,
) -> list[OnSet]:
    """Accuracy of every model on every set, set after set.

    base: the pre-trained model; shares_features: whether models of its backbone are evaluated from
    its stored features. classes: the head's, in order. mask: as of `Sets`. Raises ValueError for
    classes that the head lacks, and naming a model whose answers are no numbers.
    """
    sets = Sets(resolved, device, cache_folder(), packs, classes, mask)
    _check(sets, packs)
    run = Run(resolved, device, sets, store, base, shares_features=shares_features)
    rows = []
    for name in packs:
        passes.evaluate(run, [model.mix for model in models], [name], "all")
        rows += _rows(run, models, name, intervals)
        sets.release(name)
    return rows


def _check(sets: Sets, packs: Mapping[str, Pack]) -> None:
    """Find every set's classes in the head, before any set is evaluated.

    Raises ValueError for classes that the head lacks; logs where published accuracies have a mask.
    """
    for name, pack in packs.items():
        classes = names_in_head(pack.classes, sets.classes)
        unmasked = sets[name].mask_rule == "none"
        if unmasked and published_among_its_classes(pack, classes):
            log.info(
                "%s: any of the head's %d classes can be an answer; published accuracies are among "
                "the set's %d classes (--mask benchmark)",
                name,
                len(sets.classes),
                len(classes),
            )


def _rows(run: Run, models: Sequence[Model], name: str, intervals: bool) -> list[OnSet]:
    """The models' rows on a set, from the store; seeds of a model share a row."""
    bank = SetPredictions[ModelOnSet]()
    of_seeds: dict[ModelOnSet, list[float]] = {}
    headline = {model.row: model.headline for model in models}
    for model in models:
        try:
            seen = bank.add(model.row, passes.predicted(run, model.mix, name, "all"), model.seed)
        except ValueError as error:
            row = replace(model.row, evaluated_on=name)
            raise ValueError(f"{' '.join(str(row).split())}: {error}") from error
        of_seeds.setdefault(model.row, []).append(seen.accuracy)
    labelled, images = run.sets[name], len(bank.codes)
    mask, classes = "none", len(run.sets.classes)
    if labelled.mask is not None:
        mask, classes = labelled.mask_rule, int(labelled.mask.sum())
    means = [fmean(accuracies) for accuracies in of_seeds.values()]
    rows = []
    for model, mean in zip(of_seeds, means, strict=True):
        key = replace(model, evaluated_on=name).key
        change = mean - means[0] if rows else None
        shown = headline[model]
        row = OnSet(*key, images, mean, shown, change=change, mask=mask, classes=classes)
        rows.append(row)
    return _with_intervals(rows, bank, [*of_seeds], models) if intervals else rows


def _with_intervals(
    rows: Sequence[OnSet],
    bank: SetPredictions[ModelOnSet],
    keys: Sequence[ModelOnSet],
    models: Sequence[Model],
) -> list[OnSet]:
    """The rows with the intervals of their accuracies and changes, from the same draws."""
    seeds = sorted({model.seed for model in models if model.row.downstream}) or [0]
    sums = np.stack([bank.sums(key, seeds) for key in keys], axis=-1)  # [seeds, sources, models]
    weights = bootstrap.seed_weights(bootstrap.DRAWS, len(seeds))
    draws = np.zeros((bootstrap.DRAWS, len(rows)), np.float32)
    for weight, of_seed in zip(weights.T, sums, strict=True):
        draws += 100 * weight[:, None] * bootstrap.means(bank.sources, bank.total, of_seed)
    (low, high), (change_low, change_high) = (
        bootstrap.interval(samples).tolist() for samples in (draws, draws - draws[:, :1])
    )
    return [
        replace(
            row,
            low=low[k],
            high=high[k],
            change_low=change_low[k] if k else None,
            change_high=change_high[k] if k else None,
        )
        for k, row in enumerate(rows)
    ]
