"""A sweep's numbers as tidy tables: every varied key is a column, with values of the key's type."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pandas

from engine.machine.files import write_atomic
from engine.measures.rows import PRE
from engine.measures.standings import Line
from engine.report import exports
from engine.report.tables import Results

NAME = "sweep"  # of the files beside the page
SEED = "seed"


def write(folder: Path, results: Results) -> list[str]:
    """Write `rows` as CSV and Parquet into a report's folder; the names of the files."""
    data, names = rows(results), [f"{NAME}.csv", f"{NAME}.parquet"]
    exports.write_csv(folder / names[0], data)
    write_atomic(folder / names[1], data.to_parquet(index=False))
    return names


def variants(results: Results) -> dict[str, dict[str, Any]]:
    """By setting, the values of the varied keys beside the seed. Only for the record of a sweep."""
    assert results.record.sweep is not None
    return results.record.sweep


def lines(results: Results) -> dict[str, Line]:
    """The line of each variant, by its setting, in the order of the sweep."""
    known = {line.arm.setting: line for model in results.models for line in model.lines}
    return {setting: known[setting] for setting in variants(results)}


def rows(results: Results) -> pandas.DataFrame:
    """A row a variant, seed, set fine-tuned on and set evaluated on: accuracy in percent before and
    after, and the change in points. `seed` is left out where there is a single one."""
    of_sweep, several = variants(results), len(results.grid.seeds) > 1
    shown = {row.arm for row in results.grid.accuracy if row.headline}
    before = {r.evaluated_on: r.accuracy for r in results.grid.accuracy if r.method == PRE}
    data = [
        {
            **of_sweep[row.setting],
            **({SEED: row.seed} if several else {}),
            "downstream": row.downstream,
            "evaluated_on": row.evaluated_on,
            "accuracy_before": before[row.evaluated_on],
            "accuracy_after": row.accuracy,
            "change": row.accuracy - before[row.evaluated_on],
        }
        for row in results.grid.by_seed
        if row.setting in of_sweep and row.method != PRE and row.arm in shown
    ]
    return pandas.DataFrame(data)


def summary(results: Results) -> pandas.DataFrame:
    """A row a variant, in the order of the sweep: mRI with its interval, RI by set fine-tuned on,
    in points, and mean accuracy in percent on the set fine-tuned on, where that is evaluated."""
    (model,) = results.models
    data = []
    for setting, line in lines(results).items():
        mri = line.mri
        data.append(
            {
                **variants(results)[setting],
                "mRI": mri.mri,
                "mRI_low": mri.mri_low,
                "mRI_high": mri.mri_high,
                **{f"RI {name}": line.ri[name] for name in model.downstreams},
                **({} if line.downstream is None else {"on_downstream_set": line.downstream}),
            }
        )
    return pandas.DataFrame(data)


def choices(results: Results) -> pandas.DataFrame:
    """By set fine-tuned on, the variant with the highest accuracy on its held-out images (of equal
    ones the first), and that variant's RI. Without rows where nothing is held out."""
    (model,) = results.models
    data = []
    for name in model.downstreams if results.record.holdout else ():
        judged = {s: line for s, line in lines(results).items() if name in line.after[name]}
        if judged:
            chosen = max(judged, key=lambda setting: judged[setting].after[name][name])
            line = judged[chosen]
            held_out = {"held_out_accuracy": line.after[name][name], "RI": line.ri[name]}
            data.append({"downstream": name, **variants(results)[chosen], **held_out})
    return pandas.DataFrame(data)


def mean_ri(chosen: pandas.DataFrame) -> float:
    """The mean RI of `choices`, in points."""
    return fmean(chosen["RI"])
