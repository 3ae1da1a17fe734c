"""Accuracies in trackers (`trackers=`): a run a fine-tuned model, in the group of its campaign."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from engine.machine.trackers import Subject, Trackers
from engine.measures.rows import Accuracy
from engine.recipe.schema import Recipe


def accuracies(recipe: Recipe, rows: Iterable[Accuracy]) -> None:
    """Log the accuracies (percent) of the rows that tables show; `recipe` names the trackers."""
    if not recipe.trackers:
        return
    models: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.headline:
            name = f"{row.arm} on {row.downstream}" if row.downstream else str(row.arm)
            models.setdefault(name, {})[row.evaluated_on] = row.accuracy
    for name, values in models.items():
        accuracy(recipe, name, values)


def accuracy(recipe: Recipe, name: str, values: Mapping[str, float]) -> None:
    """Log a model's accuracies (percent), by the set that it was evaluated on."""
    subject = Subject(recipe.campaign or "cells", f"{name}: accuracy", {}, Path(recipe.runs))
    with Trackers(recipe.trackers, lambda: subject) as tracked:
        tracked.log({f"accuracy/{place}": value for place, value in values.items()}, 0)
