"""Accuracy of users' own models on their sets, as a CSV file and in the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from engine.evaluation.user_models import ModelAccuracy
from engine.machine.files import room_for, write_atomic
from engine.measures.rows import inert
from engine.measures.standings import rounded
from engine.report import console, table
from engine.store import tensors

HEADS = ("model", "alpha", "set", "n", "accuracy", "low", "high", "mask", "classes")
LONGEST_NAME = 40  # letters of a model's name in the terminal, where its end is shown


def write_csv(path: Path, rows: Sequence[ModelAccuracy]) -> None:
    """The rows with six decimals. Raises OSError, naming the file, where it cannot be written."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADS)
    for row in rows:
        alpha = "" if row.alpha is None else f"{row.alpha:.10g}"
        ends = ["" if end is None else rounded(end, 6) for end in (row.low, row.high)]
        accuracy = f"{row.accuracy:.6f}"
        model, name = inert(row.model), inert(row.set)
        writer.writerow([model, alpha, name, row.n, accuracy, *ends, row.mask, row.classes])
    with room_for(path):
        write_atomic(path, text.getvalue().encode())


def text(rows: Sequence[ModelAccuracy]) -> str:
    """Accuracy in percent, a line a model and a column a set; further sets are in tables below.

    `classes` counts the possible answers. Half the width of its interval is beside an accuracy.
    """
    sets = {row.set: row for row in rows}
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        name = row.model.removesuffix(f"/{tensors.WEIGHTS}")  # a cell is named by its folder
        cell = rounded(row.accuracy, 2)
        if row.low is not None and row.high is not None:
            cell += f" ±{rounded((row.high - row.low) / 2, 2)}"
        lines.setdefault(name if row.alpha is None else f"{row.alpha:.10g}", {})[row.set] = cell
    first = "model" if rows[0].alpha is None else "alpha"
    margin = min(LONGEST_NAME, max(map(len, ("classes", *lines))))
    width = max(8, *(len(cell) for cells in lines.values() for cell in cells.values()))
    columns = (console.WIDTH - margin) // (width + 2)
    tables = []
    for start in range(0, len(sets), columns):
        names = list(sets)[start : start + columns]
        tables.append(
            console.text(
                "",
                [first, *map(table.set_head, names)],
                [
                    ["images", *(f"{sets[name].n:,}" for name in names)],
                    ["classes", *(f"{sets[name].classes:,}" for name in names)],
                ],
                [
                    [label[-LONGEST_NAME:], *(cells[name] for name in names)]
                    for label, cells in lines.items()
                ],
            )
        )
    return "\n\n".join(tables)
