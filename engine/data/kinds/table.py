"""Datasets as tables of images: a CSV, Parquet or text file with a row for each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from engine.data.imagenet import wnids
from engine.data.kinds import base, folder
from engine.errors import RecipeError
from engine.recipe.schema import PACK, DatasetRecipe, marked
from loaders import tables
from loaders.trees import Listing

GIVEN = "split"  # the column of tables that are given by split


@dataclass(frozen=True)
class Recipe(DatasetRecipe):
    """Where the table is, and what its columns mean; images are below `root`."""

    # .csv, .parquet, .jsonl, or .txt with lines `path label`, below root unless absolute; a pattern
    # such as data/*.parquet is several files. By split, such as {train: a.txt, test: b.txt}, they
    # are one table with the column `split`
    table: str | dict[str, str] = marked(PACK, "")
    # column of the image's path, below root, or of the images themselves in a parquet file
    path_column: str = marked(PACK, "path")
    label_column: str = marked(PACK, "label")  # column of the class
    source_column: str = marked(PACK, "")  # photo that an image shows; empty: each its own
    # kept with the images, such as a domain; a+b joins the values of two columns
    columns: list[str] = marked(PACK, list)
    # the rows of the dataset: those with these values, by column
    where: dict[str, list[str]] = marked(PACK, dict)

    @property
    def knows_photos(self) -> bool:
        return bool(self.source_column)

    def check(self, name: str) -> None:
        if not self.table:
            raise RecipeError(f"dataset.table of {name} has no value: name its CSV or Parquet file")
        if self.split.files:
            raise RecipeError(
                f"dataset.split.files of {name}: files list images in folders; the split of a "
                "table is a column, dataset.split.column"
            )


class Kind(folder.Kind):
    """The rows of a table whose images are below `dataset.root`, or in the table."""

    dataset: Recipe  # pyright: ignore[reportIncompatibleVariableOverride]
    read_rows: ClassVar[Sequence[tables.Reader]] = ()  # reads the file; empty: by its suffix

    def read(self, source: Path | None = None) -> Listing:
        dataset, root = self.dataset, source or self.root
        split, given = dataset.split, isinstance(dataset.table, dict)
        files = dataset.table if isinstance(dataset.table, dict) else {"": dataset.table}
        allowed = {split.column: (*split.train, *split.holdout)} if split.column else {}
        if self.head:
            allowed[dataset.label_column] = tuple(self._labels())
        kept = dict.fromkeys([*dataset.columns, *dataset.parts, *filter(None, [split.column])])
        columns = tables.Columns(
            dataset.path_column,
            dataset.label_column,
            dataset.source_column,
            tuple(kept),
            {name: frozenset(values) for name, values in dataset.where.items()},
            {name: frozenset(values) for name, values in allowed.items()},
        )
        places = {value: root / file for value, file in files.items()}
        return tables.listing(root, places, columns, GIVEN if given else "", *self.read_rows)

    def _labels(self) -> Sequence[str]:
        """The labels that the head knows: classes with outputs of their own, or the outputs' names
        or, of ImageNet's, their numbers."""
        if file := self.dataset.class_map:
            from engine.data import masks  # late: planning imports no torch

            return list(masks.read_outputs(Path(file), self.head))
        numbers = map(str, range(len(self.head)))
        return [*self.head, *numbers] if tuple(self.head) == wnids() else self.head

    def identity(self) -> dict[str, Any]:
        kept = [*self.dataset.parts, self.dataset.split.column]
        return base.Kind.identity(self) | {"kept": kept}

    def remarks(self, others: Sequence[base.Kind]) -> list[str]:
        return []

    @property
    def root(self) -> Path:
        return Path(self.dataset.root)
