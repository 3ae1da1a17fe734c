"""A row of a campaign's table, chosen by what its columns say. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.measures.rows import Evaluation

OPTIONS = {
    "method": "--method",
    "downstream": "--set",
    "setting": "--setting",
    "alpha": "--alpha",
    "seed": "--seed",
}  # of `rib export`, by the column that each chooses in


def choose(rows: Sequence[Evaluation], values: Mapping[str, object]) -> Evaluation:
    """The row that these values choose, by column; None where the user chose nothing.

    Raises ValueError, naming the option, where there is no such row or more than one.
    """
    for column, option in OPTIONS.items():
        value = values[column]
        valid = list(dict.fromkeys(getattr(row, column) for row in rows))
        if column == "setting" and value is None and "" in valid:
            value = ""  # the plain grid; every other setting has a name
        check_choice(option, value, valid)
        rows = [row for row in rows if value is None or getattr(row, column) == value]
    return rows[0]


def check_choice(option: str, value: object, valid: Sequence[object]) -> None:
    """Raise ValueError unless `value` is valid, or None where there is no choice."""
    if value in valid or (value is None and len(valid) == 1):
        return
    if valid in ([None], [""]):
        raise ValueError(f"{option} {value}: this row has none; leave the option out")
    shown = ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in valid)
    if value is None:
        raise ValueError(f"there is more than one such row: add {option}, one of {shown}")
    raise ValueError(f"there is no row of {option} {value}, only of {shown}")
