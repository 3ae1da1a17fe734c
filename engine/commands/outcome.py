"""What a finished cell means, in the terminal: accuracy on every set before and after training."""

from __future__ import annotations

import numpy as np

from engine.evaluation import passes, splits
from engine.machine import ranks
from engine.measures import bootstrap, metrics
from engine.measures.predictions import SetPredictions
from engine.report import console
from engine.report.text import rounded
from engine.run import Run
from engine.store.cells import Average, Cell
from engine.training import trackers


def show(run: Run, cell: Cell) -> None:
    """Evaluate a cell's headline model and the pre-trained one on every set; print both and RI."""
    recipe = run.recipe
    sets, downstream = recipe.dataset.sets, recipe.downstream
    headline = next(entry for entry in cell.entries if entry.headline)
    models: dict[str, Average] = {"before": {run.base.name: 1.0}, "after": headline.mix}
    names = [*sets, recipe.dataset.upstream]
    places = {name: splits.split_of(recipe, name) for name in names}
    for name, split in places.items():
        passes.evaluate(run, list(models.values()), [name], split)
    if ranks.rank():
        return
    accuracy: dict[str, dict[str, float]] = {"before": {}, "after": {}}
    images, draws = {}, {}
    for name, split in places.items():
        bank, right = SetPredictions(), {}
        for when, average in models.items():
            seen = bank.add(passes.predicted(run, average, name, split))
            accuracy[when][name] = seen.accuracy
            right[when] = bank.by_source(seen.hit)
        images[name] = len(bank.images)
        draws[name] = change_draws(bank, right["after"] - right["before"])
    trackers.log_accuracies(recipe, accuracy["before"], accuracy["after"])
    judged = [name for name in sets if name != downstream]
    rows = []
    for name in places:
        before, after = accuracy["before"][name], accuracy["after"][name]
        numbers = f"{before:.1f}", f"{after:.1f}", f"{after - before:+.1f}"
        mark = "" if name in judged else "*"
        rows.append([name, f"{images[name]}", *numbers, _half_width(draws[name], 1), mark])
    title = f"{recipe.method.title} ({recipe.method.variant}) on {downstream}, percent top-1"
    print(console.text(title, ["set", "images", "before", "after", "change", "95%", ""], rows))
    if downstream in sets and judged:
        ri = metrics.robustness_improvement(downstream, accuracy["after"], accuracy["before"], sets)
        width = _half_width(np.mean([draws[name] for name in judged], axis=0), 2)
        print(f"RI {ri:+.2f} {width} points, the mean change over the sets without *")
    print("±: half the width of the 95% interval over source images; all sets are drawn together")
    print(f"cell  {cell.artifact.folder}")


def change_draws(bank: SetPredictions, change: np.ndarray) -> np.ndarray:
    """Draws [B] of the change in accuracy in points, from its sum over each source's images. All
    sets are drawn together."""
    counts = bootstrap.counts(bank.sources)
    return 100 * bootstrap.means(counts, bank.total, change[:, None])[:, 0]


def _half_width(samples: np.ndarray, digits: int) -> str:
    low, high = bootstrap.interval(samples)
    return f"±{rounded((high - low) / 2, digits)}"
