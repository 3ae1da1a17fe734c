"""Format a table's columns by the unit that ends a column's name.

| ends in | is | shown as |
|---|---|---|
| `_pct` | percent | `61.2` |
| `_pts` | a difference in points | `+3.0` |
| `_score` | a score, as it is | `0.123` |
| `_nats` | a natural logarithm | `0.123` |
| `_r` | a correlation | `+0.42` |
| `_p`, or is `p` | a p-value | `0.013` |

For all of these except p-values, NAME_low and NAME_high are the bounds of its 95% interval, which
is shown with it: `+3.0 [+1.9, +4.1]`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import pandas

from engine.measures.tables import extremes, with_ends, without_unit
from engine.report.text import p_value, rounded, signed

ABSENT = "–"
CONSTANT = ("model", "variant", "against")


class Unit(NamedTuple):
    """A number's format in text and in a chart's tooltip, and the suffix of an axis title."""

    write: Callable[[float], str]
    chart: str
    axis: str = ""


def _plain(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


UNITS = {
    "": Unit(_plain, ".4g"),
    "pct": Unit(rounded, ".2f", ", %"),
    "pts": Unit(signed, "+.2f", ", points"),
    "score": Unit(functools.partial(rounded, digits=3), ".3f"),
    "nats": Unit(functools.partial(rounded, digits=3), ".3f", ", nats"),
    "r": Unit(functools.partial(signed, digits=2), "+.2f"),
    "p": Unit(p_value, ".3f"),
}


class TextColumn(NamedTuple):
    """A column of the page, with one text per row."""

    name: str
    head: str
    is_numeric: bool
    texts: list[str]


def unit(name: str) -> str:
    """The unit that ends a column's name, or an empty string."""
    last = name.rpartition("_")[2]
    return last if last in UNITS and (last == "p" or last != name) else ""


def title(name: str) -> str:
    """A column's name as the title of an axis, with its unit."""
    return without_unit(name).replace("_", " ") + UNITS[unit(name)].axis


def between(data: pandas.DataFrame, name: str, *labels: str) -> str:
    """`−9.0 (VP on flat) to +10.3 (Soup on mono)`: the minimum and maximum of a column, with the
    values of the columns `labels`."""
    write = UNITS[unit(name)].write
    texts = [
        f"{write(row[name])} ({' on '.join(filter(None, (row[label] for label in labels)))})"
        for row in extremes(data, name)
    ]
    return " to ".join(texts)


def ends(data: pandas.DataFrame) -> dict[str, tuple[str, str]]:
    """By name of an interval's bound, the column of its number and a title."""
    titles = {"low": "95% from", "high": "to"}
    names = [name for name in map(str, data) if unit(name)]
    return {f"{without_unit(name)}_{k}": (name, titles[k]) for name in names for k in titles}


def equal(data: pandas.DataFrame) -> list[str]:
    """The columns that are equal in all rows; none of a table with fewer than two rows."""
    return [str(name) for name in data if len(data) > 1 and data[name].map(str).nunique() == 1]


def shown(data: pandas.DataFrame) -> list[TextColumn]:
    """The displayed columns: all except interval bounds, which are part of another column's text,
    a model or variant that is the same in every row, and percentages that are 0 in every row."""
    hidden = {name for name in CONSTANT if name in data and data[name].nunique() <= 1}
    hidden |= {str(name) for name in data if unit(str(name)) == "pct" and (data[name] == 0).all()}
    return [_column(data, name) for name in map(str, data) if name not in hidden | {*ends(data)}]


def percentages(columns: Sequence[TextColumn], row: Mapping[str, float | None]) -> list[str]:
    """A row of percentages by column, as texts; empty where there is none."""
    numbers = [row.get(column.name) for column in columns]
    return ["" if number is None else rounded(number) for number in numbers]


def _column(data: pandas.DataFrame, name: str) -> TextColumn:
    values, types = data[name], pandas.api.types
    is_numeric = types.is_numeric_dtype(values) and not types.is_bool_dtype(values)
    write = UNITS[unit(name)].write if is_numeric else str
    texts = [ABSENT if pandas.isna(value) else write(value) for value in values]
    _, low, high = with_ends(name)
    if is_numeric and unit(name) and low in data:
        for k, (a, b) in enumerate(zip(data[low], data[high], strict=True)):
            if not pandas.isna(a):
                texts[k] += f" [{write(a)}, {write(b)}]"
    return TextColumn(name, without_unit(name).replace("_", " "), is_numeric, texts)
