"""Tables for the terminal: plain text of at most 100 columns, whatever it is printed to."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

WIDTH = 100
LONGEST_HEAD = 20  # letters of a word in a column's head before it is broken


def text(title: str, heads: Sequence[str], *groups: Sequence[Sequence[str]]) -> str:
    """A title, wrapped line by line, and a table below it: a head a column, rows in groups.

    The first column names a row. Of the others, those with a cell that begins with a letter hold
    words: they stand at the left and wrap. The rest hold numbers: they stand at the right, under a
    head with a word a line. The table is wider than `WIDTH` only where names and numbers alone are:
    those are never wrapped or cut.
    """
    console = Console(file=io.StringIO(), color_system=None, width=1 << 16)
    shapes = [(2, LONGEST_HEAD), *((1, longest) for longest in range(LONGEST_HEAD, 0, -1))]
    for gap, longest in shapes:
        table = _table(heads, groups, gap, longest)
        least = Measurement.get(console, console.options, table).minimum
        if least <= WIDTH:
            break
    console.width = max(WIDTH, least)
    with console.capture() as captured:
        console.print(table)
    lines = [textwrap.fill(line, WIDTH) for line in title.splitlines()] + [""] * bool(title)
    return "\n".join([*lines, *(line.rstrip() for line in captured.get().splitlines())])


def _table(
    heads: Sequence[str], groups: Sequence[Sequence[Sequence[str]]], gap: int, longest: int
) -> Table:
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0))
    for k, head in enumerate(heads):
        cells = [row[k] for rows in groups for row in rows]
        width = max(map(len, cells), default=0)
        if k == 0:
            table.add_column(Text(head), no_wrap=True, min_width=width)
        elif any(cell[:1].isalpha() for cell in cells):
            table.add_column(Text(head), overflow="fold")
        else:
            words = [
                part for word in head.split() for part in textwrap.wrap(word, max(longest, width))
            ]
            table.add_column(Text("\n".join(words)), justify="right", no_wrap=True, min_width=width)
    for rows in groups:
        for row in rows:
            table.add_row(*map(Text, row))
        table.add_section()
    return table
