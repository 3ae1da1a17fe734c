"""Paired differences between two tables of scores that the engine did not make.

The estimate is the mean over datasets of the mean difference on the images that both tables have.
Its variance over images is the sum of the squared contributions of the sources, as of a bootstrap
with infinitely many draws. Trainings with other seeds are independent, within and between tables.

Half the width of an interval is the root of the sum of squares of its parts' half widths: over
sources, and over the seeds of each table, each with its own Student's t (Zou and Donner 2008).
Satterthwaite's degrees of freedom, which suffice where the variance is pooled over the rows of a
campaign, cover too little with a pair of rows and few seeds (bench/README.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas
from scipy import optimize, special

from engine.measures.bootstrap import LEVEL
from engine.measures.comparisons import COMPARED, holm
from engine.measures.score_tables import ScoreTable
from engine.measures.seeds import LEAST_P, POWER

MCNEMAR = "McNemar's exact test"
T_TEST = "t test"


class Difference(NamedTuple):
    """A difference, and the parts of its variance with their degrees of freedom (float [parts]).
    sources: their effective number."""

    value: float
    variances: np.ndarray
    freedoms: np.ndarray
    sources: float

    def half_width(self, level: float = LEVEL) -> float:
        """Half the width of an interval of this level."""
        quantiles = special.stdtrit(self.freedoms, (1 + level) / 2)
        return float(np.sqrt((quantiles**2 * self.variances).sum()))

    @property
    def p(self) -> float:
        """Two-sided p of "the difference is 0": below 1 - level exactly if 0 is outside the
        interval of this level."""
        distance = abs(self.value)
        if distance <= 1e-9:
            return 1.0
        if self.half_width(1 - LEAST_P) <= distance:
            return LEAST_P

        def excess(log_p: float) -> float:
            return self.half_width(1 - np.exp(log_p)) - distance

        found: Any = optimize.brentq(excess, np.log(LEAST_P), 0)
        return float(np.exp(found))


def difference(
    first: np.ndarray, second: np.ndarray, sets: np.ndarray, sources: np.ndarray
) -> Difference:
    """The mean over datasets of the difference second - first.

    first, second: scores, float [seeds, N] on the same N images. sets, sources: int [N]. Raises
    ValueError for a dataset with a single source.
    """
    sizes = np.bincount(sets)
    weights = (1 / (np.count_nonzero(sizes) * sizes))[sets]
    change = second.mean(axis=0) - first.mean(axis=0)
    of_sets = np.bincount(sets, change) / sizes
    count = sources.max() + 1
    pairs, per_pair = np.unique(sets * count + sources, return_counts=True)
    in_set = sizes**2 / np.bincount(pairs // count, per_pair**2)  # effective numbers of sources
    if in_set.min() < 1 + 1e-9:
        raise ValueError("a dataset has a single source, so its variance is unknown")
    deviations = weights * (change - of_sets[sets]) * np.sqrt(in_set / (in_set - 1))[sets]
    effective = float(1 / np.square(np.bincount(sources, weights)).sum())
    variances = [np.square(np.bincount(sources, deviations)).sum()]
    several = [scores for scores in (first, second) if len(scores) > 1]
    variances += [(scores @ weights).var(ddof=1) / len(scores) for scores in several]
    freedoms = np.array([effective - 1, *(len(scores) - 1 for scores in several)])
    return Difference(float(weights @ change), np.array(variances), freedoms, effective)


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """McNemar's exact two-sided p for paired answers, bool [N]."""
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    return float(min(1, 2 * special.bdtr(min(gained, lost), gained + lost, 0.5)))


def compare_scores(tables: Sequence[ScoreTable]) -> pandas.DataFrame:
    """Compare each further table with the first, on the images that both have.

    Columns: `comparisons.COMPARED`. Raises ValueError if two tables share no image of a dataset,
    differ in the source or the label of an image, or one has `correct` and the other `score`.
    """
    pairs = [_pair(tables[0], other, len(tables) - 1) for other in tables[1:]]
    table = pandas.concat(pairs, ignore_index=True)
    family = table["set"] == ""
    for rows in (family, ~family):
        table.loc[rows, "p_corrected"] = holm(table.loc[rows, "p"].to_numpy())
    return table[COMPARED]


def _pair(a: ScoreTable, b: ScoreTable, comparisons: int) -> pandas.DataFrame:
    if a.is_correct != b.is_correct:
        raise ValueError(f"{a.name} and {b.name}: one has the column correct, the other score")
    wide = [of.rows.pivot(index=["set", "image"], columns="seed", values="score") for of in (a, b)]
    shared = wide[0].dropna().index.intersection(wide[1].dropna().index)
    if shared.empty:
        raise ValueError(_without_shared(a, b, wide))
    _check_labels(a, b, shared)
    names = shared.get_level_values("set")
    codes = pandas.factorize(_sources(a, b, shared))[0]
    first, second = (scores.loc[shared].to_numpy().T for scores in wide)
    exact = a.is_correct and len(first) == len(second) == 1
    rows = []
    every = [str(name) for name in names.unique()]
    for name in ["", *every[: len(every) * (len(every) > 1)]]:
        chosen = np.flatnonzero((names == name) | (name == ""))
        of_sets = pandas.factorize(names[chosen])[0]
        of_a, of_b = first[:, chosen], second[:, chosen]
        found = difference(of_a, of_b, of_sets, codes[chosen])
        is_mcnemar = exact and of_sets.max() == 0 and len(np.unique(codes[chosen])) == len(chosen)
        family = comparisons * (len(every) if name else 1)
        half = found.half_width()
        means = [
            pandas.Series(of.mean(axis=0)).groupby(of_sets).mean().mean() for of in (of_a, of_b)
        ]
        only = [int(((of.index.get_level_values(0) == name) | (name == "")).sum()) for of in wide]
        rows.append(
            {
                "a": a.name,
                "b": b.name,
                "set": name,
                "quantity": "accuracy, percent" if a.is_correct else "score",
                "a_mean": means[0],
                "b_mean": means[1],
                "difference": found.value,
                "low": found.value - half,
                "high": found.value + half,
                "p": mcnemar(of_a[0] > 0, of_b[0] > 0) if is_mcnemar else found.p,
                "least": found.half_width(1 - (1 - LEVEL) / family)
                + found.half_width(2 * POWER - 1),
                "images": len(chosen),
                "only_a": only[0] - len(chosen),
                "only_b": only[1] - len(chosen),
                "sources": found.sources,
                "seeds": min(len(first), len(second)),
                "test": MCNEMAR if is_mcnemar else T_TEST,
                "notes": " ".join(_notes(a, b)),
            }
        )
    return pandas.DataFrame(rows)


def _without_shared(a: ScoreTable, b: ScoreTable, wide: Sequence[pandas.DataFrame]) -> str:
    """Why two tables cannot be paired, with the first image of each."""
    (set_a, image_a), (set_b, image_b) = (scores.index[0] for scores in wide)
    of_sets = [f" of dataset {name!r}" if name else "" for name in (set_a, set_b)]
    seeds = " in every seed" if max(scores.shape[1] for scores in wide) > 1 else ""
    return (
        f"{a.name} and {b.name} share no image{seeds}: the first image is {image_a!r}{of_sets[0]} "
        f"and {image_b!r}{of_sets[1]}; name images and datasets alike in both"
    )


def _check_labels(a: ScoreTable, b: ScoreTable, shared: pandas.Index) -> None:
    """Raise ValueError for the first image whose true class differs between two tables."""
    if not (a.has_labels and b.has_labels):
        return
    first, second = (_by_image(table, "label", shared) for table in (a, b))
    if (differs := np.flatnonzero(first != second)).size:
        name, image = shared[k := differs[0]]
        raise ValueError(
            f"{a.name} and {b.name} number classes differently: image {image!r}"
            f"{f' of dataset {name!r}' if name else ''} has the label {first[k]} in one and "
            f"{second[k]} in the other ({len(differs):,} of {len(shared):,} images differ); number "
            "the classes of both alike, or give correct in place of label and prediction"
        )


def _sources(a: ScoreTable, b: ScoreTable, shared: pandas.Index) -> np.ndarray:
    """The source of each shared image, from a table that names sources."""
    named = [table for table in (a, b) if table.has_sources] or [a]
    first, *others = [_by_image(table, "source", shared) for table in named]
    if any((first != other).any() for other in others):
        raise ValueError(f"{a.name} and {b.name}: an image has two sources")
    return first


def _by_image(table: ScoreTable, column: str, shared: pandas.Index) -> np.ndarray:
    """The value of each shared image. Raises ValueError if rows of an image differ."""
    values = table.rows.groupby(["set", "image"])[column]
    if (differs := values.nunique().loc[shared] > 1).any():
        raise ValueError(
            f"{table.name}: image {shared[differs][0][1]!r} has two values of {column}"
        )
    return values.first().loc[shared].to_numpy()


def _notes(a: ScoreTable, b: ScoreTable) -> Iterator[str]:
    """What two tables leave unknown."""
    if not (a.has_sources or b.has_sources):
        yield (
            "No table has a column source, so images count as independent: if several show one "
            "photo, intervals are too narrow and differences are claimed too often."
        )
    if a.is_correct and not (a.has_labels and b.has_labels):
        lacking = [table.name for table in (a, b) if not table.has_labels]
        yield f"Without labels of {' and '.join(lacking)}, equal true classes are not checked."
