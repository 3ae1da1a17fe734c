"""Accuracy by group of images, the worst group, and macro F1, for datasets with further columns.

A column of a dataset, such as a photo's location, divides its images into groups. The worst group
of a column has the lowest accuracy. Its interval is that of the group's accuracy; by chance, the
lowest of many small groups is too low. An interval from the minimum over groups in each draw would
count chance twice: in simulations of ten equal groups of 100 images, 1% of such intervals contained
the truth, and 87% of the groups' own.

Macro F1 is the mean over the classes of a dataset's images of 2 TP / (2 TP + FP + FN), in percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas
from scipy import sparse

from engine.measures import bootstrap, metrics, predictions
from engine.measures.bootstrap import DRAWS
from engine.measures.metrics import CELL, Grid
from engine.measures.predictions import ImagePredictions, SetPredictions
from engine.measures.rows import PRE, Arm, Evaluation, trained_sets

GROUP = ["column", "group"]
MACRO_F1 = "macro_f1"  # as a column, whose only group is empty
HALVES = ["first_half_pct", "second_half_pct"]


def accuracy_by_group(
    grid: Grid, evaluations: Sequence[Evaluation], draws: int = DRAWS
) -> pandas.DataFrame:
    """Accuracy by group and macro F1 of shown arms on datasets that have columns; otherwise empty.

    Columns: arm (index in `grid.arms`), downstream (empty: the pretrained model, or the mean over
    models not fine-tuned on the dataset), evaluated_on, column, group, images, value_pct and
    change_pts with the bounds of their 95% intervals, and is_worst (whether the group is the worst
    of its column). `MACRO_F1` is a column with one group. Raises ValueError if evaluations of one
    dataset used different images.
    """
    arms = {arm: k for k, arm in enumerate(grid.arms)}
    # Where each column has a pretrained model, models are evaluated on all images of a dataset that
    # they were not trained on, and on the held-out images of the others.
    by_column = any(row.method == PRE and row.downstream for row in evaluations)
    by_set: dict[tuple[str, bool], list[Evaluation]] = {}
    for row in evaluations:
        if row.headline:
            place = row.evaluated_on, by_column and row.on_downstream
            by_set.setdefault(place, []).append(row)
    tables = []
    for rows in by_set.values():
        if predictions.columns_of(rows[0].path):
            names, parts = _of_set(rows, draws)
            of_parts = metrics.grid_of(*parts, grid.sets, "", grid.downstreams)
            table = _table(of_parts, names)
            tables.append(table.assign(arm=[arms[of_parts.arms[k]] for k in table["arm"]]))
    if not tables:
        return pandas.DataFrame(columns=[*CELL, *GROUP])
    return pandas.concat(tables, ignore_index=True)


def _of_set(
    rows: Sequence[Evaluation], draws: int
) -> tuple[
    list[tuple[str, str]], tuple[list[Evaluation], list[dict[str, float]], dict[str, np.ndarray]]
]:
    """Column and group of each part of a dataset, and the arguments of `metrics.grid_of` for
    evaluations on the parts, which are numbered."""
    bank = SetPredictions()
    read = [bank.add(row.path, row.model) for row in rows]
    counts = bootstrap.counts(bank.sources, draws)
    names_of_parts, drawn = [], []
    numbers: list[dict[str, float]] = []

    def add(names: tuple[str, str], n: int, sources: int, values: np.ndarray) -> None:
        names_of_parts.append(names)
        numbers.extend({"images": n, "sources": sources, "accuracy": of} for of in values.tolist())

    for column in predictions.columns_of(rows[0].path):
        names, group_N = np.unique(bank.column(column), return_inverse=True)
        if len(names) == 1:  # the one part of a split that is held out, for example
            continue
        for number, name in enumerate(names.tolist()):
            here_N = group_N == number
            total = bank.by_source(here_N)
            right = np.column_stack([bank.by_source(here_N & of.hit) for of in read])
            known = total > 0
            drawn.append(100 * bootstrap.means(counts[known], total[known], right[known]))
            values = 100 * right.sum(axis=0) / total.sum()
            add((column, name), int(here_N.sum()), int(known.sum()), values)
    drawn.append(np.column_stack([macro_f1(of, bank.codes, counts) for of in read]))
    ones = np.ones((len(bank.sources), 1), np.uint8)
    values = np.array([macro_f1(of, bank.codes, ones)[0] for of in read])
    add((MACRO_F1, ""), len(bank.images), len(bank.sources), values)
    evaluations = [
        replace(row, evaluated_on=f"{row.evaluated_on}\0{number}")
        for number in range(len(names_of_parts))
        for row in rows
    ]
    samples = np.concatenate(drawn, axis=1).astype(np.float32)
    return names_of_parts, (evaluations, numbers, {"accuracy": samples})


def macro_f1(of: ImagePredictions, codes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Macro F1 in percent, float64 [B], of draws that count each source as in counts [sources, B].

    codes: int [images], each image's source. A draw averages over the classes of its images.
    """
    classes, label_N = np.unique(of.label, return_inverse=True)
    top1_N = np.searchsorted(classes, of.top1).clip(max=len(classes) - 1)
    known_N = classes[top1_N] == of.top1
    shape = len(classes), len(counts)

    def totals(classes_N: np.ndarray, case_N: np.ndarray) -> np.ndarray:
        """[classes, B]: the weight of each class's images selected by `case_N`."""
        sums = sparse.csc_array((of.weights * case_N, (classes_N, codes)), shape)
        drawn = np.zeros((len(classes), counts.shape[1]))
        for start in range(0, len(counts), bootstrap.TOGETHER):
            part = slice(start, start + bootstrap.TOGETHER)
            drawn += sums[:, part] @ counts[part].astype(np.float64)
        return drawn

    true = totals(label_N, np.ones(len(label_N)))
    both = true + totals(top1_N, known_N)
    f1 = 2 * totals(label_N, of.hit) / np.where(both > 0, both, 1)
    is_drawn = true > 0
    return 100 * np.where(is_drawn, f1, 0).sum(axis=0) / np.maximum(is_drawn.sum(axis=0), 1)


def _table(grid: Grid, names: Sequence[tuple[str, str]]) -> pandas.DataFrame:
    cells = grid.cells
    is_own = [
        name.partition("\0")[0] in trained_sets(downstream)
        for name, downstream in zip(cells["evaluated_on"], cells["downstream"], strict=True)
    ]
    others = cells[~np.array(is_own) & (cells["method"] != PRE)]
    part = ["arm", "evaluated_on"]
    tables = [
        _numbers(grid, cells, [*part, "downstream"]),
        _numbers(grid, others, part),
    ]
    table = pandas.concat(tables, ignore_index=True).fillna({"downstream": ""})
    parts = table["evaluated_on"].str.partition("\0")
    columns, groups = zip(*(names[int(number)] for number in parts[2]), strict=True)
    table = table.assign(evaluated_on=parts[0], column=columns, group=groups)
    of_column = table.groupby([*CELL, "column"])["value_pct"]
    is_worst = (table.index == of_column.transform("idxmin")) & (table["column"] != MACRO_F1)
    table = table.assign(is_worst=is_worst)
    return table[[*CELL, *GROUP, *table.columns.drop([*CELL, *GROUP])]]


def _numbers(grid: Grid, cells: pandas.DataFrame, by: Sequence[str]) -> pandas.DataFrame:
    trained = cells[cells["method"] != PRE]
    value = grid.mean(cells, by).table("value_pct", clip=True)
    change = grid.mean(trained, by, of="change").table("change_pts")
    images = cells.groupby(list(by), sort=False)["images"].first().reset_index()
    return images.merge(value, on=by).merge(change, on=by, how="left")


def accuracy_by_half(evaluations: Sequence[Evaluation], arms: Sequence[Arm]) -> pandas.DataFrame:
    """Accuracy in percent of each arm on both halves of its downstream dataset's images, so that
    one half can choose and the other measure: one row per arm (its index in `arms`) and downstream
    dataset, and the columns `HALVES`.

    A half has every second source image, so that all copies of one are in the same half. Means are
    over seeds and the datasets of a union; a half without images is NaN.
    """
    places, rows = {arm: k for k, arm in enumerate(arms)}, []
    for row in evaluations:
        if row.on_downstream and row.headline:
            table = predictions.read_predictions(row.path)
            half = np.unique(table["source"].to_numpy(), return_inverse=True)[1] % 2
            weight = predictions.weights(table)
            hit = table["top1"].to_numpy() == table["label"].to_numpy()
            right, total = (np.bincount(half, of, minlength=2) for of in (weight * hit, weight))
            with np.errstate(invalid="ignore"):
                rows.append((places[row.arm], row.downstream, *(100 * right / total)))
    table = pandas.DataFrame(rows, columns=["arm", "downstream", *HALVES])
    return table.groupby(["arm", "downstream"], sort=False)[HALVES].mean().reset_index()
