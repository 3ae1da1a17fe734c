"""Read accuracies of models outside campaigns from CSV files, as baselines for trend lines.

They are the user's (`read_model_rows`), or published by timm (`published`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas

COLUMNS = ["model", "set", "accuracy"]
# Parts of timm's tags that mark models which saw other data than ImageNet-1K, or had adversarial
# training.
OTHER_DATA = {
    "in12k", "in21k", "in22k", "jft", "yfcc100m", "ig1b", "laion2b", "laiona", "openai", "clip",
    "webli", "seer", "swag", "m30m", "m38m", "6m", "ssld", "usi",
}  # fmt: skip
ADVERSARIAL = {"ap", "adv"}
# BEiT v2's tokenizer was trained with CLIP, and BiT's student with an ImageNet-21K teacher.
OTHER_TEACHER = re.compile(r"beitv2_|.*\.goog_distilled")


def read_model_rows(path: Path, sets: Sequence[str], upstream: str) -> pandas.DataFrame:
    """Accuracy in percent, one row per model and one column per dataset; NaN if missing.

    The file is a CSV with the columns `COLUMNS`, one line per model and dataset, and top-1 accuracy
    in percent; other columns are ignored. Raises ValueError naming file, line and fix.
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
            f"{path} is not a CSV file in UTF-8 with the columns {names} ({error})"
        ) from error
    rows[["model", "set"]] = rows[["model", "set"]].apply(lambda texts: texts.str.strip())
    percent = pandas.to_numeric(rows["accuracy"], errors="coerce")
    wrong = {
        "the line names no model": rows["model"].fillna("") == "",
        f"the campaign has no such set, only {', '.join(places)}": ~rows["set"].isin(places),
        "the accuracy is not a number from 0 to 100 (percent)": ~percent.between(0, 100),
        "the set is given twice; leave one of the lines": rows.duplicated(["model", "set"]),
    }
    for why, lines in wrong.items():
        for line, row in rows[lines].iterrows():
            raise ValueError(f"{path}, line {line + 2}: {row.model} on {row.set}: {why}")
    if not percent.max() > 1:
        raise ValueError(f"{path}: no accuracy is above 1: give accuracies in percent")
    table = rows.assign(accuracy=percent).pivot(index="model", columns="set", values="accuracy")
    table = table.reindex(columns=places)
    lacking = table.index[table[upstream].isna() | (table.count(axis=1) < 2)]
    if len(lacking):
        raise ValueError(
            f"{path}: {', '.join(lacking)}: add a line for the upstream dataset, {upstream}, and "
            "one for another dataset"
        )
    return table


def published(path: Path, sets: Sequence[str], upstream: str) -> pandas.DataFrame | None:
    """Accuracy in percent of timm's models that saw only ImageNet-1K (`saw_in1k_alone`), one row
    per model and one column per dataset; NaN if not published. None if timm publishes no upstream
    accuracy, or none on the other datasets.

    path: `recipes/timm_models.csv`.
    """
    known = pandas.read_csv(path, comment="#", nrows=0).columns
    if upstream not in known or not set(sets) & set(known):
        return None
    table = pandas.read_csv(path, comment="#", index_col="model")
    return table[table.index.map(saw_in1k_alone)].reindex(columns=[upstream, *sets])


def of_model(path: Path, name: str) -> dict[str, float]:
    """Accuracy in percent by dataset that timm publishes for its weights `name`, or {}. path: as in
    `published`."""
    table = pandas.read_csv(path, comment="#", index_col="model")
    if name not in table.index:
        return {}
    row = zip(table.columns, table.loc[name].to_numpy(float), strict=True)
    return {str(on): float(accuracy) for on, accuracy in row if accuracy == accuracy}


def saw_in1k_alone(name: str) -> bool:
    """Whether weights saw only ImageNet-1K, according to timm's name `ARCHITECTURE.TAG`."""
    parts = {*name.partition(".")[2].split("_")}
    is_other = parts & (OTHER_DATA | ADVERSARIAL) or OTHER_TEACHER.match(name)
    return "in1k" in parts and not is_other


def family(name: str) -> str:
    """The first letters of an architecture's name, shared by near copies: `resnet` for
    `resnet50d.ra2_in1k`."""
    letters = re.match("(tf_|legacy_)?([a-z]+)", name)
    return letters[2] if letters else name
