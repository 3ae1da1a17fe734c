"""FMoW-WILDS in its published form: a table whose paths, regions and official split are derived."""

from __future__ import annotations

from dataclasses import dataclass

from engine.data.kinds import table
from engine.recipe.schema import PACK, marked
from loaders.benchmarks import fmow


@dataclass(frozen=True)
class Recipe(table.Recipe):
    """The table's file and columns; images are below `root`."""

    # the metadata's file, below root
    table: str | dict[str, str] = marked(PACK, "rgb_metadata.csv")
    label_column: str = marked(PACK, "category")  # column of the class


class Kind(table.Kind):
    """The rows of rgb_metadata.csv whose images are in `<dataset.root>/images`."""

    read_rows = (fmow.rows,)
