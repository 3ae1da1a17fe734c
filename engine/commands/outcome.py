"""What a finished cell means, in the terminal: accuracy on every set beside the pre-trained one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from engine.evaluation import sample
from engine.machine import ranks
from engine.measures import bootstrap, metrics, predictions
from engine.measures.standings import rounded
from engine.run import Run
from engine.store.cells import Cell, Mix


def show(run: Run, cell: Cell) -> None:
    """Evaluate a cell's headline model and the pre-trained one on every set; print both and RI."""
    recipe = run.recipe
    headline = next(entry for entry in cell.entries if entry.headline)
    pre_trained: Mix = {run.base.name: 1.0}
    names = [*recipe.dataset.sets, recipe.dataset.upstream]
    splits = {name: sample.split_of(recipe, name) for name in names}
    samples = sample.draw(run, splits)
    for name, split in splits.items():
        mixes = [pre_trained, headline.mix]
        sample.evaluate_on(run, mixes, name, split, samples.get(name))
    if ranks.rank():
        return
    print(f"{recipe.method.title} ({recipe.method.variant}) on {recipe.downstream}, percent top-1")
    print(f"{'set':<20}{'images':>8}{'before':>9}{'after':>9}{'change':>9}{'95%':>8}")
    banks: dict[str, predictions.SetPredictions[str]] = {}
    accuracy: dict[str, dict[str, float]] = {"before": {}, "after": {}}
    for name, split in splits.items():
        bank = banks[name] = predictions.SetPredictions()
        for when, mix in (("before", pre_trained), ("after", headline.mix)):
            path = sample.predicted(run, mix, name, split, samples.get(name))
            accuracy[when][name] = bank.add(when, path).accuracy
    changes = change_draws(banks)
    for name, bank in banks.items():
        pre, post = accuracy["before"][name], accuracy["after"][name]
        mark = " *" if name == recipe.downstream else ""
        half = _half(changes[name], 1)
        row = f"{name:<20}{len(bank.images):>8}{pre:>9.1f}{post:>9.1f}{post - pre:>+9.1f}{half:>8}"
        print(row + mark)
    others = [name for name in recipe.dataset.sets if name != recipe.downstream]
    if recipe.downstream in recipe.dataset.sets and others:
        ri = metrics.robustness_improvement(
            recipe.downstream, accuracy["after"], accuracy["before"], recipe.dataset.sets
        )
        half = _half(np.mean([changes[name] for name in others], axis=0), 2)
        print(f"RI {ri:+.2f} {half} points over the sets without *, which was trained on")
    print("±: half the width of the 95% interval over source images; all sets are drawn together")
    print(f"cell  {cell.artifact.folder}")


def _half(samples: np.ndarray, digits: int) -> str:
    ends = bootstrap.ends(samples)
    return f"±{rounded(ends.half_width, ends.error / math.sqrt(2), digits)}"


def change_draws(banks: Mapping[str, predictions.SetPredictions[str]]) -> dict[str, np.ndarray]:
    """Joint draws [B], by set, of the change from `before` to `after` in points; so many that
    Monte-Carlo error leaves a `metrics.DIGIT` of their intervals, or `metrics.MOST`."""
    columns = {
        name: (bank.sums("after", [0]) - bank.sums("before", [0]))[:, :, None]
        for name, bank in banks.items()
    }
    return dict(zip(banks, metrics.settled_draws(banks, columns).T, strict=True))
