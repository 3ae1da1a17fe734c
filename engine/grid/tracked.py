"""What the evaluation of a cell found, for the trackers of its recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.evaluation import sample
from engine.evaluation.sample import Sample
from engine.machine import ranks
from engine.measures.predictions import SetPredictions
from engine.run import Run
from engine.store.cells import Entry, Mix
from engine.training import trackers


def log(run: Run, entries: Sequence[Entry], samples: Mapping[str, Sample]) -> None:
    """Log accuracies of a cell's headline model, and of the pre-trained one, on every set."""
    recipe = run.recipe
    if not recipe.trackers or ranks.rank() > 0:
        return

    def accuracies(mix: Mix) -> dict[str, float]:
        by_set = {}
        for name in recipe.dataset.places:
            split = sample.split_of(recipe, name)
            path = sample.predicted(run, mix, name, split, samples.get(name))
            by_set[name] = SetPredictions().add(path).accuracy
        return by_set

    headline = next(entry for entry in entries if entry.headline)
    trackers.log_accuracies(recipe, accuracies({run.base.name: 1.0}), accuracies(headline.mix))
