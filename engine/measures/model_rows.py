"""Accuracies of a user's models, from a CSV file: what trend lines can be fitted over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas

COLUMNS = ["model", "set", "accuracy"]


def read(path: Path, sets: Sequence[str], upstream: str) -> pandas.DataFrame:
    """Accuracy in percent, a row a model and a column a set; NaN where the file has none.

    The file is a CSV with the columns `COLUMNS`, a line a model and set, and accuracy top-1 in
    percent; further columns are not read. Raises ValueError naming file, line and remedy.
    """
    places, text = [upstream, *sets], {"model": str, "set": str}
    try:
        rows = pandas.read_csv(
            path, usecols=COLUMNS, dtype=text, keep_default_na=False, na_values="",
            encoding="utf-8-sig", skipinitialspace=True, skip_blank_lines=False,
        ).dropna(how="all")  # fmt: skip
    except (OSError, ValueError) as error:
        names = ", ".join(COLUMNS)
        raise ValueError(
            f"{path} cannot be read as a CSV file in UTF-8 with the columns {names} ({error})"
        ) from error
    rows[["model", "set"]] = rows[["model", "set"]].apply(lambda texts: texts.str.strip())
    percent = pandas.to_numeric(rows["accuracy"], errors="coerce")
    wrong = {
        "the line names no model": rows["model"].fillna("") == "",
        f"the campaign has no such set, only {', '.join(places)}": ~rows["set"].isin(places),
        "the accuracy is no number from 0 to 100 (percent)": ~percent.between(0, 100),
        "the set is given twice; leave one of the lines": rows.duplicated(["model", "set"]),
    }
    for why, lines in wrong.items():
        for line, row in rows[lines].iterrows():
            raise ValueError(f"{path}, line {line + 2}: {row.model} on {row.set}: {why}")
    if not percent.max() > 1:
        raise ValueError(f"{path}: no accuracy is above 1; give models and sets, in percent")
    table = rows.assign(accuracy=percent).pivot(index="model", columns="set", values="accuracy")
    table = table.reindex(columns=places)
    lacking = table.index[table[upstream].isna() | (table.count(axis=1) < 2)]
    if len(lacking):
        raise ValueError(
            f"{path}: {', '.join(lacking)} needs a line for the upstream set, {upstream}, and one "
            "for another set"
        )
    return table
