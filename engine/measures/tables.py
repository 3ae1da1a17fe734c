"""Tables of results: their rows, and CSV files of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas

from engine.machine import files
from loaders.root import Root


def rows(table: pandas.DataFrame) -> list[Any]:
    """The rows, with the columns as attributes."""
    return list(table.itertuples(index=False))


def groups(table: pandas.DataFrame, name: str) -> list[tuple[str, pandas.DataFrame]]:
    """The rows of each value of a column, in the order of the values' first rows."""
    return [(str(value), rows) for value, rows in table.groupby(name, sort=False)]


def extremes(table: pandas.DataFrame, name: str) -> tuple[Any, Any]:
    """The rows with the least and with the greatest number in a column."""
    ordered = table.dropna(subset=[name]).sort_values(name, kind="stable")
    return ordered.iloc[0], ordered.iloc[-1]


def ordered(table: pandas.DataFrame, **orders: Iterable[Any]) -> pandas.DataFrame:
    """The rows in the order of these values: by the place of the first column's value in its list,
    then of the next one's. Values that a list lacks come last; equal rows stay as they are."""

    def places(column: pandas.Series) -> pandas.Series:
        place = {value: k for k, value in enumerate(dict.fromkeys(orders[str(column.name)]))}
        return column.map(place).fillna(len(place))

    return table.sort_values([*orders], key=places, kind="stable")


def without_unit(name: str) -> str:
    """A column's name without the unit that it ends in."""
    return re.sub("_(pct|pts|score|nats|r)$", "", name)


def with_ends(name: str) -> list[str]:
    """The columns of a number and of the ends of its interval: mRI_pts, mRI_low, mRI_high."""
    return [name, *(f"{without_unit(name)}_{end}" for end in ("low", "high"))]


def number(value: float) -> str:
    """Eight significant digits, as Python writes a float: `41.458333`, `0.0`."""
    return repr(float(f"{value:.8g}"))


def csv(table: pandas.DataFrame, digits: Callable[[Any], str] | str | None = number) -> str:
    """The table as CSV; no text is one that a spreadsheet takes for a formula. digits: how a float
    is written, None with every digit."""
    for name, values in table.select_dtypes(["object", "string"]).items():
        if formulas := {v: f"'{v}" for v in values.unique() if _is_formula(v)}:
            table = table.assign(**{str(name): values.replace(formulas)})
    return table.to_csv(index=False, float_format=digits, lineterminator="\n")


def write_csv(
    path: Path,
    table: pandas.DataFrame,
    digits: Callable[[Any], str] | str | None = number,
    root: Root | None = None,
) -> Path:
    """Write the table as `csv`, atomically. root: below which no link leads to the file."""
    files.write_atomic(path, csv(table, digits).encode(), root)
    return path


def _is_formula(value: object) -> bool:
    """Whether a text begins like one; it then gets an apostrophe, as the OWASP advises."""
    return isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
