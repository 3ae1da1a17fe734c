"""Samples drawn again and again from sets whose answers are known: how often intervals hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.evaluation import budget
from engine.evaluation.budget import Frame

REPEATS = 1000


@dataclass(frozen=True)
class Population:
    """A set whose answers are all known: `right` (int64 [H, M]) of each stratum, a model each."""

    frame: Frame
    right: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Accuracy [M] over all images."""
        return (self.frame.share[:, None] * self.right / self.frame.size[:, None]).sum(axis=0)

    def variance(self, images: int) -> np.ndarray:
        """What the variance [M] of a sample really is (Cochran 1977, theorem 5.3)."""
        size, drawn = self.frame.size[:, None], self.frame.drawn(images)[:, None]
        p = self.right / size
        spread = p * (1 - p) * size / np.maximum(size - 1, 1)
        each = self.frame.share[:, None] ** 2 * (1 - drawn / size) * spread / drawn
        return each.sum(axis=0)


@dataclass(frozen=True)
class Trial:
    """Share of repeats whose interval held the truth, and the images seen on average."""

    covered: float
    images: float


def population(
    before: np.ndarray,
    p_true: np.ndarray,
    after: np.ndarray,
    label: np.ndarray,
    group: np.ndarray,
    *,
    control: bool = True,
    seed: int = 0,
) -> Population:
    """A set from answers before [N] and after [N, M]; `control`: strata know those before."""
    variate = (before, p_true) if control else (np.zeros_like(before), np.full(len(before), 0.5))
    frame = budget.stratify(*variate, label, group, np.ones(len(before)), [seed])
    counts = [np.bincount(frame.stratum, column) for column in after.T]
    return Population(frame, np.stack(counts, axis=1).astype(np.int64))


def corrupted(
    groups: int = 75, sources: int = 50_000, classes: int = 1000, *, control: bool = True
) -> tuple[Population, np.ndarray, np.ndarray]:
    """A set of `groups` corruptions and severities of the same sources, and its answers before and
    after: margins of a source, a class, a group and chance, which fine-tuning shifts."""
    rng = np.random.default_rng(0)
    label = np.arange(sources) * classes // sources
    source = 2 * rng.normal(size=sources) + rng.normal(size=classes)[label]
    shift = 0.8 * rng.normal(size=groups)
    margins = [
        source + 1.2 + shift[g] - 0.9 * (g % 5) + 1.5 * rng.normal(size=sources)
        for g in range(groups)
    ]
    margin = np.concatenate(margins)
    group = np.repeat(np.arange(groups), sources)
    after = 0.9 * margin + 0.3 * shift[group] - 0.2 + 1.3 * rng.normal(size=len(margin)) > 0
    p_true = 1 / (1 + np.exp(-margin))
    before = margin > 0
    corruptions = population(
        before, p_true, after[:, None], np.tile(label, groups), group, control=control
    )
    return corruptions, before, after


def stop(
    populations: Sequence[Population], half_width: float, repeats: int = REPEATS, model: int = 0
) -> Trial:
    """Sequential samples of one model's mean change over the sets, to `half_width` (a share)."""
    draws = Draws(populations, repeats, model)
    truth = np.mean([population.mean[model] for population in populations])
    z, total = (
        budget.quantile(budget.LOOKS),
        sum(len(population.frame.order) for population in populations),
    )
    covered, images = np.zeros(repeats, bool), np.zeros(repeats)
    share = np.full(repeats, budget.next_look(1, 0, 0, half_width, 1))
    running = np.ones(repeats, bool)
    for number in range(2, budget.LOOKS + 2):
        for now in np.unique(share[running]):
            active = np.flatnonzero(running & (share == now))
            value, variance, count = draws.look(active, float(now))
            width = z * np.sqrt(variance)
            ends = width <= half_width
            covered[active] = np.abs(value - truth) <= width + 1e-9
            images[active] = count
            running[active] = ~ends
            for k, wide in zip(active[~ends], width[~ends], strict=True):
                share[k] = budget.next_look(number, count / total, wide, half_width, 1)
    assert not running.any()
    return Trial(float(covered.mean()), float(images.mean()))


def once(
    populations: Sequence[Population], share: float, repeats: int = REPEATS, model: int = 0
) -> Trial:
    """Samples of one size, `share` of the images."""
    truth = np.mean([population.mean[model] for population in populations])
    draws = Draws(populations, repeats, model)
    value, variance, count = draws.look(np.arange(repeats), share)
    covered = np.abs(value - truth) <= budget.quantile() * np.sqrt(variance) + 1e-9
    return Trial(float(covered.mean()), float(count))


def needed(populations: Sequence[Population], half_width: float, model: int = 0) -> int:
    """Images that an interval of `half_width` (a share) takes, if variances were known."""
    frames = [population.frame for population in populations]
    low, high = budget.least_share(frames), 1.0
    for _ in range(24):
        share = (low + high) / 2
        counts = budget.allocate(frames, share)
        variance = sum(
            population.variance(n)[model] for population, n in zip(populations, counts, strict=True)
        )
        wide = budget.quantile() * np.sqrt(variance) / len(populations) > half_width
        low, high = (share, high) if wide else (low, share)
    return sum(budget.allocate(frames, high))


class Draws:
    """Repeated nested samples of one model's answers, drawn without replacement from what is left
    of each stratum."""

    def __init__(self, populations: Sequence[Population], repeats: int, model: int) -> None:
        self.populations, self.model = populations, model
        self._rng = np.random.default_rng(model)
        shape = [(repeats, len(population.frame.size)) for population in populations]
        self._drawn = [np.zeros(size, np.int64) for size in shape]
        self._right = [np.zeros(size, np.int64) for size in shape]

    def look(self, index: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray, int]:
        """Mean over the sets and its variance [len(index)], and the number of images.

        index: the repeats that look; share: at least as large as at the look before.
        """
        frames = [population.frame for population in self.populations]
        counts = budget.allocate(frames, max(share, budget.least_share(frames)))
        value, variance = np.zeros(len(index)), np.zeros(len(index))
        sets = zip(self.populations, counts, self._drawn, self._right, strict=True)
        for population, images, drawn, right in sets:
            now = population.frame.drawn(images)
            hits = population.right[:, self.model] - right[index]
            misses = population.frame.size - drawn[index] - hits
            right[index] += self._rng.hypergeometric(hits, misses, now - drawn[index])
            drawn[index] = now
            estimate = budget.estimate(population.frame, now, right[index].T, right[index].T)
            value += estimate.mean / len(self.populations)
            variance += estimate.variance / len(self.populations) ** 2
        return value, variance, sum(counts)
