"""Helpers for tables of results, and CSV files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas

from engine.machine import files
from loaders.files.root import Root


def rows(table: pandas.DataFrame) -> list[Any]:
    """The rows, with the columns as attributes."""
    return list(table.itertuples(index=False))


def groups(table: pandas.DataFrame, name: str) -> list[tuple[str, pandas.DataFrame]]:
    """The rows of each value of a column, in order of first appearance."""
    return [(str(value), rows) for value, rows in table.groupby(name, sort=False)]


def extremes(table: pandas.DataFrame, name: str) -> tuple[Any, Any]:
    """The rows with the minimum and the maximum of a column."""
    ordered = table.dropna(subset=[name]).sort_values(name, kind="stable")
    return ordered.iloc[0], ordered.iloc[-1]


def ordered(table: pandas.DataFrame, **orders: Iterable[Any]) -> pandas.DataFrame:
    """The rows sorted by the position of each column's value in its list. Values that are not in a
    list come last; the sort is stable."""

    def places(column: pandas.Series) -> pandas.Series:
        place = {value: k for k, value in enumerate(dict.fromkeys(orders[str(column.name)]))}
        return column.map(place).fillna(len(place))

    return table.sort_values([*orders], key=places, kind="stable")


def without_unit(name: str) -> str:
    """A column's name without its unit."""
    return re.sub("_(pct|pts|score|nats|r)$", "", name)


def with_ends(name: str) -> list[str]:
    """The columns of a number and the bounds of its interval: mRI_pts, mRI_low, mRI_high."""
    return [name, *(f"{without_unit(name)}_{end}" for end in ("low", "high"))]


def number(value: float) -> str:
    """Eight significant digits, as Python writes a float: `41.458333`, `0.0`."""
    return repr(float(f"{value:.8g}"))


def csv(table: pandas.DataFrame, digits: Callable[[Any], str] | str | None = number) -> str:
    """The table as CSV, without texts that a spreadsheet would run as formulas. digits: format of
    floats, or None for all digits."""
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
    """Write the table as `csv`, atomically. root: raises an error for links below it."""
    files.write_atomic(path, csv(table, digits).encode(), root)
    return path


def _is_formula(value: object) -> bool:
    """Whether a text starts like a formula. It then gets an apostrophe, as OWASP recommends."""
    return isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
