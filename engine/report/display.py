"""Numbers of a table as people read them: a format a column."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas

from engine.measures.standings import rounded, signed
from engine.report.section import Table

ABSENT = "–"
LONG = 60  # signs
CONSTANT = ("model", "variant")


@dataclass(frozen=True)
class Column:
    """A column as the page shows it, with a text for each row.

    formatted: whether a text is another way to write its value, and so not the value itself.
    """

    name: str
    head: str
    numeric: bool
    formatted: bool
    texts: list[str]

    @property
    def wide(self) -> bool:
        """Whether a text is so long that a narrow column would make its row very tall."""
        return any(len(text) > LONG for text in self.texts)


@functools.lru_cache(maxsize=64)  # the page and the LaTeX file show the same texts
def columns(table: Table) -> list[Column]:
    """The columns that are shown: all but ends of intervals, which are part of another column's
    text, and a model or variant that is the same in every row.

    Raises ValueError for a format that does not exist or names a column that the table lacks.
    """
    data = table.data
    for name, kind in table.formats.items():
        if kind not in FORMATS or name not in data:
            raise ValueError(
                f"table {table.name}: format {kind!r} of column {name!r}: there are the columns "
                f"{', '.join(map(str, data))} and the formats {', '.join(FORMATS)}"
            )
    hidden = {end for name, kind in table.formats.items() for end in _ends(data, name, kind)}
    hidden |= {name for name in CONSTANT if name in data and len(set(data[name])) == 1}
    return [_column(data, str(name), table.formats) for name in data if name not in hidden]


def _column(data: pandas.DataFrame, name: str, formats: Mapping[str, str]) -> Column:
    values = data[name]
    types = pandas.api.types
    numeric = types.is_numeric_dtype(values) and not types.is_bool_dtype(values)
    kind = formats.get(name)
    if kind is not None:
        ends = [data[end] for end in _ends(data, name, kind)]
        shown = FORMATS[kind]
        texts = [
            ABSENT if missing(row[0]) else shown(*(x for x in row if not missing(x)))
            for row in zip(values, *ends, strict=True)
        ]
    elif numeric:
        texts = [ABSENT if missing(value) else f"{value:.6g}" for value in values]
    else:
        texts = [ABSENT if missing(value) else str(value) for value in values]
    formatted = numeric or kind is not None
    return Column(name, name.replace("_", " "), numeric, formatted, texts)


def _ends(data: pandas.DataFrame, name: str, kind: str) -> list[str]:
    """Columns that a format reads beside its own, as far as the table has them."""
    if kind not in ("interval", "span", "half", "signed_half"):
        return []
    return [column for column in (f"{name}_low", f"{name}_high") if column in data]


def missing(value: Any) -> bool:
    """Whether a table's cell holds nothing."""
    return bool(pandas.isna(value))


def interval(value: float, low: float | None = None, high: float | None = None) -> str:
    """`+3.0 [+1.9, +4.1]`"""
    if low is None or high is None:
        return signed(value)
    return f"{signed(value)} [{signed(low)}, {signed(high)}]"


def span(value: float, low: float | None = None, high: float | None = None) -> str:
    """`61.2 [59.0, 63.4]`, as `interval` without signs."""
    if low is None or high is None:
        return rounded(value)
    return f"{rounded(value)} [{rounded(low)}, {rounded(high)}]"


def half(value: float, low: float | None = None, high: float | None = None) -> str:
    """`61.2 ±2.1`: half the interval's width."""
    return rounded(value) + _half_width(low, high)


def signed_half(value: float, low: float | None = None, high: float | None = None) -> str:
    """`half` with the value's sign."""
    return signed(value) + _half_width(low, high)


def _half_width(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ±{rounded((high - low) / 2)}"


def range_text(low: float, high: float) -> str:
    """`+1.9 to +4.1`: an interval in a sentence."""
    return f"{signed(low)} to {signed(high)}"


def p_value(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


FORMATS: Mapping[str, Callable[..., str]] = {
    "signed1": signed,
    "signed2": partial(signed, digits=2),
    "plain0": lambda value: f"{value:,.0f}",
    "plain1": rounded,
    "plain2": partial(rounded, digits=2),
    "plain3": partial(rounded, digits=3),
    "small": lambda value: f"{value:.1e}",
    "interval": interval,  # signed, with NAME_low and NAME_high
    "span": span,  # the same without signs
    "half": half,  # half the interval's width, of NAME_low and NAME_high
    "signed_half": signed_half,
    "p": p_value,
}
