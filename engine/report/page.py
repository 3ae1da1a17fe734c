"""Write the report as one HTML file that opens offline.

It contains the numbers, the figures, Vega-Lite, which draws them anew where scripts run, so that
they show values and fit the window, and a small script for the tables.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from base64 import b64encode
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from engine.machine.files import cache_folder, write_atomic
from engine.measures.tables import csv
from engine.report import charts, columns, exports
from engine.report.section import Section, Table
from loaders.files.durable import short_digest
from loaders.files.root import Root

BUNDLE = "window.vegaEmbed = vegaEmbed;"  # the part of Vega-Lite that the page's script uses
ROWS = 20  # of a table that are shown initially; a longer one has filters
FILTERS = ("model", "method", "variant", "against", "downstream", "evaluated_on", "change")


def write(
    path: Path,
    sections: Sequence[Section],
    *,
    title: str,
    heading: str,
    lead: str = "",
    notes: Sequence[str] = (),
    files: Sequence[str],
) -> Path:
    """Write the page atomically and return its path. files: names of files in its folder to link
    to. Raises ValueError if two sections, figures or tables have the same name."""
    figures = [figure for section in sections for figure in section.figures]
    tables = [table for section in sections for table in section.tables]
    names = [("section", section.key) for section in sections]
    names += [(type(part).__name__.lower(), part.name) for part in (*figures, *tables)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError("the report has two {}s named {!r}".format(*twice[0]))
    views = {table.name: _view(table) for table in tables}
    embedded = {
        "figures": {figure.name: charts.drawn(figure, "container") for figure in figures},
        "tables": views,
        "config": charts.CONFIG,
        "shown": ROWS,
    }
    text = json.dumps(embedded, separators=(",", ":"), allow_nan=False)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("page.html.j2").render(
        title=title,
        heading=heading,
        lead=lead,
        notes=notes,
        sections=sections,
        files=files,
        tables=views,
        drawings={figure.name: b64encode(exports.svg(figure)).decode() for figure in figures},
        shown=ROWS,
        embedded=Markup(text.replace("<", "\\u003c")),  # keeps text from ending the script
        bundle=Markup(_bundle()) if figures else "",
    )
    write_atomic(path, html.encode())
    return path


def _bundle() -> str:
    """Vega-Lite for the page, cached because bundling takes a second.

    The cached file has no checksum, so it is used only if no other user can write it.
    """
    key = short_digest([BUNDLE, metadata.version("vl-convert-python")])
    root, name = Root(cache_folder()), f"vega/{key}.js"
    with contextlib.suppress(OSError, ValueError), root.open(name) as file:
        status = os.fstat(file.fileno())
        if status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return file.read().decode()
    text = vl_convert.javascript_bundle(BUNDLE)
    with contextlib.suppress(OSError, ValueError):  # the cache may be read-only
        root.write(name, text.encode()).chmod(0o644)
    return text


def _view(table: Table) -> dict[str, Any]:
    """A table for the page: numbers as CSV, displayed texts and, for long tables, filters: the
    values of a column by its index."""
    equal = columns.equal(table.data) if table.hides_equal else []
    shown, many = columns.shown(table.data.drop(columns=equal)), len(table.data) > ROWS
    values = {k: list(dict.fromkeys(column.texts)) for k, column in enumerate(shown)}
    return {
        "csv": csv(table.numbers, charts.DIGITS),
        "heads": [table.heads.get(column.name, column.head) for column in shown],
        "numeric": [column.is_numeric for column in shown],
        "above": [
            [title, *columns.percentages(shown[1:], row)] for title, row in table.above.items()
        ],
        "rows": list(zip(*(column.texts for column in shown), strict=True)),
        "search": many,
        "filters": {
            k: texts
            for k, texts in values.items()
            if many and len(texts) > 1 and shown[k].name in FILTERS
        },
    }
