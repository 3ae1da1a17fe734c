"""How much fine-tuning changes each block's features, when, and its relation to accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas
from msgspec import Meta

from engine.measures import correlation
from engine.measures.rows import Arm, Scalar, Setting, trained_sets
from engine.measures.tables import groups
from engine.report import charts
from engine.report.results import Results, title
from engine.report.section import Section, Table
from engine.report.sections.curves import LABELS, X_OF_STEP_0, step_ticks
from loaders.files import typed_json

# Rounding may lead a little beyond 1.
Cka = Annotated[float, Meta(ge=-1.001, le=1.001)]
CELL = ["model", "method", "variant", "downstream", "evaluated_on"]


@dataclass(frozen=True)
class Row:
    """CKA of a model on a dataset by block, from the first to the last; None if features do not
    vary."""

    model: str
    method: str
    variant: str
    alpha: float | None
    setting: dict[str, Scalar]
    downstream: str
    evaluated_on: str
    blocks: Annotated[dict[str, Cka | None], Meta(min_length=1)]

    @property
    def arm(self) -> Arm:
        return Arm(self.model, self.method, self.variant, self.alpha, Setting(self.setting))


def section(results: Results) -> Section | None:
    blocks = _blocks(results)
    if blocks.empty:
        return None
    pairs = zip(blocks["downstream"], blocks["evaluated_on"], strict=True)
    elsewhere = blocks[[name not in trained_sets(downstream) for downstream, name in pairs]]
    cells = _mean(elsewhere, CELL).merge(results.cells[[*CELL, "change_pts"]], on=CELL)
    during = _during_training(results)
    tables = [Table("cka", "CKA of each block, averaged over training seeds.", blocks)]
    if not during.empty:
        caption = (
            "CKA with the pretrained model by optimizer step: means over blocks, datasets and "
            "training seeds."
        )
        tables.append(Table("cka-training", caption, during))
    return Section(
        "cka",
        "; ".join(f"{_heading(rows)}{results.of(model)}" for model, rows in groups(cells, "model")),
        "Linear centered kernel alignment (CKA, Kornblith et al. 2019) of each block's output "
        "before and after fine-tuning, over the same images; 1 means equal up to rotation and "
        "scale. The estimate from minibatches is unbiased (Nguyen et al. 2021); an image's "
        "features at all positions form one vector. Downstream datasets and methods without "
        "features of their own are excluded. The correlation ranks the models of each method "
        "within each dataset, because methods and datasets differ in both numbers; p is from "
        "permutations of the downstream datasets.",
        figures=[
            *charts.by_model(
                results,
                "cka-depth",
                "CKA before and after fine-tuning, by depth (1: last block)",
                _mean(elsewhere, ["model", "method", "block", "depth"]),
                ("cka", "method", "block"),
                lambda rows: charts.curve(rows, "depth", "cka", "method", x_title="depth"),
            ),
            *charts.by_model(
                results,
                "cka-accuracy",
                "Mean CKA over blocks and change in accuracy; one dot per model and dataset",
                cells.drop(columns="variant"),
                ("change_pts", "method", "evaluated_on"),
                lambda rows: charts.scatter(rows, "cka", "change_pts", "method"),
            ),
            *charts.by_model(
                results,
                "cka-training",
                "Mean CKA over blocks on other datasets, by optimizer step; pre: pretrained model",
                during[during["quantity"] == LABELS["ood"]].assign(
                    at=lambda rows: rows["step"].clip(lower=X_OF_STEP_0)
                ),
                ("cka", "method"),
                lambda rows: charts.curve(
                    rows,
                    "at",
                    "cka",
                    "method",
                    x_title="optimizer step",
                    ticks=step_ticks(rows["step"]),
                ),
            ),
        ],
        tables=tables,
    )


def _blocks(results: Results) -> pandas.DataFrame:
    """One row per cell and block: its CKA and depth (1: last block)."""
    arms = {arm: k for k, arm in enumerate(results.grid.arms)}
    rows = [
        {"arm": arms.get(row.arm, -1), "downstream": row.downstream}
        | {"evaluated_on": row.evaluated_on}
        | {"block": block, "depth": number / len(row.blocks), "cka": value}
        for row in _rows(results)
        for number, (block, value) in enumerate(row.blocks.items(), start=1)
    ]
    data = pandas.DataFrame(rows, columns=["arm", *CELL[3:], "block", "depth", "cka"])
    data = results.shown[["arm", *CELL[:3]]].merge(data.astype({"cka": float}), on="arm")
    return _mean(data, [*CELL, "block", "depth"])


def _during_training(results: Results) -> pandas.DataFrame:
    """One row per method with snapshots, kind of dataset and optimizer step, from step 0, at which
    the model is the pretrained one."""
    rows, keys = [], ["model", "method", "quantity", "step"]
    for row in _rows(results):
        arm, on = row.arm, row.evaluated_on
        kinds = {
            "downstream": on in trained_sets(row.downstream),
            "upstream": on == results.record.upstream,
            "ood": on in results.grid.sets,
        }
        kind = next((kind for kind, is_one in kinds.items() if is_one), None)
        if arm.step is not None and kind is not None:
            name = title(arm.without_step, results.record.methods)
            cka = np.array(list(row.blocks.values()), float).mean()
            rows += [
                (arm.model, name, LABELS[kind], at, of) for at, of in ((0, 1.0), (arm.step, cka))
            ]
    return _mean(pandas.DataFrame(rows, columns=[*keys, "cka"]), keys).sort_values(
        "step", kind="stable"
    )


def _rows(results: Results) -> list[Row]:
    """The rows of the record. Raises DamagedFile for values that no campaign writes."""
    rows = [*results.record.extras.get("cka", ())]
    place = Path(f"extras.cka in the record of {results.record.name}")
    return typed_json.convert(rows, list[Row], place, "run the campaign again")


def _mean(data: pandas.DataFrame, keys: list[str]) -> pandas.DataFrame:
    """The mean CKA of each group; NaN if one of its numbers is NaN."""
    groups = data.groupby(keys, sort=False)["cka"]
    return groups.agg(lambda values: values.mean(skipna=False)).reset_index()


def _heading(cells: pandas.DataFrame) -> str:
    """Spearman's correlation within each method and dataset, over downstream datasets."""
    groups = ["method", "variant", "evaluated_on"]
    table = cells.pivot(index="downstream", columns=groups, values=["cka", "change_pts"])
    related = correlation.spearman(table["cka"].to_numpy(), table["change_pts"].to_numpy())
    if np.isnan(related.value):
        return "The relation between features and accuracy is unknown"
    if related.units < correlation.FOR_A_TEST:
        return (
            f"{related.units} downstream datasets are too few to test whether features that "
            "changed less go with higher accuracy"
        )
    words = "are not significantly related to"
    if related.p < 0.05:
        words = "go with higher" if related.value > 0 else "go with lower"
    return (
        f"Within a method and dataset, features that changed less {words} accuracy: Spearman "
        f"{related}, over {related.units} downstream datasets"
    )
