"""Compare two campaigns on the images that both evaluated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas
import pyarrow as pa

from engine.measures import predictions
from engine.measures.rows import PRE, Evaluation


class Key(NamedTuple):
    """A row of a table on a dataset: method, setting and downstream dataset."""

    method: str
    setting: str
    downstream: str
    evaluated_on: str


def cells(
    first: Sequence[Evaluation], second: Sequence[Evaluation], same: Collection[str] = ()
) -> pandas.DataFrame:
    """Accuracies of two campaigns on the images that they share, in percent.

    One row per shared headline method, downstream dataset and dataset evaluated on: method,
    setting_a, setting_b, downstream, evaluated_on, images, accuracy_a, accuracy_b, change (b - a,
    points). Accuracies are means over seeds. If one campaign has a single setting and the other
    several, it is paired with each of these. Images of the datasets `same`, which have the same
    pack in both, are paired by index; others by source, with copies in order. Raises ValueError as
    `predictions.read`.
    """
    of_first, of_second = _by_key(first), _by_key(second)
    settings = [
        sorted({key.setting for key in of if key.method != PRE}) for of in (of_first, of_second)
    ]
    pairs = _pairs(*settings)
    read = _Reader()
    rows = []
    for key, paths in of_first.items():
        for a, b in pairs if key.method != PRE else [("", "")]:
            others = of_second.get(key._replace(setting=b)) if key.setting == a else None
            if others is None:
                continue
            shared = read.shared(paths[0], others[0], in_pack=key.evaluated_on in same)
            of_a, of_b = (
                float(np.mean([read.accuracy(path, which) for path in of]))
                for of, which in zip((paths, others), shared, strict=True)
            )
            images = len(shared[0])
            row = (key.method, a, b, key.downstream, key.evaluated_on, images, of_a, of_b)
            rows.append((*row, of_b - of_a))
    names = ["method", "setting_a", "setting_b", "downstream", "evaluated_on", "images"]
    return pandas.DataFrame(rows, columns=[*names, "accuracy_a", "accuracy_b", "change"])


def mean_improvements(table: pandas.DataFrame, sets: Iterable[str]) -> pandas.DataFrame:
    """mRI of both campaigns over shared columns and datasets, one row per method and setting.

    table: of `cells`. sets: datasets of RI in both. Columns: method, setting_a, setting_b, columns
    (downstream datasets), mri_a, mri_b, change (points).
    """
    before = table[table["method"] == PRE].set_index("evaluated_on")
    tuned = table[
        (table["method"] != PRE)
        & table["evaluated_on"].isin(list(sets))
        & table["evaluated_on"].isin(before.index)
        & (table["evaluated_on"] != table["downstream"])
    ].copy()
    for side in "ab":
        pre = tuned["evaluated_on"].map(before[f"accuracy_{side}"])
        tuned[f"mri_{side}"] = tuned[f"accuracy_{side}"] - pre
    by = ["method", "setting_a", "setting_b"]
    of_column = tuned.groupby([*by, "downstream"], sort=False)[["mri_a", "mri_b"]].mean()
    groups = of_column.groupby(by, sort=False)
    means = groups.mean().assign(columns=groups.size()).reset_index()
    means["change"] = means["mri_b"] - means["mri_a"]
    return means[[*by, "columns", "mri_a", "mri_b", "change"]]


def _by_key(evaluations: Sequence[Evaluation]) -> Mapping[Key, list[Path]]:
    found: dict[Key, list[Path]] = defaultdict(list)
    for row in evaluations:
        if row.headline:
            setting = "" if row.method == PRE else str(row.setting)
            found[Key(row.method, setting, row.downstream, row.evaluated_on)].append(row.path)
    return found


def _pairs(first: Sequence[str], second: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of settings that are compared."""
    if len(first) == 1 or len(second) == 1:
        return [(a, b) for a in first for b in second]
    return [(setting, setting) for setting in first if setting in second]


class _Reader:
    """Read tables of predictions once, and match the rows of two tables that show the same
    images."""

    def __init__(self) -> None:
        self._tables: dict[Path, pa.Table] = {}
        self._names: dict[tuple[Path, bool], np.ndarray] = {}

    def table(self, path: Path) -> pa.Table:
        if path not in self._tables:
            wanted = ("index", "source", "label", "top1", "group")
            read = predictions.read(path)
            self._tables[path] = read.select([n for n in read.column_names if n in wanted])
        return self._tables[path]

    def shared(self, first: Path, second: Path, *, in_pack: bool) -> tuple[np.ndarray, np.ndarray]:
        """Rows of each table (int64 [n]) with the same images. in_pack: match by index in the
        pack."""
        images = (self._images(path, in_pack=in_pack) for path in (first, second))
        _, rows, others = np.intersect1d(*images, assume_unique=True, return_indices=True)
        order = np.argsort(rows)
        return rows[order], others[order]

    def accuracy(self, path: Path, rows: np.ndarray) -> float:
        """Accuracy in percent on these rows; NaN without rows."""
        table = self.table(path).take(rows)
        if not len(table):
            return float("nan")
        weights = predictions.weights(table)
        hit = table["top1"].to_numpy() == table["label"].to_numpy()
        return 100 * float(np.average(hit, weights=weights))

    def _images(self, path: Path, *, in_pack: bool) -> np.ndarray:
        """[N]: an image's index in its pack (int64), or its source and copy number (str)."""
        if (path, in_pack) not in self._names:
            table = self.table(path)
            if in_pack:
                names = table["index"].to_numpy()
            else:
                sources = pandas.Series(table["source"].to_numpy())
                copies = sources.groupby(sources).cumcount()
                names = (sources + "#" + copies.astype(str)).to_numpy(str)
            self._names[path, in_pack] = names
        return self._names[path, in_pack]
