"""How far fine-tuning moved the features of each block, and whether that goes with accuracy."""

from __future__ import annotations

import math

import numpy as np
import pandas

from engine.measures import correlation
from engine.measures.correlation import Correlation
from engine.measures.rows import Arm
from engine.measures.tables import rows
from engine.report import charts
from engine.report.results import Results
from engine.report.section import Figure, Section, Table
from engine.report.text import rounded, slug

CELL = ["model", "method", "variant", "downstream", "evaluated_on"]
ALL = "all sets"


def section(results: Results) -> Section | None:
    blocks = _blocks(results)
    if blocks.empty:
        return None
    cells = _cells(results, blocks)
    models = [model for model in results.models if model in set(blocks["model"])]
    by_model = {model: _relations(results, model, cells) for model in models}
    without = results.shown[~results.shown["method"].isin(blocks["method"])]["method"].unique()
    left_out = [f"Without features of their own, and left out: {', '.join(without)}."]
    relations = [
        {"model": model, "evaluated_on": name, "fine_tuned_models": related.units}
        | {"spearman_r": related.value, "spearman_low": related.low, "spearman_high": related.high}
        | {"p": related.p}
        for model, of_model in by_model.items()
        for name, related in of_model.items()
    ]
    statements = [f"{_relation(of[ALL])}{results.of(model)}." for model, of in by_model.items()]
    return Section(
        "cka",
        "; ".join(f"{_heading(of[ALL])}{results.of(model)}" for model, of in by_model.items()),
        "Linear centred kernel alignment (CKA, Kornblith et al. 2019) of each block's output "
        "before and after fine-tuning, over the same images: 1 where the features are the same "
        "but for a rotation and a scale. It is estimated without bias from minibatches (Nguyen et "
        "al. 2021), with an image's features at all positions as one vector. Only sets that a "
        "model was not fine-tuned on count.",
        statements + left_out[: len(without)],
        [_by_depth(results, model, blocks) for model in models]
        + [_scatter(results, *of, cells) for of in zip(models, statements, strict=True)],
        [
            Table(
                "cka-accuracy",
                "Spearman's correlation, over the fine-tuned models, of mean CKA with the change "
                "in accuracy on a set; p by permutation of the fine-tuned models; 95% intervals by "
                "bootstrap over them, where there are ten or more.",
                pandas.DataFrame(relations),
            ),
            Table("cka", "CKA of each block, a mean over training seeds.", blocks),
        ],
    )


def _blocks(results: Results) -> pandas.DataFrame:
    """A row a cell of a table and block: its CKA, and its depth (1: the last block)."""
    titles = {results.grid.arms[row.arm]: row for row in rows(results.shown)}
    lines = []
    for row in results.record.cka or ():
        arm = Arm(*(row[name] for name in Arm._fields))
        if arm not in titles:
            continue
        names = {"model": arm.model, "method": titles[arm].method, "variant": arm.variant}
        names |= {name: row[name] for name in ("downstream", "evaluated_on")}
        depth = len(row["blocks"])
        for number, (block, value) in enumerate(row["blocks"].items(), start=1):
            lines.append(names | {"block": block, "depth": number / depth, "cka": value})
    if not lines:
        return pandas.DataFrame()
    data = pandas.DataFrame(lines).astype({"cka": float})
    return _mean(data, [name for name in data.columns if name != "cka"])


def _mean(data: pandas.DataFrame, keys: list[str]) -> pandas.DataFrame:
    """The mean CKA of each group; unknown where one of its numbers is."""
    groups = data.groupby(keys, sort=False)["cka"]
    return groups.agg(lambda values: values.mean(skipna=False)).reset_index()


def _cells(results: Results, blocks: pandas.DataFrame) -> pandas.DataFrame:
    """A row a fine-tuned model and a set that it was not trained on: the mean of CKA over blocks,
    and the change in accuracy in points."""
    cells = _mean(blocks, CELL).merge(results.cells[[*CELL, "change_pts"]], on=CELL)
    return cells[cells["downstream"] != cells["evaluated_on"]].reset_index(drop=True)


def _relations(results: Results, model: str, cells: pandas.DataFrame) -> dict[str, Correlation]:
    """Spearman's coefficient by set, the last over all sets together."""
    of_model = cells[cells["model"] == model]
    by_set = {  # a campaign's only downstream set has no models that were fine-tuned on others
        name: _spearman(of_set)
        for name in results.before(model)
        if not (of_set := of_model[of_model["evaluated_on"] == name]).empty
    }
    return by_set | {ALL: _spearman(of_model)}


def _spearman(cells: pandas.DataFrame) -> Correlation:
    """The coefficient over the fine-tuned models that have all sets."""
    groups = cells.groupby(CELL[:-1], sort=False)
    units = [part[["cka", "change_pts"]].to_numpy() for _, part in groups]
    most = max(map(len, units), default=0)
    whole = [values for values in units if len(values) == most and not np.isnan(values).any()]
    x, y = np.stack(whole).transpose(2, 0, 1) if whole else np.zeros((2, 0, 0))
    return correlation.spearman(x, y)


def _heading(related: Correlation) -> str:
    if not related.p < 0.05:
        return "Features that moved less are not shown to go with more accuracy"
    return f"Features that moved less go with {'more' if related.value > 0 else 'less'} accuracy"


def _relation(related: Correlation) -> str:
    """Whether features that moved less go with more accuracy."""
    count = f"over {related.units} fine-tuned models"
    if math.isnan(related.value):
        return f"Mean CKA or the change in accuracy does not vary {count}: no correlation"
    return f"Mean CKA and change in accuracy: Spearman {related}, {count}"


def _by_depth(results: Results, model: str, blocks: pandas.DataFrame) -> Figure:
    elsewhere = blocks[blocks["downstream"] != blocks["evaluated_on"]]
    data = _mean(elsewhere[elsewhere["model"] == model], ["method", "block", "depth"])
    last = data[data["depth"] == 1].set_index("method")["cka"]
    numbers = ", ".join(f"{method} {rounded(value, 2)}" for method, value in last.items())
    return Figure(
        slug("cka-depth", model),
        f"CKA before against after fine-tuning{results.of(model)}, by depth (1: the last block).",
        f"CKA of the last block: {numbers}.",
        data,
        charts.curve(data, "depth", "cka", "method", x_title="depth"),
    )


def _scatter(results: Results, model: str, text: str, cells: pandas.DataFrame) -> Figure:
    data = cells[cells["model"] == model].drop(columns=["model", "variant"])
    return Figure(
        slug("cka-accuracy", model),
        f"Mean CKA over the blocks against the change in accuracy{results.of(model)}; a dot a "
        "fine-tuned model and set.",
        text,
        data,
        charts.scatter(data, "cka", "change_pts", "method"),
    )
