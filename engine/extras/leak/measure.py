"""The leak: the effect of train-test overlap, the gain from having seen a photo elsewhere.

Datasets may show renderings of the same photos. A model fine-tuned on one has then seen the photos
and labels that the others test it on. If a photo is held out of all datasets or of none
(`dataset.holdout_by=source`), the leak is the change in accuracy on seen photos minus the change on
held-out photos. Each change is relative to the pretrained model on the same images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pyarrow as pa

from engine.measures import bootstrap, metrics, predictions
from engine.measures.bootstrap import DRAWS
from engine.measures.metrics import CELL, Grid
from engine.measures.predictions import Keep, SetPredictions
from engine.measures.rows import PRE, SEEN, TEST, Evaluation, of_role, trained_sets

UNSEEN = "unseen"


def of(grid: Grid, every: Sequence[Evaluation], draws: int = DRAWS) -> pandas.DataFrame:
    """The leak of each shown arm: one row per arm, downstream dataset and dataset of RI with the
    same photos. An empty evaluated_on is the mean over these datasets, an empty downstream the mean
    over the downstream datasets. Empty if no dataset of RI shares photos with a downstream dataset.

    Columns: arm (index in `grid.arms`), downstream, evaluated_on; seen_pts and unseen_pts (changes
    in accuracy) and leak_pts, with the bounds of their 95% intervals. Held-out photos have classes
    that were trained on, so the leak is not an effect of classes.

    every: evaluations on held-out images (role `test`) and on images that models saw (`seen`).
    Raises ValueError as `metrics.gather`.
    """
    held_out, seen = of_role(every, TEST), of_role(every, SEEN)
    arms = {arm: k for k, arm in enumerate(grid.arms)}
    trained_on = {row.evaluated_on: row.path for row in seen if row.method == PRE}
    of_kind = {SEEN: seen, UNSEEN: [row for row in held_out if row.headline]}
    pairs = dict.fromkeys((row.downstream, row.evaluated_on) for row in seen if row.downstream)
    paths = {
        downstream: [trained_on[name] for name in trained_sets(downstream) if name in trained_on]
        for downstream, _ in pairs
    }
    keeps = {downstream: _keeps(of) for downstream, of in paths.items() if of}
    evaluations: list[Evaluation] = []
    numbers: list[dict[str, float]] = []
    samples: list[np.ndarray] = []
    for downstream, name in pairs:
        is_own = name in trained_sets(downstream)
        if downstream not in keeps or name not in grid.sets or is_own:
            continue
        measured = []
        for kind, rows in of_kind.items():
            part = "\0".join((downstream, name, kind))
            of_pair = [
                replace(row, evaluated_on=part)
                for row in rows
                if row.evaluated_on == name and row.downstream in ("", downstream)
            ]
            of_pair.sort(key=lambda row: (arms[row.arm], row.seed))
            measured.append((of_pair, *_measured(of_pair, keeps[downstream][kind], draws)))
        if all(len(of_pair) == len(of_rows) for of_pair, of_rows, _ in measured):
            for of_pair, of_rows, drawn in measured:
                evaluations += of_pair
                numbers += of_rows
                samples.append(drawn)
    if not evaluations:
        return pandas.DataFrame(columns=[*CELL, "leak_pts"])
    made = {"accuracy": np.concatenate(samples, axis=1)}
    of_parts = metrics.grid_of(evaluations, numbers, made, grid.sets, "", grid.downstreams)
    table = _table(of_parts)
    return table.assign(arm=[arms[of_parts.arms[k]] for k in table["arm"]])


def _keeps(trained_on: Sequence[Path]) -> Mapping[str, Keep]:
    """Which images count after fine-tuning on a dataset or a union, from predictions on its
    training images; of a union, on those of its datasets that share photos with others."""
    tables = [predictions.read_predictions(path) for path in trained_on]

    def keep(name: str) -> Keep:
        values = [value for table in tables for value in table[name].unique().to_pylist()]
        return lambda other: pa.array(other[name].to_pandas().isin(values).to_numpy())

    return {SEEN: keep("source"), UNSEEN: keep("label")}


def _measured(
    rows: Sequence[Evaluation], keep: Keep, draws: int
) -> tuple[list[dict[str, float]], np.ndarray]:
    """Number of images (n) and accuracy of evaluations on a subset, and draws of it, float32
    [B, rows]; empty without images."""
    images = SetPredictions(keep)
    hits = [images.add(row.path, row.model).hit for row in rows]
    right = np.column_stack([images.by_source(hit) for hit in hits])
    n, total = len(images.images), images.total
    if not n:
        return [], np.empty((draws, 0), np.float32)
    accuracy = (100 * right.sum(axis=0) / total.sum()).tolist()
    drawn = bootstrap.means(bootstrap.counts(images.sources, draws), total, right)
    return [{"images": n, "accuracy": of} for of in accuracy], 100 * drawn


def _table(grid: Grid) -> pandas.DataFrame:
    cells = grid.cells[grid.cells["method"] != PRE]
    keys = cells["evaluated_on"].str.split("\0", expand=True)
    cells = cells.assign(evaluated_on=keys[1])
    kinds = {kind: cells[keys[2] == kind] for kind in (SEEN, UNSEEN)}
    tables = []
    for by in (["arm"], ["arm", "downstream"], ["arm", "downstream", "evaluated_on"]):
        # Their rows have the order of the cells.
        seen, unseen = (grid.mean(kinds[kind], by, of="change") for kind in (SEEN, UNSEEN))
        leak = replace(seen, weights=seen.weights - unseen.weights)
        table = seen.table("seen_pts").merge(unseen.table("unseen_pts"), on=by)
        tables.append(table.merge(leak.table("leak_pts"), on=by))
    table = pandas.concat(tables, ignore_index=True).fillna({"downstream": "", "evaluated_on": ""})
    return table[[*CELL, *table.columns.drop(CELL)]]
