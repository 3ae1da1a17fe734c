"""Accuracies of models that are in no campaign, from a CSV file: what trend lines are fitted over.

They are a user's (`read`), or those that timm publishes (`published`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas

COLUMNS = ["model", "set", "accuracy"]
# Parts of a tag of timm's by which a model saw other data than ImageNet-1K, or was trained to
# withstand adversarial images.
OTHER_DATA = {
    "in12k", "in21k", "in22k", "jft", "yfcc100m", "ig1b", "laion2b", "laiona", "openai", "clip",
    "webli", "seer", "swag", "m30m", "m38m", "6m", "ssld", "usi",
}  # fmt: skip
ADVERSARIAL = {"ap", "adv"}
# BEiT v2's tokenizer is learned from CLIP, and BiT's student from a teacher of ImageNet-21K.
OTHER_TEACHER = re.compile(r"beitv2_|.*\.goog_distilled")


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


def published(path: Path, sets: Sequence[str], upstream: str) -> pandas.DataFrame | None:
    """Accuracy in percent of timm's models that saw ImageNet-1K alone (`saw_in1k_alone`), a row a
    model and a column a set; NaN where none is published. None without an accuracy upstream, or on
    any of the sets.

    path: `recipes/timm_models.csv`.
    """
    known = pandas.read_csv(path, comment="#", nrows=0).columns
    if upstream not in known or not set(sets) & set(known):
        return None
    table = pandas.read_csv(path, comment="#", index_col="model")
    return table[table.index.map(saw_in1k_alone)].reindex(columns=[upstream, *sets])


def of_model(path: Path, name: str) -> dict[str, float]:
    """Accuracy in percent by set that timm publishes of its weights `name`; empty where it has
    none. path: as in `published`."""
    table = pandas.read_csv(path, comment="#", index_col="model")
    if name not in table.index:
        return {}
    row = zip(table.columns, table.loc[name].to_numpy(float), strict=True)
    return {str(on): float(accuracy) for on, accuracy in row if accuracy == accuracy}


def saw_in1k_alone(name: str) -> bool:
    """Whether timm's name of weights, `ARCHITECTURE.TAG`, says that no other data was seen."""
    parts = {*name.partition(".")[2].split("_")}
    is_other = parts & (OTHER_DATA | ADVERSARIAL) or OTHER_TEACHER.match(name)
    return "in1k" in parts and not is_other


def family(name: str) -> str:
    """The first letters of an architecture's name, which near copies of it share: `resnet` of
    `resnet50d.ra2_in1k`, whoever ported it."""
    letters = re.match("(tf_|legacy_)?([a-z]+)", name)
    return letters[2] if letters else name
