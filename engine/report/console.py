"""Plain-text tables for the terminal."""

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
    """A wrapped title and a table with one head per column and rows in groups.

    The first column names a row. Other columns are text if a cell starts with a letter: they are
    aligned left and wrap. The rest are numbers: they are aligned right, and their heads have one
    word per line. Names, numbers and heads are never cut, even if the table gets wider than
    `WIDTH`.
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
    lines = [textwrap.fill(line, WIDTH) for line in title.splitlines()] + ([""] if title else [])
    return "\n".join([*lines, *(line.rstrip() for line in captured.get().splitlines())])
