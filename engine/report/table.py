"""The result in the terminal: what `make demo` ends with, readable without opening anything."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from engine.measures.metrics import Accuracy, Mri
from engine.measures.standings import Line, Standings, counted, signed, standings

WIDTH = 100
ABSENT = "-"


def table(
    accuracy: Iterable[Accuracy],
    mri: Iterable[Mri],
    *,
    sets: Sequence[str],
    upstream: str,
    methods: Mapping[str, str],
    notes: Sequence[str] = (),
) -> str:
    """RI per downstream set and mRI with its interval, a method a row, within 100 columns.

    `methods` maps keys to titles in row order; sets stand from the easiest to the hardest. A
    partial grid shows the columns that exist; `notes` (`Summary.missing`) are printed below.
    """
    found = standings(accuracy, mri, sets=sets, upstream=upstream, methods=methods)
    blocks = [_block(one) for one in found]
    return "\n\n".join([*blocks, *(textwrap.fill(f"note: {note}", WIDTH) for note in notes)])


def _block(one: Standings) -> str:
    words = [[""], *map(split, one.sets), ["mRI"], ["95%", "interval"]]
    before = ["pre-trained %", *(f"{one.before[name]:.1f}" for name in one.sets), "", ""]
    rows = [[line.title, *_cells(line, one.sets), _interval(line)] for line in one.lines]
    n = len(one.sets)
    return "\n".join(
        [
            one.model,
            f"RI: mean change in accuracy on the {counted('other set', n - 1)}, in points, after "
            "fine-tuning",
            f"on the set that heads the column; mRI: its mean over the {n}.",
            "",
            *layout(words, [before], rows),
        ]
    )


def split(heading: str) -> list[str]:
    """A column's heading, a word a line, ImageNet as the field abbreviates it."""
    return re.split("[-_ ]", heading.replace("imagenet", "IN"))


def number(value: float | None, error: float = 0.0) -> str:
    """`standings.signed` in ASCII, and `ABSENT` for None."""
    return ABSENT if value is None else signed(value, error=error).replace("−", "-")


def layout(words: Sequence[Sequence[str]], *groups: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table within `WIDTH`: heads, a word a line, then groups of rows under a rule each.

    The first column stands at the left, all others at the right; heads are cut where they must be.
    """
    height = max(map(len, words))
    head = [[""] * (height - len(column)) + [*column] for column in words]
    numbers = [[row[k] for rows in groups for row in rows] for k in range(len(words))]
    widths = _fit(head, numbers)
    gap = " " if sum(widths) + 2 * len(widths) > WIDTH else "  "

    def draw(cells: Iterable[str]) -> str:
        padded = [text[:w].rjust(w) for text, w in zip(cells, widths, strict=True)]
        padded[0] = padded[0].strip().ljust(widths[0])
        return gap.join(padded).rstrip()

    rule = "─" * (sum(widths) + len(gap) * (len(widths) - 1))
    lines = [draw(column[level] for column in head) for level in range(height)]
    for rows in groups:
        lines += [rule, *map(draw, rows)]
    return lines


def _fit(head: Sequence[Sequence[str]], numbers: Sequence[Sequence[str]]) -> list[int]:
    """Column widths that add up to `WIDTH` where they can; names are cut for it, numbers never."""
    floors = [max(map(len, column)) for column in numbers]
    widths = [max(floor, *map(len, words)) for floor, words in zip(floors, head, strict=True)]
    while sum(widths) + len(widths) - 1 > WIDTH and widths != floors:
        widest = max(range(len(widths)), key=lambda k: widths[k] if widths[k] > floors[k] else 0)
        widths[widest] -= 1
    return widths


def _cells(line: Line, sets: Sequence[str]) -> list[str]:
    values = [line.ri.get(name) for name in sets] + [line.mri.mri if line.mri else None]
    return [number(value) for value in values]


def _interval(line: Line) -> str:
    if not (mri := line.mri):
        return ""
    return f"[{number(mri.mri_low, mri.error)}, {number(mri.mri_high, mri.error)}]"
