"""Options of listed checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import RecipeError
from engine.model_files.checkpoint_table import Line, read_table
from engine.recipe import schema
from engine.recipe.schema import MethodRecipe


@dataclass(frozen=True)
class Recipe(MethodRecipe):
    trains = False
    table: str = ""  # CSV file that lists the checkpoints
    row: str = ""  # the value of its column `method`

    def line(self, cell: schema.Recipe) -> Line:
        """The cell's line. Raises RecipeError, naming the table, if it has none."""
        lines = read_table(Path(self.table))
        wanted = self.row, cell.downstream, cell.seed
        for line in lines:
            if (line.method, line.downstream, line.seed) == wanted:
                return line
        raise RecipeError(
            f"{self.table} has no line of {self.row} on {cell.downstream} with seed {cell.seed}: "
            "add it, or leave the row out by methods=[...]"
        )

    def files(self, cell: schema.Recipe) -> Sequence[Path]:
        line = self.line(cell)
        return [line.file, *filter(None, [line.head])]
