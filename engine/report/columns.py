"""How a table's columns are shown: a column's name ends in its unit.

| ends in | is | shown as |
|---|---|---|
| `_pct` | percent | `61.2` |
| `_pts` | a difference in points | `+3.0` |
| `_r` | a correlation | `+0.42` |
| `_p`, or is `p` | a p-value | `0.013` |

Beside NAME_pct, NAME_pts and NAME_r, NAME_low and NAME_high are the ends of its 95% interval, which
is shown with it: `+3.0 [+1.9, +4.1]`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas

from engine.measures.tables import extremes
from engine.report.text import p_value, rounded, signed

ABSENT = "–"
LONG = 60  # signs
CONSTANT = ("model", "variant", "against")
UNITS: dict[str, Callable[[float], str]] = {
    "pct": rounded,
    "pts": signed,
    "r": functools.partial(signed, digits=2),
    "p": p_value,
}
CHARTS = {"pct": ".2f", "pts": "+.2f", "r": "+.2f", "p": ".3f"}  # the same for a tooltip
TITLES = {"pct": ", %", "pts": ", points"}


@dataclass(frozen=True)
class Column:
    """A column as the page shows it, with a text for each row."""

    name: str
    numeric: bool
    texts: list[str]

    @property
    def head(self) -> str:
        return base(self.name).replace("_", " ")

    @functools.cached_property
    def wide(self) -> bool:
        """Whether a text is so long that a narrow column would make its row very tall."""
        return not self.numeric and any(len(text) > LONG for text in self.texts)


def unit(name: str) -> str:
    """The unit that a column's name ends in, or an empty text."""
    last = name.rpartition("_")[2]
    return last if last in UNITS and (last == "p" or last != name) else ""


def base(name: str) -> str:
    """A column's name without its unit."""
    return re.sub("_(pct|pts|r)$", "", name)


def title(name: str) -> str:
    """A column's name as the title of an axis, with its unit."""
    return base(name).replace("_", " ") + TITLES.get(unit(name), "")


def between(data: pandas.DataFrame, name: str, *labels: str) -> str:
    """`−9.0 (VP on flat) to +10.3 (Soup on mono)`: the least and the greatest number of a column,
    and what stands in the columns `labels` beside them."""
    write = UNITS.get(unit(name), _plain)
    ends = [
        f"{write(row[name])} ({' on '.join(filter(None, (row[label] for label in labels)))})"
        for row in extremes(data, name)
    ]
    return " to ".join(ends)


def named_numbers(data: pandas.DataFrame, label: str, name: str) -> str:
    """`FT +4.7, LP +0.7`: each row's label and number."""
    write = UNITS[unit(name)]
    return ", ".join(f"{a} {write(x)}" for a, x in zip(data[label], data[name], strict=True))


def shown(data: pandas.DataFrame) -> list[Column]:
    """The columns that are shown: all but ends of intervals, which are part of another column's
    text, and a model or variant that is the same in every row."""
    names = list(map(str, data))
    hidden = {f"{base(name)}_{end}" for name in names if unit(name) for end in ("low", "high")}
    hidden |= {name for name in CONSTANT if name in data and data[name].nunique() <= 1}
    return [_column(data, name) for name in names if name not in hidden]


def _column(data: pandas.DataFrame, name: str) -> Column:
    values, types = data[name], pandas.api.types
    numeric = types.is_numeric_dtype(values) and not types.is_bool_dtype(values)
    write = UNITS.get(unit(name)) if numeric else str
    texts = [ABSENT if missing(value) else (write or _plain)(value) for value in values]
    low, high = (f"{base(name)}_{end}" for end in ("low", "high"))
    if write and unit(name) and low in data:
        for k, (a, b) in enumerate(zip(data[low], data[high], strict=True)):
            if not missing(a):
                texts[k] += f" [{write(a)}, {write(b)}]"
    return Column(name, numeric, texts)


def _plain(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


def missing(value: Any) -> bool:
    """Whether a table's cell holds nothing."""
    return bool(pandas.isna(value))
