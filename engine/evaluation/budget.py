"""Budgeted evaluation: which images of a set are enough, and how sure what they say is.

RI is a difference to the pre-trained model on the same images, and what that model says of every
image is known before anything is fine-tuned. So it decides which images are worth a look: strata
never mix images that it got right and wrong, which makes the plain stratified mean of a sample
equal to the post-stratified difference estimator (its own share of the sample is exactly its known
accuracy), and images are drawn where it was in doubt, because there answers change.

Everything here is about the images at hand: an interval says where the accuracy over all of them
lies, and has no width once all are seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from engine.errors import RecipeError
from engine.recipe.checks import check_budget

STRATA = 500  # about as many a set
SMALLEST = 40  # images of a stratum, where the set has them
EACH = 2  # images drawn of every stratum before the allocation begins: a variance needs two
BANDS = 8  # of doubt, from which strata are cut class after class
LEAST_SPREAD = 0.2  # models are wrong more often than they think
LEVEL = 0.95
FIRST = 1 / 256  # of the images, or `least_share`: where a sequential evaluation looks first
LOOKS = 5  # at most; the last is at all that it may see


@dataclass(frozen=True)
class Frame:
    """A set of N images in H strata, and the order in which its images are drawn.

    `order` (int64 [N]) holds positions: each prefix is a sample, and part of every longer one.
    `key` (float64 [N], ascending) is the priority of each draw, comparable between sets.
    `stratum` (int64 [N]) is that of each position; `share` (float64 [H], sum 1) the weight of a
    stratum in the set's accuracy; `spread` (float64 [H]) the standard deviation expected in it.
    """

    order: np.ndarray
    key: np.ndarray
    stratum: np.ndarray
    size: np.ndarray
    share: np.ndarray
    spread: np.ndarray

    @property
    def least(self) -> int:
        """Images below which a stratum would have none to tell its variance from."""
        return int(np.minimum(self.size, EACH).sum())

    def up_to(self, images: int) -> int:
        """So many images, or as many as there are; not fewer than `least`."""
        return max(self.least, min(images, len(self.order)))

    def drawn(self, images: int) -> np.ndarray:
        """Images (int64 [H]) of each stratum among the first `images` of the order."""
        return np.bincount(self.stratum[self.order[:images]], minlength=len(self.size))

    def weights(self, images: int) -> np.ndarray:
        """float64 [images] weight of each drawn image in the set's accuracy; their sum is N."""
        each = len(self.order) * self.share / np.maximum(self.drawn(images), 1)
        return each[self.stratum[self.order[:images]]]


@dataclass(frozen=True)
class StratifiedMean:
    """Means over a whole set (float64 [M], a model each) and their variances under sampling."""

    mean: np.ndarray
    variance: np.ndarray


def frame(
    right: np.ndarray,
    p_true: np.ndarray,
    label: np.ndarray,
    group: np.ndarray,
    weight: np.ndarray,
    seed: Sequence[int],
) -> Frame:
    """Strata and order of a set from what the pre-trained model said of it; arrays are [N].

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
    mixed = np.random.default_rng(seed).permutation(n)
    together = mixed[np.argsort(stratum[mixed], kind="stable")]
    home = stratum[together]
    r = np.arange(n) - (np.cumsum(size) - size)[home] + 1.0
    key = np.where(r <= EACH, 0.0, np.sqrt(r * (r - 1)) / (share * spread)[home])
    turn = np.argsort(key, kind="stable")
    return Frame(together[turn], key[turn], stratum, size, share, spread)


def allocate(frames: Sequence[Frame], budget: float) -> list[int]:
    """Images to draw of each set, `budget` (share of all images) in total.

    Sets count alike in RI, so they get about equally many images, more where answers were in doubt;
    a small one may be seen in full. A set gets at least `Frame.least` images, and never fewer for a
    larger budget. Raises RecipeError for a budget that is not in (0, 1] or below `least_share`.
    """
    check_budget(budget)
    keys = np.concatenate([one.key for one in frames])
    total, least = math.ceil(budget * len(keys) - 1e-9), sum(one.least for one in frames)
    if total < least:
        enough = math.ceil(1e4 * least_share(frames)) / 1e4
        raise RecipeError(
            f"evaluate.budget={budget:g} is too little: it takes {least} of {len(keys)} images to "
            f"tell how sure a sample is; give {enough:g} or more"
        )
    sets = np.repeat(np.arange(len(frames)), [len(one.key) for one in frames])
    first = np.argsort(keys, kind="stable")[:total]  # images that a set needs have a key of 0
    return np.bincount(sets[first], minlength=len(frames)).tolist()


def least_share(frames: Sequence[Frame]) -> float:
    """The smallest budget of these sets: what leaves no stratum without a variance."""
    return sum(one.least for one in frames) / sum(len(one.order) for one in frames)


def estimate(
    one: Frame, drawn: np.ndarray, total: np.ndarray, squares: np.ndarray
) -> StratifiedMean:
    """Stratified mean and variance from sums over the drawn images of each stratum.

    `drawn` [H] images; `total`, `squares` [H, M] sums of a value in [0, 1] and of its square.
    Variances have the finite-population correction (Cochran 1977, section 5.5) and count one
    answer more than was seen as differing, spread over the strata as their variances were
    expected: a few images that agree do not prove that all do.

    Raises ValueError where a stratum has fewer images than `Frame.least` gives it.
    """
    if (drawn < np.minimum(one.size, EACH)).any():
        raise ValueError(f"a stratum has fewer than {EACH} images drawn: draw `Frame.least` first")
    n, share = drawn[:, None], one.share[:, None]
    mean = total / n
    degrees = np.maximum(drawn - 1, 1)
    expected = one.spread**2
    unseen = expected / (degrees * expected).sum()
    variance = np.maximum(squares - n * mean**2, 0.0) / degrees[:, None] + unseen[:, None]
    left = 1 - n / one.size[:, None]
    return StratifiedMean((share * mean).sum(axis=0), (share**2 * left * variance / n).sum(axis=0))


def seen(one: Frame, values: np.ndarray) -> StratifiedMean:
    """`estimate` from `values` [images, M] in [0, 1] of the first images of the order."""
    home = one.stratum[one.order[: len(values)]]
    drawn = np.bincount(home, minlength=len(one.size))
    columns = np.asarray(values, float).T
    total, squares = (
        np.stack([np.bincount(home, column**power, minlength=len(drawn)) for column in columns], 1)
        for power in (1, 2)
    )
    return estimate(one, drawn, total, squares)


def next_look(number: int, share: float, width: float, asked: float, most: float) -> float:
    """The budget of a sequential evaluation's look `number` (from 1; the last is `LOOKS`).

    At the look before, which saw `share` of the images, the interval was `width` to either side;
    `asked` is how wide it may be. The next look is where it should be narrow enough, and a tenth
    more, but no further than `most`. Raises RecipeError for a `most` that is not in (0, 1].
    """
    check_budget(most)
    if number == LOOKS:
        return most
    if number == 1:
        return min(FIRST, most)
    needed = 1 / (1 + (1 / share - 1) * (asked / width) ** 2)
    return min(most, float(f"{max(1.1 * needed, 1.25 * share):.2g}"))


def quantile(chances: int = 1) -> float:
    """Half-width of a 95% interval in standard deviations.

    `chances`: looks at which sampling may stop (`LOOKS` of a sequential evaluation). Each interval
    errs with probability 0.05 / chances (Bonferroni), so whichever it stops at errs with at most
    0.05.
    """
    return NormalDist().inv_cdf(1 - (1 - LEVEL) / (2 * chances))


def _strata(
    right: np.ndarray, p_true: np.ndarray, label: np.ndarray, group: np.ndarray
) -> np.ndarray:
    """Number of each image's stratum: blocks of one group and one side, cut into equal pieces."""
    n = len(right)
    block = np.unique(2 * group + right, return_inverse=True)[1]
    size = np.bincount(block)
    start = np.cumsum(size) - size
    place = np.arange(n)

    def ranked(*keys: np.ndarray) -> np.ndarray:
        rank = np.empty(n, np.int64)
        rank[np.lexsort((*keys, block))] = place
        return rank - start[block]

    band = ranked(p_true) * BANDS // size[block]
    pieces = np.maximum(size // max(SMALLEST, n // STRATA), 1)
    piece = ranked(label, band) * pieces[block] // size[block]
    return (np.cumsum(pieces) - pieces)[block] + piece
