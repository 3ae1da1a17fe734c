"""Tables for the terminal: plain text, whatever it is printed to."""

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


def text(title: str, heads: Sequence[str], *groups: Sequence[Sequence[str]]) -> str:
    """A title, wrapped line by line, and a table below it: a head a column, rows in groups.

    The first column names a row. Of the others, those with a cell that begins with a letter hold
    words: they stand at the left and wrap. The rest hold numbers: they stand at the right, under a
    head with a word a line. Names, numbers and heads are never cut, even where the table is then
    wider than `WIDTH`.
    """
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, padding=0)
    for k, head in enumerate(heads):
        cells = [row[k] for rows in groups for row in rows]
        width = max(map(len, cells), default=0)
        if k == 0:
            table.add_column(Text(head), no_wrap=True, min_width=width)
        elif any(cell[:1].isalpha() for cell in cells):
            table.add_column(Text(head), overflow="fold")
        else:
            words = "\n".join(head.split())
            table.add_column(Text(words), justify="right", no_wrap=True, min_width=width)
    for rows in groups:
        for row in rows:
            table.add_row(*map(Text, row))
        table.add_section()
    console = Console(file=io.StringIO(), color_system=None, width=1 << 16)
    least = Measurement.get(console, console.options, table).minimum
    if least + len(heads) - 1 <= WIDTH:  # room for a second space between columns
        table.padding = (0, 1, 0, 0)
    console.width = max(WIDTH, least)
    with console.capture() as captured:
        console.print(table)
    lines = [textwrap.fill(line, WIDTH) for line in title.splitlines()] + [""] * bool(title)
    return "\n".join([*lines, *(line.rstrip() for line in captured.get().splitlines())])
