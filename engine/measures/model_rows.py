"""Accuracies of a user's models, from a CSV file: what trend lines can be fitted over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas

from engine.errors import nearest

COLUMNS = ["model", "set", "accuracy"]


@dataclass(frozen=True, eq=False)
class ModelRows:
    """Accuracy in percent, a row a model and a column a set; every model has the upstream set and a
    further one."""

    upstream: str
    accuracy: pandas.DataFrame

    def points(self, name: str) -> np.ndarray:
        """float64 [2, F]: accuracy upstream and on a set, of the models that have both."""
        if name not in self.accuracy:
            return np.empty((2, 0))
        return self.accuracy[[self.upstream, name]].dropna().to_numpy().T


def read(path: Path, sets: Sequence[str], upstream: str) -> ModelRows:
    """The rows of a CSV file with the columns `COLUMNS`, a row a model and set.

    `accuracy` is top-1 in percent; further columns are not read. Raises ValueError naming file,
    line and remedy for a file that cannot be read or lacks a column, an accuracy that is no number
    from 0 to 100, accuracies that are all shares of 1, a set that the campaign does not have, a
    row that is given twice, and a model without the upstream set or without any other.
    """
    places = (upstream, *sets)
    try:
        rows = pandas.read_csv(
            path, dtype=str, keep_default_na=False, encoding="utf-8-sig", skip_blank_lines=False
        )
    except pandas.errors.EmptyDataError:
        rows = pandas.DataFrame()
    except (OSError, UnicodeDecodeError, pandas.errors.ParserError) as error:
        raise ValueError(f"{path} cannot be read as a CSV file in UTF-8 ({error})") from error
    if missing := [name for name in COLUMNS if name not in rows]:
        raise ValueError(
            f"{path} lacks the column {', '.join(missing)}: its first line must name "
            f"{', '.join(COLUMNS)}"
        )
    rows = rows[COLUMNS].fillna("").apply(lambda column: column.str.strip())
    rows = rows[(rows != "").any(axis=1)]
    percent = pandas.to_numeric(rows["accuracy"], errors="coerce")
    for wrong, why in (
        (rows["model"] == "", lambda row: "the model has no name"),
        (
            ~rows["set"].isin(places),
            lambda row: f"the campaign has no set {row.set!r}{nearest(row.set, places)}",
        ),
        (
            ~percent.between(0, 100),
            lambda row: f"accuracy {row.accuracy!r} is no number from 0 to 100 (percent)",
        ),
        (
            rows.duplicated(["model", "set"]),
            lambda row: f"{row.model} on {row.set} is given twice; leave one of the rows",
        ),
    ):
        if wrong.any():
            line = int(wrong.to_numpy().argmax())
            at = int(rows.index.to_numpy()[line]) + 2
            raise ValueError(f"{path}, line {at}: {why(rows.iloc[line])}")
    if rows.empty:
        raise ValueError(f"{path} holds no models: give a line for each model and set")
    if percent.max() <= 1:
        raise ValueError(f"{path}: every accuracy is at most 1; give percent, from 0 to 100")
    table = rows.assign(accuracy=percent).pivot(index="model", columns="set", values="accuracy")
    for model, of_model in table.iterrows():
        known = set(of_model.dropna().index)
        if upstream not in known or len(known) < 2:
            lacks = "any other set" if upstream in known else f"the upstream set, {upstream}"
            raise ValueError(f"{path}: {model} has no accuracy on {lacks}; add that row")
    return ModelRows(upstream, table)
