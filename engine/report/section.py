"""The content of a section of the report: figures and tables with their numbers. No HTML.

A section is a function `section(results) -> Section | None`, listed in `sections.SECTIONS`. The
page and the exported files are made from what it returns. A column's name determines its format
(`columns`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas


@dataclass(frozen=True, eq=False)
class Figure:
    """A Vega-Lite figure and its numbers.

    name: of its files, `report/figures/NAME.csv`, `.svg` and `.pdf`; letters, digits and dashes.
    caption: a sentence on what it shows and how to read it. alt: the same for screen readers, with
    the main numbers. data: tidy. spec: Vega-Lite without data, config and width (`charts`).
    """

    name: str
    caption: str
    alt: str
    data: pandas.DataFrame
    spec: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Table:
    """A table's numbers, exported in full to `report/tables/NAME.csv`, `.parquet` and `.tex`.

    data: as the page and LaTeX show it, with methods' titles. best: columns whose largest number is
    bold in LaTeX. hides_equal: whether the page leaves out columns that are equal in all rows.
    above: rows of percentages by title and column, which the page shows above the others. heads:
    names of columns on the page, where they differ. file: as CSV and Parquet have it, with methods'
    keys (`Results.with_keys`); None: data.
    """

    name: str
    caption: str
    data: pandas.DataFrame
    best: Sequence[str] = ()
    hides_equal: bool = False
    above: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    heads: Mapping[str, str] = field(default_factory=dict)
    file: pandas.DataFrame | None = None

    @property
    def numbers(self) -> pandas.DataFrame:
        """The content of the CSV and Parquet files."""
        return self.data if self.file is None else self.file


@dataclass(frozen=True)
class Picture:
    """An image of the page. alt: a description; url: a `data:` URL."""

    alt: str
    url: str


@dataclass(frozen=True)
class Section:
    """A part of the page.

    key: its anchor. heading: the finding, if there is one. text: plain, one paragraph per line.
    code: shown verbatim. pictures: by caption, in a row. is_open: whether the page shows it
    unfolded.
    """

    key: str
    heading: str
    text: str = ""
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    pictures: Mapping[str, Sequence[Picture]] = field(default_factory=dict)
    is_open: bool = False
    code: str = ""
