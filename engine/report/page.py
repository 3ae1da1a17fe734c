"""The report's page: one HTML file that opens anywhere, offline and in years.

Everything is in it: the numbers (each data set once, however many figures draw it), one copy of
Vega-Lite, which draws the figures when they come into view, and a small script for the tables.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import pandas
import vl_convert
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from engine.machine import files
from engine.machine.files import digest
from engine.report import charts, columns
from engine.report.section import Picture, Section, Table

BUNDLE = "window.vegaEmbed = vegaEmbed;"  # what the page's script needs of Vega-Lite's own
ROWS = 15  # of a table that are shown at a time
FEW = 10  # rows of a table that need no search
FILTERS = ("model", "method", "variant", "against", "downstream", "evaluated_on", "change")
TYPES = {rb"\x89PNG\r\n\x1a\n": "image/png", rb"RIFF.{4}WEBP": "image/webp"}
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
    figures = [figure for section in page.sections for figure in section.figures]
    tables = [table for section in page.sections for table in section.tables]
    _check_names([section.key for section in page.sections])
    _check_names([figure.name for figure in figures])
    _check_names([table.name for table in tables])
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["url"] = _data_url
    views = {table.name: _view(table) for table in tables}
    data: dict[str, Any] = {}

    def stored(frame: pandas.DataFrame) -> str:
        plain = {str(name): _plain(values) for name, values in frame.items()}
        return data.setdefault(key := digest(plain), plain) and key

    embedded = {
        "figures": {
            figure.name: {"data": stored(figure.data), "spec": charts.sized(figure.spec)}
            for figure in figures
        },
        "tables": {
            table.name: {
                "data": stored(table.data),
                "columns": [
                    {"name": column.name, "numeric": column.numeric, "wide": column.wide}
                    | ({"texts": _levels(column.texts)} if column.numeric else {})
                    for column in views[table.name]["columns"]
                ],
            }
            for table in tables
        },
        "themes": {mode: charts.theme(mode) for mode in ("light", "dark")},
        "rows": ROWS,
        "data": data,
    }
    html = environment.get_template("page.html.j2").render(
        page=page,
        tables=views,
        shown=ROWS,
        embedded=Markup(htmlsafe_json_dumps(embedded, dumps=_compact)),
        bundle=Markup(_bundle()) if figures else "",
    )
    files.write_atomic(path, html.encode())
    return path


def _bundle() -> str:
    """Vega-Lite for the page, which takes a second to make and is kept in the user's cache."""
    key = digest([BUNDLE, metadata.version("vl-convert-python")])
    file = files.cache_folder() / "vega" / f"{key}.js"
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = vl_convert.javascript_bundle(BUNDLE)
    with contextlib.suppress(OSError):  # a cache that cannot be written to
        files.write_atomic(file, text.encode())
    return text


def _view(table: Table) -> dict[str, Any]:
    """What the template shows of a table: the first rows, and filters where there are many."""
    shown, data = columns.shown(table.data), table.data
    many = len(data) > FEW
    filters = {
        name: list(map(str, data[name].dropna().unique()))
        for name in FILTERS
        if name in data
        and (many or name == "model")
        and data[name].nunique() > 1
        and not pandas.api.types.is_numeric_dtype(data[name])
    }
    cells = [column.texts[:ROWS] for column in shown]
    rows = list(zip(*cells, strict=True))
    return {"columns": shown, "rows": rows, "filters": filters, "search": many, "total": len(data)}


def _plain(values: pandas.Series) -> Any:
    """A column for JSON: numbers with eight digits; strings as places in a list of theirs."""
    if pandas.api.types.is_bool_dtype(values) or pandas.api.types.is_integer_dtype(values):
        return [None if columns.missing(x) else x for x in values.tolist()]
    if pandas.api.types.is_float_dtype(values):
        return [float(f"{x:.8g}") if math.isfinite(x) else None for x in values]
    return _levels(values)


def _levels(values: Iterable[Any]) -> Mapping[str, Any]:
    codes, levels = pandas.factorize(pandas.Series(list(values), dtype=object))
    return {"codes": codes.tolist(), "levels": [str(level) for level in levels]}


def _data_url(picture: Picture) -> str:
    """The picture as a URL. Raises ValueError where it is no PNG or WebP."""
    for start, kind in TYPES.items():
        if re.match(start, picture.data, re.DOTALL):
            return f"data:{kind};base64,{base64.b64encode(picture.data).decode()}"
    raise ValueError(f"the picture {picture.alt!r} must be the bytes of a PNG or a WebP file")


def _compact(value: Any, **options: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False, **options)


def _check_names(names: Iterable[str]) -> None:
    for name, times in Counter(names).items():
        if times > 1 or not NAME.fullmatch(name):
            why = "is used twice" if times > 1 else "must be letters, digits and single dashes"
            raise ValueError(f"the report's name {name!r} {why}")
