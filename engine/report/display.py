"""Numbers of a table as people read them: a format a column."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas

from engine.measures.comparisons import SIGNIFICANT, undecided
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
    """The columns that are shown: all but ends of intervals and errors, which are part of another
    column's text, and a model or variant that is the same in every row.

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
    if kind in ("interval", "span", "half", "signed_half"):
        beside = [f"{name}_low", f"{name}_high", f"{name}_error"]
    elif kind in ("p", "corrected_p"):
        beside = [f"{name}_error"]
    else:
        return []
    return [column for column in beside if column in data]


def missing(value: Any) -> bool:
    """Whether a table's cell holds nothing."""
    return bool(pandas.isna(value))


def interval(
    value: float, low: float | None = None, high: float | None = None, error: float = 0.0
) -> str:
    """`+3.0 [+1.9, +4.1]`; error: the Monte-Carlo standard error of the ends."""
    if low is None or high is None:
        return signed(value)
    return f"{signed(value)} [{signed(low, error=error)}, {signed(high, error=error)}]"


def span(
    value: float, low: float | None = None, high: float | None = None, error: float = 0.0
) -> str:
    """`61.2 [59.0, 63.4]`, as `interval` without signs."""
    if low is None or high is None:
        return rounded(value)
    return f"{rounded(value)} [{rounded(low, error)}, {rounded(high, error)}]"


def half(
    value: float, low: float | None = None, high: float | None = None, error: float = 0.0
) -> str:
    """`61.2 ±2.1`: half the interval's width; the errors of its two ends hardly depend on each
    other."""
    return rounded(value) + _half_width(low, high, error)


def signed_half(
    value: float, low: float | None = None, high: float | None = None, error: float = 0.0
) -> str:
    """`half` with the value's sign."""
    return signed(value) + _half_width(low, high, error)


def _half_width(low: float | None, high: float | None, error: float) -> str:
    if low is None or high is None:
        return ""
    return f" ±{rounded((high - low) / 2, error / math.sqrt(2))}"


def range_text(low: float, high: float, error: float, digits: int = 1) -> str:
    """`+1.9 to +4.1`: an interval in a sentence."""
    return f"{signed(low, digits, error)} to {signed(high, digits, error)}"


def p_value(value: float, error: float = 0.0) -> str:
    """A p with the decimals that its draws support, or the power of ten that it is surely below."""
    text = rounded(value, error, 3)
    if float(text) or value + 2 * error >= 0.1:
        return text
    digits = min(3, math.floor(-math.log10(value + 2 * error))) if value + error else 3
    return f"<{10**-digits:.{digits}f}"


def corrected_p(value: float, error: float = 0.0) -> str:
    """A corrected p: `~0.05` where draws cannot tell on which side of the threshold it lies, and
    which side where its digits alone would not."""
    if undecided(value, error):
        return f"~{SIGNIFICANT}"
    text, real = p_value(value, error), value < SIGNIFICANT
    bound = float(text.removeprefix("<"))
    if bound == SIGNIFICANT or (bound > SIGNIFICANT and real):
        return f"{'<' if real else '>'}{SIGNIFICANT}"
    return text


FORMATS: Mapping[str, Callable[..., str]] = {
    "signed1": signed,
    "signed2": partial(signed, digits=2),
    "plain0": lambda value: f"{value:,.0f}",
    "plain1": rounded,
    "plain2": partial(rounded, digits=2),
    "plain3": partial(rounded, digits=3),
    "small": lambda value: f"{value:.1e}",
    "interval": interval,  # signed, with NAME_low, NAME_high and NAME_error
    "span": span,  # the same without signs
    "half": half,  # half the interval's width, of NAME_low and NAME_high
    "signed_half": signed_half,
    "p": p_value,  # with NAME_error
    "corrected_p": corrected_p,  # with NAME_error
}
