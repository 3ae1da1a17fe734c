"""The table that lists the checkpoints of a grid (`engine.methods.beyond.checkpoint`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.errors import RecipeError
from engine.machine.files import read_csv_rows
from engine.measures.rows import PRE

HEADER = "name,method,downstream,seed,file,head"


@dataclass(frozen=True)
class Line:
    """A line of a table; file and head with their folders, head None without one."""

    name: str
    method: str
    downstream: str
    seed: int
    file: Path
    head: Path | None


def read_table(table: Path) -> list[Line]:
    """The lines of a table. Raises RecipeError, naming table and line, for malformed lines, two
    lines of one method, dataset and seed, and files that are missing."""
    lines: dict[tuple[str, str, int], Line] = {}
    for number, row in read_csv_rows(table, HEADER, "method.table"):
        place, fault = f"{table}, line {number}", ""
        is_pre = len(row) == 6 and row[1:4] == [PRE, "", ""]
        if not is_pre and (len(row) != 6 or not all(row[:3]) or not row[3].isdecimal()):
            raise RecipeError(
                f"{place}: write {HEADER}, where seed is a number, head may be empty, and the "
                f"method {PRE} has neither downstream nor seed"
            )
        name, method, downstream, seed, file, head = row
        key = method, downstream, int(seed or 0)
        line = Line(name, *key, table.parent / file, table.parent / head if head else None)
        if key in lines:
            fault = f"{lines[key].name} and {name} are both {method} on {downstream}, seed {seed}"
        for path in filter(None, (line.file, line.head)):
            if not path.is_file():
                fault = f"{path} is not a file"
        if fault:
            raise RecipeError(f"{place}: {fault}")
        lines[key] = line
    return list(lines.values())
