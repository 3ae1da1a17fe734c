"""The report's page: one HTML file that opens anywhere, offline and in years.

Everything is in it: the numbers (each data set once, however many figures draw it), one copy of
Vega-Lite, which draws the figures when they come into view, and a small script for the tables.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas
import vl_convert
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from engine.machine import files
from engine.machine.files import digest
from engine.report import display, figures
from engine.report.section import Section, Table

BUNDLE = "window.vegaEmbed = vegaEmbed;"  # what the page's script needs of Vega-Lite's own
ROWS = 15  # of a table that are shown at a time
FEW = 10  # rows of a table that need no search
FILTERS = ("model", "method", "variant", "downstream", "evaluated_on", "quantity", "against")
PNG = b"\x89PNG\r\n\x1a\n"
WEBP = re.compile(rb"RIFF.{4}WEBP", re.DOTALL)
NAME = re.compile(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*")


@dataclass(frozen=True)
class Page:
    """A page's words and sections; files: names of the files beside it that it links to."""

    title: str
    heading: str
    lead: str
    sections: Sequence[Section]
    notes: Sequence[str] = ()
    files: Sequence[str] = ()


def write(path: Path, page: Page) -> Path:
    """Write the page, atomically, and return its path. Raises ValueError for a name of a section,
    figure or table that is used twice or has other signs than letters, digits and dashes."""
    for picture in (picture for section in page.sections for picture in section.pictures):
        if not picture.png.startswith(PNG):
            raise ValueError(f"the picture {picture.alt!r} must be the bytes of a PNG file")
    for gallery in (gallery for section in page.sections for gallery in section.galleries):
        for thumbnail in gallery.thumbnails:
            if not WEBP.match(thumbnail.webp):
                raise ValueError(
                    f"the thumbnail {thumbnail.alt!r} must be the bytes of a WebP file"
                )
    _check_names([section.key for section in page.sections])
    _check_names([figure.name for section in page.sections for figure in section.figures])
    _check_names([table.name for section in page.sections for table in section.tables])
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    tables = {
        table.name: _table_view(table) for section in page.sections for table in section.tables
    }
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    has_figures = any(section.figures for section in page.sections)
    html = environment.get_template("page.html.j2").render(
        page=page,
        tables=tables,
        shown=ROWS,
        embedded=Markup(htmlsafe_json_dumps(_embedded(page, tables), dumps=_compact)),
        bundle=Markup(vl_convert.javascript_bundle(BUNDLE)) if has_figures else "",
    )
    files.write_atomic(path, html.encode())
    return path


def _table_view(table: Table) -> dict[str, Any]:
    shown = display.columns(table)
    data = table.data
    many = len(data) > FEW
    filters = {
        name: sorted(map(str, data[name].dropna().unique()))
        for name in FILTERS
        if name in data and (many or name == "model") and len(set(data[name])) > 1
    }
    cells = [column.texts[:ROWS] for column in shown]
    return {
        "columns": shown,
        "rows": list(zip(*cells, strict=True)),
        "filters": filters,
        "search": many,
        "total": len(data),
    }


def _embedded(page: Page, tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the page's script reads: data sets by their digest, and what is made of them."""
    data: dict[str, Any] = {}

    def stored(frame: pandas.DataFrame) -> str:
        columns = {str(name): _plain(values) for name, values in frame.items()}
        key = digest(columns)
        data[key] = columns
        return key

    drawn = {
        figure.name: {"data": stored(figure.data), "spec": figures.sized(figure)}
        for section in page.sections
        for figure in section.figures
    }
    listed = {
        table.name: {
            "data": stored(table.data),
            "columns": [
                {
                    "name": c.name,
                    "numeric": c.numeric,
                    "wide": c.wide,
                    "texts": c.texts if c.formatted else None,
                }
                for c in tables[table.name]["columns"]
            ],
        }
        for section in page.sections
        for table in section.tables
    }
    themes = {mode: figures.theme(mode) for mode in ("light", "dark")}
    return {"data": data, "figures": drawn, "tables": listed, "themes": themes, "rows": ROWS}


def _plain(values: pandas.Series) -> Any:
    """A column for JSON: numbers with eight digits; strings as places in a list of theirs."""
    if pandas.api.types.is_bool_dtype(values) or pandas.api.types.is_integer_dtype(values):
        return [None if display.missing(x) else x for x in values.tolist()]
    if pandas.api.types.is_float_dtype(values):
        return [float(f"{x:.8g}") if math.isfinite(x) else None for x in values]
    codes, levels = pandas.factorize(values)
    return {"codes": codes.tolist(), "levels": [str(level) for level in levels]}


def _compact(value: Any, **options: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False, **options)


def _check_names(names: Iterable[str]) -> None:
    for name, times in Counter(names).items():
        if times > 1 or not NAME.fullmatch(name):
            why = "is used twice" if times > 1 else "must be letters, digits and single dashes"
            raise ValueError(f"the report's name {name!r} {why}")
