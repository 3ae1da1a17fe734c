"""What a section of the report holds: figures and tables with their numbers. No HTML.

A section's module has `section(results) -> Section | None`; the page and the files beside it are
made of what it returns, so a section decides what is shown and never how.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas


@dataclass(frozen=True)
class Figure:
    """A Vega-Lite figure and its numbers.

    name: of its files, `report/figures/NAME.csv`, `.svg` and `.pdf`; letters, digits and dashes.
    caption: a sentence on what it shows and how it is read. alt: the same in words for a screen
    reader, with the main numbers. data: what is drawn, tidy; the page embeds it and offers it as
    CSV. spec: Vega-Lite without data and config, which the page adds, and with them `width:
    "container"` for a single or layered view.
    """

    name: str
    caption: str
    alt: str
    data: pandas.DataFrame
    spec: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Table:
    """A table's numbers, exported in full to `report/tables/NAME.csv`, `.parquet` and `.tex`.

    formats: by column, how it is shown (`display.FORMATS`). Columns without a format are shown as
    they are. best: columns whose largest number is bold in LaTeX.
    """

    name: str
    caption: str
    data: pandas.DataFrame
    formats: Mapping[str, str] = field(default_factory=dict)
    best: Sequence[str] = ()


@dataclass(frozen=True)
class Picture:
    """A PNG that the page holds; alt: what it shows, in words."""

    alt: str
    png: bytes


@dataclass(frozen=True)
class Thumbnail:
    """A small WebP that the page holds; alt: in words what it shows, also under a pointer."""

    alt: str
    webp: bytes


@dataclass(frozen=True)
class Gallery:
    """Thumbnails side by side under a caption."""

    caption: str
    thumbnails: Sequence[Thumbnail]


@dataclass(frozen=True)
class Section:
    """A part of the page.

    key: its anchor. text: a short paragraph, plain text. statements: computed sentences, such as
    a published claim with whether it holds for this run, and the numbers.
    """

    key: str
    heading: str
    text: str = ""
    statements: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    galleries: Sequence[Gallery] = ()
