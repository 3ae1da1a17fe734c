"""Format numbers and counts for sentences and tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal

from engine.measures.rows import UNION

ABSENT = "-"  # in the terminal


def rounded(value: float, digits: int = 1) -> str:
    """Rounded to `digits` decimals, halves away from zero as in charts: -6.25 is -6.3."""
    return str(Decimal(value).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP) + 0)


def signed(value: float, digits: int = 1) -> str:
    """`rounded` with its sign: `+1.2`, `−1.2` (a true minus) or `0.0`, never a negative zero."""
    text = rounded(value, digits)
    return text.replace("-", "−") if float(text) <= 0 else f"+{text}"


def ascii_signed(value: float) -> str:
    """`signed` in ASCII for the terminal, and `ABSENT` for NaN."""
    return ABSENT if value != value else signed(value).replace("−", "-")


def p_value(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def bounds(low: float, high: float) -> str:
    """`[+1.9, +4.1]`: an interval in a sentence."""
    return f"[{signed(low)}, {signed(high)}]"


def counted(noun: str, number: int) -> str:
    """`1 set`, `2 sets`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def set_head(name: str) -> str:
    """A dataset's or union's name as a column head, with ImageNet abbreviated to IN."""
    return re.sub("[-_]", " ", name.replace("imagenet", "IN")).replace(UNION, f" {UNION} ")


def slug(*parts: str) -> str:
    """Words as a file name: letters, digits and single dashes."""
    return "-".join(re.findall("[a-z0-9]+", " ".join(parts).lower()))
