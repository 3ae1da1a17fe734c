"""Accuracies of models on datasets, whether from campaigns or from the user.

A model is an average of a store's cells with its row in tables. A dataset is a pack with a name.
Nothing is trained, and stored predictions are reused.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
import torch

from engine.data.sets import Sets
from engine.evaluation import passes
from engine.evaluation.bank import Bank
from engine.machine.files import cache_folder
from engine.measures import bootstrap, seeds
from engine.measures.predictions import SetPredictions
from engine.measures.rows import PLAIN, ModelOnSet
from engine.recipe import catalogue
from engine.recipe.schema import Recipe
from engine.run import Run
from engine.store.artifacts import Store
from engine.store.cells import Average, Cell
from loaders.pack import Pack

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluatedModel:
    """An average of cells, and its row in tables (without a dataset), shared by all seeds."""

    row: ModelOnSet
    mix: Average
    headline: bool = True

    @classmethod
    def named(cls, name: str, mix: Average, alpha: float | None = None) -> EvaluatedModel:
        """A model outside campaigns."""
        return cls(ModelOnSet(name, "", "", alpha, PLAIN, "", ""), mix)


@dataclass(frozen=True)
class OnSet(ModelOnSet):
    """Top-1 accuracy of a model on a dataset, over a number of images; a mean over seeds.

    headline: whether tables show the model's row. accuracy_low, accuracy_high: its 95% interval
    over source images (`bootstrap`), or None. change_pts: from the first model's accuracy, with its
    interval; None for the first model. classes: number of possible predictions; mask: `none`, or
    `present` if only the dataset's classes are possible.
    """

    images: int
    accuracy_pct: float
    headline: bool = True
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    change_pts: float | None = None
    change_low: float | None = None
    change_high: float | None = None
    mask: str = "none"
    classes: int = 0


def evaluate(
    resolved: Recipe,
    store: Store,
    models: Sequence[EvaluatedModel],
    packs: Mapping[str, Pack],
    device: torch.device,
    *,
    base: Cell,
    classes: Sequence[str],
    mask: str = "none",
    intervals: bool = False,
    shares_features: bool = True,
) -> list[OnSet]:
    """Accuracy of every model on every dataset.

    base: the pretrained model; shares_features: whether models with its backbone are evaluated on
    its stored features. classes: the head's, in order. mask: as in `Sets`. Raises ValueError for
    classes that the head lacks, and for a model whose outputs are NaN or infinite.
    """
    published = catalogue.published_masks()
    sets = Sets(resolved, device, cache_folder(), packs, classes, mask, published)
    for name, pack in packs.items():  # check all before evaluating any
        rule = published.get(name) or published.get(pack.name)
        if sets[name].mask_rule == "none" and rule == "present":
            log.info(
                "%s: all of the head's %d classes are possible predictions; published accuracies "
                "use only the dataset's %d classes (--mask benchmark)",
                name,
                len(sets.classes),
                len(pack.classes),
            )
    run = Run(resolved, device, sets, store, base, shares_features=shares_features)
    rows, loaded = [], Bank(run)
    for name in packs:
        passes.evaluate(run, [model.mix for model in models], [name], "all", loaded)
        rows += on_set(run, models, name, "all", intervals=intervals)
        sets.release(name)
    return rows


def on_set(
    run: Run, models: Sequence[EvaluatedModel], name: str, split: str, *, intervals: bool = False
) -> list[OnSet]:
    """The models' rows on a dataset, from the store; seeds of a model share a row.

    Raises FileNotFoundError if a model was not evaluated on these images.
    """
    images = SetPredictions()
    # By row, and whether tables show it: per seed, the weights [sources] of right predictions.
    rights: dict[tuple[ModelOnSet, bool], list[np.ndarray]] = {}
    for model in models:
        row = replace(model.row, evaluated_on=name)
        try:
            seen = images.add(passes.predicted(run, model.mix, name, split))
        except ValueError as error:
            raise ValueError(f"{' '.join(str(row).split())}: {error}") from error
        rights.setdefault((row, model.headline), []).append(images.by_source(seen.hit))
    labelled = run.sets[name]
    mask, classes = "none", len(run.sets.classes)
    if labelled.mask is not None:
        mask, classes = labelled.mask_rule, int(labelled.mask.sum())
    total = images.total.sum()
    rows: list[OnSet] = []
    for (row, headline), of_seeds in rights.items():
        mean = fmean(100 * right.sum() / total for right in of_seeds)
        of_set = OnSet(*row.key, len(images.images), mean, headline, mask=mask, classes=classes)
        rows.append(replace(of_set, change_pts=mean - rows[0].accuracy_pct if rows else None))
    return _with_intervals(rows, images, list(rights.values())) if intervals else rows


def compared(run: Run, mix: Average, *, intervals: bool = False) -> dict[str, list[OnSet]]:
    """By dataset, the rows of the pretrained model and of a model of the run, from the store."""
    models = [
        EvaluatedModel.named("before", {run.base.name: 1.0}),
        EvaluatedModel.named("after", mix),
    ]
    return {
        name: on_set(run, models, name, run.recipe.split_of(name), intervals=intervals)
        for name in run.recipe.dataset.evaluated_sets
    }


def _with_intervals(
    rows: Sequence[OnSet], images: SetPredictions, rights: Sequence[Sequence[np.ndarray]]
) -> list[OnSet]:
    """The rows with intervals of accuracies and changes, from the same draws."""
    total, columns = images.total, np.column_stack([right for row in rights for right in row])
    samples = 100 * bootstrap.means(bootstrap.counts(images.sources), total, columns)
    numbers = 100 * columns.sum(axis=0) / total.sum()
    firsts = np.cumsum([len(of_seeds) for of_seeds in rights])[:-1]
    # For each row: [B, 1] and [its seeds, 1].
    draws = [each.mean(axis=1, keepdims=True) for each in np.split(samples, firsts, axis=1)]
    by_seed = [each[:, None] for each in np.split(numbers, firsts)]
    sources = np.array([total.sum() ** 2 / (total**2).sum()])
    found: list[OnSet] = []
    for row, samples, each in zip(rows, draws, by_seed, strict=True):
        value, ends = each.mean(axis=0), bootstrap.interval(samples)
        ends = bootstrap.ends_of_shares(value, samples, ends, sources)
        low, high = seeds.widened(value, ends, seeds.of_mean(each)).clip(0, 100)[:, 0].tolist()
        row = replace(row, accuracy_low=low, accuracy_high=high)
        if found:  # the first model has no change
            change, ends = each - by_seed[0], bootstrap.interval(samples - draws[0])
            ends = seeds.widened(change.mean(axis=0), ends, seeds.of_mean(change))
            row = replace(row, change_low=float(ends[0, 0]), change_high=float(ends[1, 0]))
        found.append(row)
    return found
