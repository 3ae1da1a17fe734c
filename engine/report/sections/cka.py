"""How far fine-tuning moved the features of each block, and whether that goes with accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas

from engine.measures import correlation
from engine.measures.rows import Arm
from engine.measures.setting import Setting
from engine.measures.tables import groups
from engine.report import charts
from engine.report.results import Results
from engine.report.section import Section, Table
from engine.report.sections.figures import by_model

CELL = ["model", "method", "variant", "downstream", "evaluated_on"]


def section(results: Results) -> Section | None:
    blocks = _blocks(results)
    if blocks.empty:
        return None
    elsewhere = blocks[blocks["downstream"] != blocks["evaluated_on"]]
    cells = _mean(elsewhere, CELL).merge(results.cells[[*CELL, "change_pts"]], on=CELL)
    return Section(
        "cka",
        "; ".join(f"{_heading(rows)}{results.of(model)}" for model, rows in groups(cells, "model")),
        "Linear centred kernel alignment (CKA, Kornblith et al. 2019) of each block's output "
        "before and after fine-tuning, over the same images: 1 where the features are the same "
        "but for a rotation and a scale. It is estimated without bias from minibatches (Nguyen et "
        "al. 2021), with an image's features at all positions as one vector. Only sets that a "
        "model was not fine-tuned on count; methods without features of their own are left out. "
        "The correlation ranks the models of each method within each evaluated set, because "
        "methods and sets differ in both numbers; p is by permutation of the sets fine-tuned on.",
        figures=[
            *by_model(
                results,
                "cka-depth",
                "CKA before against after fine-tuning, by depth (1: the last block)",
                _mean(elsewhere, ["model", "method", "block", "depth"]),
                ("cka", "method", "block"),
                lambda rows: charts.curve(rows, "depth", "cka", "method", x_title="depth"),
            ),
            *by_model(
                results,
                "cka-accuracy",
                "Mean CKA over the blocks against the change in accuracy; a dot a fine-tuned model "
                "and set",
                cells.drop(columns="variant"),
                ("change_pts", "method", "evaluated_on"),
                lambda rows: charts.scatter(rows, "cka", "change_pts", "method"),
            ),
        ],
        tables=[Table("cka", "CKA of each block, a mean over training seeds.", blocks)],
    )


def _blocks(results: Results) -> pandas.DataFrame:
    """A row a cell of a table and block: its CKA, and its depth (1: the last block)."""
    arms = {arm: k for k, arm in enumerate(results.grid.arms)}
    rows = [
        {"arm": arms.get(_arm(row), -1)}
        | {name: row[name] for name in ("downstream", "evaluated_on")}
        | {"block": block, "depth": number / len(row["blocks"]), "cka": value}
        for row in results.record.cka or ()
        for number, (block, value) in enumerate(row["blocks"].items(), start=1)
    ]
    data = pandas.DataFrame(rows, columns=["arm", *CELL[3:], "block", "depth", "cka"])
    data = results.shown[["arm", *CELL[:3]]].merge(data.astype({"cka": float}), on="arm")
    return _mean(data, [*CELL, "block", "depth"])


def _arm(row: Mapping[str, Any]) -> Arm:
    """The arm of a row of the record, as JSON has it."""
    return Arm(*(row[name] for name in Arm._fields))._replace(setting=Setting(row["setting"]))


def _mean(data: pandas.DataFrame, keys: list[str]) -> pandas.DataFrame:
    """The mean CKA of each group; unknown where one of its numbers is."""
    groups = data.groupby(keys, sort=False)["cka"]
    return groups.agg(lambda values: values.mean(skipna=False)).reset_index()


def _heading(cells: pandas.DataFrame) -> str:
    """Spearman's correlation within each method and evaluated set, by the set fine-tuned on."""
    groups = ["method", "variant", "evaluated_on"]
    table = cells.pivot(index="downstream", columns=groups, values=["cka", "change_pts"])
    related = correlation.spearman(table["cka"].to_numpy(), table["change_pts"].to_numpy())
    if np.isnan(related.value):
        return "Whether features that moved less go with more accuracy is not known"
    words = "are not shown to go with more"
    if related.p < 0.05:
        words = "go with more" if related.value > 0 else "go with less"
    return (
        f"Within a method and a set, features that moved less {words} accuracy: Spearman "
        f"{related}, over {related.units} sets fine-tuned on"
    )
