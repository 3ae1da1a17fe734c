"""What a section of the report holds: figures and tables with their numbers. No HTML.

A section is a function `section(results) -> Section | None`, named in `sections.SECTIONS`; the page
and the files beside it are made of what it returns, so a section decides what is shown and never
how. A column's name says how it is shown (`columns`).
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
    caption: a sentence on what it shows and how it is read. alt: the same in words for a screen
    reader, with the main numbers. data: what is drawn, tidy. spec: Vega-Lite without data, config
    and width (`charts`).
    """

    name: str
    caption: str
    alt: str
    data: pandas.DataFrame
    spec: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Table:
    """A table's numbers, exported in full to `report/tables/NAME.csv`, `.parquet` and `.tex`.

    best: columns whose largest number is bold in LaTeX.
    """

    name: str
    caption: str
    data: pandas.DataFrame
    best: Sequence[str] = ()


@dataclass(frozen=True)
class Picture:
    """An image that the page holds. alt: in words what it shows; url: a `data:` URL."""

    alt: str
    url: str


@dataclass(frozen=True)
class Section:
    """A part of the page.

    key: its anchor. heading: what was found, where there is a finding. text: plain, a paragraph a
    line. code: shown as it is. pictures: by caption, side by side. is_open: whether the page shows
    it unfolded.
    """

    key: str
    heading: str
    text: str = ""
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    pictures: Mapping[str, Sequence[Picture]] = field(default_factory=dict)
    is_open: bool = False
    code: str = ""
