"""Accuracies of a user's models, from a CSV file: what trend lines can be fitted over."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.errors import nearest

COLUMNS = ("model", "set", "accuracy")


@dataclass(frozen=True)
class ModelRows:
    """Accuracy in percent by model and set; every model has the upstream set and a further one."""

    source: str
    upstream: str
    accuracy: dict[str, dict[str, float]]

    def points(self, name: str) -> np.ndarray:
        """float64 [2, F]: accuracy upstream and on a set, of the models that have both."""
        rows = [sets for sets in self.accuracy.values() if name in sets]
        return np.array([[sets[on] for sets in rows] for on in (self.upstream, name)])


def read(path: Path, sets: Sequence[str], upstream: str) -> ModelRows:
    """The rows of a CSV file with the columns `COLUMNS`, a row a model and set.

    `accuracy` is top-1 in percent; further columns are not read. Raises ValueError naming file,
    line and remedy for a file that cannot be read or lacks a column, an accuracy that is no number
    from 0 to 100, accuracies that are all shares of 1, a set that the campaign does not have, a
    row that is given twice, and a model without the upstream set or without any other.
    """
    places = (upstream, *sets)
    accuracy: dict[str, dict[str, float]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
                raise ValueError(
                    f"{path} lacks the column {', '.join(missing)}: its first line must name "
                    f"{', '.join(COLUMNS)}"
                )
            for row in reader:
                model, name, percent = _checked(row, f"{path}, line {reader.line_num}", places)
                if name in accuracy.setdefault(model, {}):
                    raise ValueError(
                        f"{path}, line {reader.line_num}: {model} on {name} is given twice; leave "
                        "one of the rows"
                    )
                accuracy[model][name] = percent
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a CSV file in UTF-8 ({error})") from error
    if not accuracy:
        raise ValueError(f"{path} holds no models: give a line for each model and set")
    if max(max(sets.values()) for sets in accuracy.values()) <= 1:
        raise ValueError(f"{path}: every accuracy is at most 1; give percent, from 0 to 100")
    for model, on in accuracy.items():
        if upstream not in on or len(on) < 2:
            lacks = "any other set" if upstream in on else f"the upstream set, {upstream}"
            raise ValueError(f"{path}: {model} has no accuracy on {lacks}; add that row")
    return ModelRows(path.name, upstream, accuracy)


def _checked(
    row: dict[str, str | None], place: str, places: Sequence[str]
) -> tuple[str, str, float]:
    """Model, set and accuracy of a row."""
    model, name, text = ((row[column] or "").strip() for column in COLUMNS)
    if not model:
        raise ValueError(f"{place}: the model has no name")
    if name not in places:
        raise ValueError(f"{place}: the campaign has no set {name!r}{nearest(name, places)}")
    try:
        percent = float(text)
    except ValueError:
        percent = math.nan
    if not 0 <= percent <= 100:
        raise ValueError(f"{place}: accuracy {text!r} is no number from 0 to 100 (percent)")
    return model, name, percent
