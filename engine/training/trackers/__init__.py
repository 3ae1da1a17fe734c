"""Log metrics to a module of this package, such as `wandb`, or to a user's class.

`trackers=[wandb]` enables them. A cell has one run per tracker, which its training and its
evaluation log to. A tracker that raises an error is dropped with a warning, and training continues.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.machine import ranks
from engine.measures.rows import robustness_improvement
from engine.recipe import finder
from engine.recipe.effects import values_of
from engine.recipe.overrides import flat
from engine.recipe.schema import Affects, MethodRecipe, Recipe
from engine.training.trackers.base import Subject
from loaders.files.durable import short_digest

log = logging.getLogger(__name__)


class Trackers:
    """A cell's run in each of its recipe's trackers, as a context manager that closes them.

    Only rank 0 has trackers.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._trackers: dict[str, Any] = {}
        for name in recipe.trackers if ranks.rank() == 0 else ():
            with self._softly(name):
                self._trackers[name] = _kind_of(name)(subject(recipe))

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for name, tracker in list(self._trackers.items()):
            with self._softly(name):
                close = tracker.close if error is None else getattr(tracker, "fail", tracker.close)
                close()

    def log(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log values by name, such as `train/loss`. step: the optimizer step, or None."""
        for name, tracker in list(self._trackers.items()):
            with self._softly(name):
                tracker.log(values, step)

    @contextlib.contextmanager
    def _softly(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a tracker raises, training continues
            self._trackers.pop(name, None)
            is_missing = isinstance(error, ModuleNotFoundError)
            cure = _cure(name, error.name) if is_missing and error.name else ""
            log.warning("training continues without trackers=%s: %s%s", name, error, cure)


def _kind_of(name: str) -> Callable[[Subject], Any]:
    """The class of a tracker. Runs a user's file."""
    if ":" not in name:
        return importlib.import_module(f"{__name__}.{name}").Tracker
    file, _, kind = name.rpartition(":")
    if not finder.is_users(file):
        return pkgutil.resolve_name(name)
    with finder.allow_users_files():
        return getattr(finder.run(file), kind)


def _cure(name: str, missing: str) -> str:
    """What to do about a module that a tracker lacks."""
    if ":" not in name:
        return f"; pip install {missing}"
    module, _, kind = name.rpartition(":")
    if missing != module.partition(".")[0]:
        return ""
    return f"; name a file of yours by its path, as in trackers=[{missing}.py:{kind}]"


def subject(recipe: Recipe) -> Subject:
    """The run of a recipe's cell, named after the method's options, learning rate and seed."""
    config = flat(dataclasses.asdict(recipe))
    shared = {field.name for field in dataclasses.fields(MethodRecipe)}
    options = {k: v for k, v in vars(recipe.method).items() if k not in shared}
    options |= {"lr": recipe.optimizer.lr, "seed": recipe.seed}
    words = " ".join(f"{key}={value}" for key, value in options.items())
    of_cell = values_of(recipe, set(Affects) - {Affects.NOTHING})
    number = short_digest([recipe.campaign, of_cell, str(Path(recipe.runs).resolve())])
    name = f"{recipe.method.title} on {recipe.downstream} {words} {number[:6]}"
    return Subject(recipe.campaign or "cells", name, number, config, Path(recipe.runs))


def log_accuracies(recipe: Recipe, rows: Mapping[str, Sequence[Any]]) -> None:
    """Log a cell's accuracies (percent), and its RI (percentage points).

    rows: by dataset, the objects with the `accuracy_pct` before and after training.
    """
    before, after = ({name: row[k].accuracy_pct for name, row in rows.items()} for k in (0, 1))
    values = {f"accuracy/{name}": value for name, value in after.items()}
    values |= {f"accuracy before/{name}": value for name, value in before.items()}
    if not {*recipe.dataset.sets} <= {*recipe.trained_sets}:
        sets = recipe.dataset.sets
        values["RI"] = robustness_improvement(recipe.downstream, after, before, sets)
    with Trackers(recipe) as trackers:
        trackers.log(values)
