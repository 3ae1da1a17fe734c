"""The paired t test over source images: whether two models differ, by answers to the same images.

It is the one test of differences, of campaigns and of tables that other programs wrote. A
difference is a weighted mean of accuracies or scores on datasets. Images of one source are not
independent and datasets may show the same sources, so a difference is a sum over sources, as in
cluster-robust tests: its variance is the sum of the squares of what each source adds to it, as of a
bootstrap with infinitely many draws, times n/(n - 1) in each dataset of n sources. Student's t has
the effective number of sources less 1 as degrees of freedom (Kish 1965, for sources that count
unequally).

On one dataset with one image per source, it is Student's paired t test. For answers that are right
or wrong its square is (n - 1) c / (n - c), where c = (gained - lost)^2 / (gained + lost) is
McNemar's statistic of n images. McNemar's exact test needs independent images, one dataset and one
training, and finds fewer differences than its level allows (Fagerland, Lydersen and Laake 2013).

Trainings with other seeds add their own error (`seeds`). The sum of both variances has the degrees
of freedom of Satterthwaite (1946). Where an error has fewer than `FEW` degrees of freedom, these
would cover too little (bench/README.md): half the width of an interval is then the root of the sum
of squares of the errors' own half widths, each with its own Student's t (Zou and Donner 2008). p is
below 0.05 exactly if 0 is outside the 95% interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from engine.measures import seeds
from engine.measures.bootstrap import LEVEL
from engine.measures.seeds import SeedError

TEST = "paired t test"
LEAST_P = 1e-15
POWER = 0.8  # probability of detecting `minimum_detectable_difference`
EXACT = 1e-9  # points by which sums of equal scores can differ
FEW = 4  # degrees of freedom
HALVINGS = 60  # of the interval of log p
TOGETHER = 64  # differences whose contributions of sources are in memory at a time


class ImageError(NamedTuple):
    """The variance over source images of K numbers [K], and its degrees of freedom [K]."""

    variance: np.ndarray
    freedom: np.ndarray


Error = ImageError | SeedError


@dataclass(frozen=True, eq=False)
class SourceScores:
    """Scores of models on a dataset, summed by source image. sources: their distinct names [S].
    totals: the weight of each source's images [S]. sums: float [S, models], the weighted sum of a
    model's scores on them."""

    sources: Sequence[str] | np.ndarray
    totals: np.ndarray
    sums: np.ndarray

    @property
    def effective(self) -> float:
        """The effective number of sources."""
        return float(self.totals.sum() ** 2 / np.square(self.totals).sum())

    @property
    def influence(self) -> np.ndarray:
        """[S, models]: what each source adds to a model's mean score; 0 of a single source, whose
        variance is unknown."""
        total, effective = self.totals.sum(), self.effective
        if effective < 1 + EXACT:
            return np.zeros(self.sums.shape)
        means = self.sums.sum(axis=0, dtype=np.float64) / total
        scale = np.sqrt(effective / (effective - 1)) / total
        return (self.sums - self.totals[:, None] * means) * scale


def image_error(datasets: Sequence[SourceScores], weights: Sequence[Any]) -> ImageError:
    """The error over images of K differences. weights: of each dataset, a dense or sparse array
    [models, K], of the models' mean scores on it."""
    names = np.concatenate([np.asarray(each.sources, object) for each in datasets])
    distinct, codes = np.unique(names.astype(str), return_inverse=True)
    places = np.split(codes, np.cumsum([len(each.sources) for each in datasets])[:-1])
    influences = [each.influence for each in datasets]
    count = weights[0].shape[1]
    variance, freedom = np.empty(count), np.empty(count)
    for start in range(0, count, TOGETHER):
        part = slice(start, start + TOGETHER)
        of_part = [each[:, part] for each in weights]
        added = np.zeros((len(distinct), of_part[0].shape[1]))
        shares = np.zeros_like(added)
        for scores, place, influence, weight in zip(
            datasets, places, influences, of_part, strict=True
        ):
            added[place] += influence @ weight
            of_set = np.asarray(abs(weight).sum(axis=0)).ravel()
            shares[place] += np.outer(scores.totals / scores.totals.sum(), of_set)
        variance[part] = np.square(added).sum(axis=0)
        used = np.maximum(shares.sum(axis=0), 1e-300)
        freedom[part] = 1 / np.maximum(np.square(shares / used).sum(axis=0), 1e-300) - 1
    return ImageError(variance, np.maximum(freedom, 1))


def half_width(errors: Sequence[Error], level: float | np.ndarray = LEVEL) -> np.ndarray:
    """Half the width [K] of intervals of this level."""
    return _half_width(errors, 1 - np.asarray(level))


def _half_width(errors: Sequence[Error], p: np.ndarray) -> np.ndarray:
    variance, freedom = (np.stack(of) for of in zip(*errors, strict=True))  # [errors, K]
    of_errors = np.square(special.stdtrit(freedom, p / 2)) * variance
    total = variance.sum(axis=0)
    of_total = total**2 / np.maximum((variance**2 / freedom).sum(axis=0), 1e-300)
    together = np.square(special.stdtrit(np.maximum(of_total, 1), p / 2)) * total
    has_few = ((variance > 0) & (freedom < FEW)).any(axis=0)
    return np.sqrt(np.where(has_few, of_errors.sum(axis=0), together))


def tested(values: np.ndarray, errors: Sequence[Error]) -> tuple[np.ndarray, np.ndarray]:
    """95% intervals [2, K] of differences [K], and two-sided p [K] of "the difference is 0"."""
    half = half_width(errors)
    low, high = np.full(len(values), np.log(LEAST_P)), np.zeros(len(values))
    for _ in range(HALVINGS):  # half the width falls as p rises
        middle = (low + high) / 2
        is_above = _half_width(errors, np.exp(middle)) > np.abs(values)
        low, high = np.where(is_above, middle, low), np.where(is_above, high, middle)
    p = np.where(np.abs(values) < EXACT, 1, np.exp(high))
    return np.stack([values - half, values + half]), p


def minimum_detectable_difference(errors: Sequence[Error], comparisons: int = 1) -> np.ndarray:
    """The smallest differences [K] that `tested` detects with a probability of 80%, at a level of
    5% adjusted for the number of comparisons, as the first step of Holm's procedure."""
    return half_width(errors, 1 - (1 - LEVEL) / comparisons) + half_width(errors, 2 * POWER - 1)


class Difference(NamedTuple):
    """A difference, and its errors ([1] each) over images and over training seeds."""

    value: float
    errors: Sequence[Error]

    def half_width(self, level: float = LEVEL) -> float:
        """Half the width of an interval of this level."""
        return half_width(self.errors, level).item()

    @property
    def p(self) -> float:
        """Two-sided p of "the difference is 0"."""
        return tested(np.array([self.value]), self.errors)[1].item()

    @property
    def sources(self) -> float:
        """The effective number of sources."""
        return self.errors[0].freedom.item() + 1


def difference(
    first: np.ndarray,
    second: np.ndarray,
    sets: np.ndarray,
    sources: np.ndarray,
    *,
    same_seeds: bool = False,
) -> Difference:
    """The mean over datasets of the difference second - first.

    first, second: scores, float [seeds, N] on the same N images. sets, sources: int [N].
    same_seeds: whether trainings of both have the same seeds, in order; they are then paired, and
    otherwise independent. Raises ValueError for a dataset with a single source.
    """
    means = np.stack([first.mean(axis=0), second.mean(axis=0)], axis=1)
    by_set = [sets == number for number in np.unique(sets)]
    datasets = []
    for here in by_set:
        names, codes = np.unique(sources[here], return_inverse=True)
        sums = np.stack([np.bincount(codes, of[here]) for of in means.T], axis=1)
        datasets.append(SourceScores(names, np.bincount(codes).astype(float), sums))
    if min(each.effective for each in datasets) < 1 + EXACT:
        raise ValueError("a dataset has a single source, so its variance is unknown")
    weight = np.array([[-1.0], [1.0]]) / len(datasets)
    errors: list[Error] = [image_error(datasets, [weight] * len(datasets))]
    of_seeds = [
        np.mean([scores[:, here].mean(axis=1) for here in by_set], axis=0)[:, None]
        for scores in (first, second)
    ]
    if same_seeds:
        errors.append(seeds.of_mean(of_seeds[1] - of_seeds[0]))
    else:
        errors += [seeds.of_mean(of) for of in of_seeds]
    return Difference(
        float(np.mean([(means[here, 1] - means[here, 0]).mean() for here in by_set])), errors
    )
