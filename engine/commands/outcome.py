"""What a finished cell means, in the terminal: accuracy on every set before and after training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from engine.evaluation import sample
from engine.machine import ranks
from engine.measures import bootstrap, metrics
from engine.measures.predictions import SetPredictions
from engine.measures.standings import rounded
from engine.report import console
from engine.run import Run
from engine.store.cells import Cell, Mix
from engine.training import trackers


def show(run: Run, cell: Cell) -> None:
    """Evaluate a cell's headline model and the pre-trained one on every set; print both and RI."""
    recipe = run.recipe
    sets, downstream = recipe.dataset.sets, recipe.downstream
    headline = next(entry for entry in cell.entries if entry.headline)
    models: dict[str, Mix] = {"before": {run.base.name: 1.0}, "after": headline.mix}
    splits = {name: sample.split_of(recipe, name) for name in [*sets, recipe.dataset.upstream]}
    samples = sample.draw(run, splits)
    for name, split in splits.items():
        sample.evaluate_on(run, models.values(), name, split, samples.get(name))
    if ranks.rank():
        return
    banks: dict[str, SetPredictions[str]] = {}
    accuracy: dict[str, dict[str, float]] = {"before": {}, "after": {}}
    for name, split in splits.items():
        bank = banks[name] = SetPredictions()
        for when, mix in models.items():
            path = sample.predicted(run, mix, name, split, samples.get(name))
            accuracy[when][name] = bank.add(when, path).accuracy
    trackers.log_accuracies(recipe, accuracy["before"], accuracy["after"])
    draws = change_draws(banks)
    judged = [name for name in sets if name != downstream]
    rows = []
    for name, bank in banks.items():
        before, after = accuracy["before"][name], accuracy["after"][name]
        numbers = f"{before:.1f}", f"{after:.1f}", f"{after - before:+.1f}"
        mark = "" if name in judged else "*"
        rows.append([name, f"{len(bank.images)}", *numbers, _half_width(draws[name], 1), mark])
    title = f"{recipe.method.title} ({recipe.method.variant}) on {downstream}, percent top-1"
    print(console.text(title, ["set", "images", "before", "after", "change", "95%", ""], rows))
    if downstream in sets and judged:
        ri = metrics.robustness_improvement(downstream, accuracy["after"], accuracy["before"], sets)
        width = _half_width(np.mean([draws[name] for name in judged], axis=0), 2)
        print(f"RI {ri:+.2f} {width} points, the mean change over the sets without *")
    print("±: half the width of the 95% interval over source images; all sets are drawn together")
    print(f"cell  {cell.artifact.folder}")


def change_draws(banks: Mapping[str, SetPredictions[str]]) -> dict[str, np.ndarray]:
    """Joint draws [B], by set, of the change from `before` to `after` in points."""
    changes = {name: (b.sums("after", [0]) - b.sums("before", [0]))[0] for name, b in banks.items()}
    return {
        name: 100 * bootstrap.means(bank.sources, bank.total, changes[name][:, None])[:, 0]
        for name, bank in banks.items()
    }


def _half_width(samples: np.ndarray, digits: int) -> str:
    low, high = bootstrap.interval(samples)
    return f"±{rounded((high - low) / 2, digits)}"
