"""Budgeted evaluation: which images of a set are enough, and how sure a sample's accuracy is.

RI is a difference to the pre-trained model on the same images, and that model's predictions of all
images are known before anything is fine-tuned. They decide which images are drawn. Strata never mix
images that the model got right and wrong, so the plain stratified mean of a sample equals the
post-stratified difference estimator. More images are drawn where the model was in doubt, because
fine-tuning changes its answers there.

Intervals are about the images at hand: they cover the accuracy over all of them, and have no width
once all are drawn. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from engine.errors import RecipeError
from engine.measures import predictions
from engine.recipe.checks import check_budget

STRATA = 500  # about as many a set
SMALLEST = 40  # images of a stratum, where the set has them
EACH = 2  # images drawn of every stratum before the allocation begins: a variance needs two
BANDS = 8  # of doubt, from which strata are cut class after class
LEAST_SPREAD = 0.2  # models are wrong more often than they think
LEVEL = 0.95
FIRST = 1 / 256  # of the images, or `least_share`: the first look of a sequential evaluation
LOOKS = 5  # at most; the last sees all images that it may see


@dataclass(frozen=True)
class Frame:
    """A set of N images in H strata, and the order in which its images are drawn.

    `order` (int64 [N]) holds positions: each prefix is a sample, and part of every longer one.
    `key` (float64 [N], ascending) is the priority of each draw, comparable between sets.
    `stratum` (int64 [N]) is that of each position; `size` (int64 [H]) counts its images; `share`
    (float64 [H], sum 1) is its weight in the set's accuracy; `spread` (float64 [H]) the standard
    deviation expected in it.
    """

    order: np.ndarray
    key: np.ndarray
    stratum: np.ndarray
    size: np.ndarray
    share: np.ndarray
    spread: np.ndarray

    @property
    def least(self) -> int:
        """The smallest sample that gives every stratum a variance, in images."""
        return int(np.minimum(self.size, EACH).sum())

    def drawn(self, images: int) -> np.ndarray:
        """Images (int64 [H]) of each stratum among the first `images` of the order."""
        return np.bincount(self.stratum[self.order[:images]], minlength=len(self.size))

    def weights(self, images: int) -> np.ndarray:
        """float64 [images] weight of each drawn image in the set's accuracy; their sum is N."""
        each = len(self.order) * self.share / np.maximum(self.drawn(images), 1)
        return each[self.stratum[self.order[:images]]]


@dataclass(frozen=True)
class Drawn:
    """The first `images` of a set's order; `index` (int64 [N]) are the pack's places of all N."""

    frame: Frame
    images: int
    index: np.ndarray

    @property
    def whole(self) -> bool:
        """Whether it holds all images of the split."""
        return self.images == len(self.index)


class StratifiedMean(NamedTuple):
    """Means over a whole set (float64 [M], a model each) and their variances under sampling."""

    mean: np.ndarray
    variance: np.ndarray


def frame_of(table: pa.Table, seed: Sequence[int]) -> tuple[Frame, np.ndarray]:
    """Strata and order of a set, and its images' places in the pack (int64 [N]).

    table: the pre-trained model's predictions of all of them (`predictions.read`).
    """
    label = table["label"].to_numpy()
    group = np.zeros(len(table), np.int64)
    if "group" in table.column_names:
        group = np.unique(table["group"].to_numpy(), return_inverse=True)[1]
    right, p_true = label == table["top1"].to_numpy(), table["p_true"].to_numpy().astype(float)
    frame = stratify(right, p_true, label, group, predictions.weights(table), seed=seed)
    return frame, table["index"].to_numpy()


def stratify(
    right: np.ndarray,
    p_true: np.ndarray,
    label: np.ndarray,
    group: np.ndarray,
    weight: np.ndarray,
    seed: Sequence[int],
) -> Frame:
    """Strata and order of a set from the pre-trained model's predictions; arrays are [N].

    `right` (bool), `p_true` (probability of the true class), `label` (class), `group` (number of
    the corruption and severity, 0 where there are none), `weight` (of an image in the set's
    accuracy, constant within a group). Strata lie within one group and one side of `right`; where
    that leaves more than `SMALLEST` images they are cut by doubt, then by neighbouring classes.
    Within a stratum the order is random (`seed`); between strata it follows Neyman's allocation,
    whose best integers for every number of images are those of highest priority
    share * spread / sqrt(r (r - 1)) for the r-th image (Wright 2012, equal proportions).
    """
    n = len(right)
    if not n:
        raise ValueError("a set without images cannot be sampled")
    stratum = _strata(right, p_true, label, group)
    size = np.bincount(stratum)
    share = np.bincount(stratum, weight) / weight.sum()
    doubt = np.bincount(stratum, p_true * (1 - p_true)) / size
    spread = np.sqrt(np.maximum(doubt, LEAST_SPREAD**2))
    shuffled = np.random.default_rng(seed).permutation(n)
    order = shuffled[np.argsort(stratum[shuffled], kind="stable")]
    r = np.arange(n) - (np.cumsum(size) - size)[stratum[order]] + 1.0
    key = np.where(r <= EACH, 0.0, np.sqrt(r * (r - 1)) / (share * spread)[stratum[order]])
    turn = np.argsort(key, kind="stable")
    return Frame(order[turn], key[turn], stratum, size, share, spread)


def _strata(
    right: np.ndarray, p_true: np.ndarray, label: np.ndarray, group: np.ndarray
) -> np.ndarray:
    """Number of each image's stratum: blocks of one group and one side, cut into equal pieces."""
    n = len(right)
    block = np.unique(2 * group + right, return_inverse=True)[1]
    size = np.bincount(block)
    start = np.cumsum(size) - size

    def rank_in_block(*keys: np.ndarray) -> np.ndarray:
        rank = np.empty(n, np.int64)
        rank[np.lexsort((*keys, block))] = np.arange(n)
        return rank - start[block]

    band = rank_in_block(p_true) * BANDS // size[block]
    pieces = np.maximum(size // max(SMALLEST, n // STRATA), 1)
    piece = rank_in_block(label, band) * pieces[block] // size[block]
    return (np.cumsum(pieces) - pieces)[block] + piece


def allocate(frames: Sequence[Frame], budget: float) -> list[int]:
    """Images to draw of each set, `budget` (share of all images) in total.

    Sets count alike in RI, so they get about equally many images, more where the model was in
    doubt; all images of a small set may be drawn. A set gets at least `Frame.least` images, and
    never fewer for a larger budget. Raises RecipeError for a budget that is not in (0, 1] or below
    `least_share`.
    """
    check_budget(budget)
    keys = np.concatenate([frame.key for frame in frames])
    total, least = math.ceil(budget * len(keys) - 1e-9), sum(frame.least for frame in frames)
    if total < least:
        enough = math.ceil(1e4 * least_share(frames)) / 1e4
        raise RecipeError(
            f"evaluate.budget={budget:g} is too little: it takes {least} of {len(keys)} images to "
            f"estimate how sure a sample is; give {enough:g} or more"
        )
    sets = np.repeat(np.arange(len(frames)), [len(frame.key) for frame in frames])
    first = np.argsort(keys, kind="stable")[:total]  # images that a set needs have a key of 0
    return np.bincount(sets[first], minlength=len(frames)).tolist()


def least_share(frames: Sequence[Frame]) -> float:
    """The smallest budget of these sets that leaves no stratum without a variance."""
    return sum(frame.least for frame in frames) / sum(len(frame.order) for frame in frames)


def estimate(
    frame: Frame, drawn: np.ndarray, total: np.ndarray, squares: np.ndarray
) -> StratifiedMean:
    """Stratified mean and variance from sums over the drawn images of each stratum.

    `drawn` [H] images; `total`, `squares` [H, M] sums of a value in [0, 1] and of its square.
    Variances have the finite-population correction (Cochran 1977, section 5.5) and count one
    differing answer more than was seen, spread over the strata in proportion to their expected
    variances: a few images that agree do not prove that all do.

    Raises ValueError where a stratum has fewer images than `Frame.least` gives it.
    """
    if (drawn < np.minimum(frame.size, EACH)).any():
        raise ValueError(f"a stratum has fewer than {EACH} images drawn: draw `Frame.least` first")
    n, share = drawn[:, None], frame.share[:, None]
    mean = total / n
    degrees = np.maximum(drawn - 1, 1)
    expected = frame.spread**2
    unseen = expected / (degrees * expected).sum()
    variance = np.maximum(squares - n * mean**2, 0.0) / degrees[:, None] + unseen[:, None]
    left = 1 - n / frame.size[:, None]
    return StratifiedMean((share * mean).sum(axis=0), (share**2 * left * variance / n).sum(axis=0))


def seen(frame: Frame, values: np.ndarray) -> StratifiedMean:
    """`estimate` from `values` [images, M] in [0, 1] of the first images of the order."""
    stratum, values = frame.stratum[frame.order[: len(values)]], np.asarray(values, float)
    total, squares = (
        np.stack([np.bincount(stratum, column, len(frame.size)) for column in powers.T], axis=1)
        for powers in (values, values**2)
    )
    return estimate(frame, frame.drawn(len(values)), total, squares)


def next_look(number: int, share: float, width: float, target: float, most: float) -> float:
    """The budget of a sequential evaluation's look `number` (from 1; the last is `LOOKS`).

    At the look before, which saw `share` of the images, the interval was `width` to either side;
    `target` is how wide it may be. The next look is where it should be narrow enough, and a tenth
    more, but no further than `most`. Raises RecipeError for a `most` that is not in (0, 1].
    """
    check_budget(most)
    if number == LOOKS:
        return most
    if number == 1:
        return min(FIRST, most)
    needed = 1 / (1 + (1 / share - 1) * (target / width) ** 2)
    return min(most, float(f"{max(1.1 * needed, 1.25 * share):.2g}"))


def quantile(looks: int = 1) -> float:
    """Half-width of a 95% interval in standard deviations.

    `looks`: after how many looks sampling may stop (`LOOKS` of a sequential evaluation). Each
    interval errs with probability 0.05 / looks (Bonferroni), so the interval at which sampling
    stops errs with at most 0.05.
    """
    return NormalDist().inv_cdf(1 - (1 - LEVEL) / (2 * looks))
