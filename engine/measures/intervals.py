"""95% intervals of everything a grid reports: accuracies, RI and mRI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from engine.measures import bootstrap, metrics
from engine.measures.metrics import RESAMPLES, Gathered, Key, Summary
from engine.measures.predictions import Bank
from engine.measures.rows import Arm, Interval

Draws = dict[tuple[str, Key], np.ndarray]  # by the set evaluated on, and the evaluation


def intervals(
    grid: Gathered,
    summary: Summary,
    sets: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Interval, ...]:
    """Percentile intervals over source images and training seeds (the population: `bootstrap`).

    Accuracy rows first, in the order of the grid's, then RI, then mRI as `summary` has it. Sets
    beside `sets`, and cells on their own set, are drawn by themselves: nothing is compared to them.
    An accuracy of 0 or 100% has no width: resampling cannot show what the images never did. Ends of
    an accuracy are cut at 0 and 100%, which few seeds would otherwise pass.
    """

    def draw(banks: Mapping[str, Bank[Key]]) -> Draws:
        columns = {
            name: np.stack([bank.sums(key, grid.seeds) for key in bank.correct], axis=-1)
            for name, bank in banks.items()
        }
        means = bootstrap.means(banks, columns, resamples=resamples, seed=seed)
        return {
            (name, key): 100 * values
            for name, bank in banks.items()
            for key, values in zip(bank.correct, means[name].T, strict=True)
        }

    drawn = draw({name: grid.banks[name] for name in sets})
    alone = [*grid.own_banks.items(), *((k, v) for k, v in grid.banks.items() if k not in sets)]
    for name, bank in alone:
        drawn |= draw({name: bank})
    out = []
    for row in grid.accuracy:
        samples = drawn[row.evaluated_on, (row.arm, row.downstream)]
        low, high = np.clip(bootstrap.interval(samples), 0.0, 100.0)
        out.append(Interval(*row.key, "accuracy", row.accuracy, float(low), float(high)))
    for arm, columns in metrics.improvements(grid.accuracy, sets).items():
        for downstream, value in columns.items():
            ends = bootstrap.interval(_ri(drawn, arm, downstream, sets))
            out.append(Interval(*arm, downstream, "", "RI", value, *ends))
    out += [
        Interval(*row.arm, "", "", "mRI", row.mri, row.mri_low, row.mri_high) for row in summary.mri
    ]
    return tuple(out)


def _ri(drawn: Draws, arm: Arm, downstream: str, sets: Sequence[str]) -> np.ndarray:
    changes = [
        drawn[name, (arm, downstream)] - drawn[name, (arm.before, "")]
        for name in sets
        if name != downstream
    ]
    return np.mean(changes, axis=0)
