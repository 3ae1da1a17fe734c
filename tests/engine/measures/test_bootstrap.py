"""Intervals and p-values: sources and seeds in them, and how often they hold the truth."""

import math

import numpy as np
import pytest
from scipy import stats

from engine.measures import bootstrap


def draws(sums: np.ndarray, count: int = 1000, seed: int = 0) -> np.ndarray:
    """Draws of the mean of `sums` [seeds, sources], an image a source."""
    sources = sums.shape[1]
    counts = bootstrap.counts([f"{seed} {k}" for k in range(sources)], count)
    means = bootstrap.means(counts, np.ones(sources), sums.T)
    return (means * bootstrap.seed_weights(count, len(sums))).sum(axis=1)


def coverage(simulate, repeats: int) -> float:
    """Share of simulated data sets whose interval holds the truth, 0."""
    held = 0
    for repeat in range(repeats):
        low, high = bootstrap.interval(draws(simulate(np.random.default_rng(repeat)), 400, repeat))
        held += low <= 0 <= high
    return held / repeats


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 5])
def test_intervals_over_seeds_and_images_hold_the_truth_for_few_seeds_too(seeds):
    def simulate(rng):
        noise = 0.3 * rng.standard_normal((seeds, 1)) + 0.5 * rng.standard_normal(100)
        return noise + 0.5 * rng.standard_normal((seeds, 100))

    assert 0.92 <= coverage(simulate, 300) <= 0.998


@pytest.mark.parametrize("seeds", [2, 5])
def test_where_only_seeds_vary_interval_and_p_are_students(seeds):
    value = 1 + np.random.default_rng(seeds).standard_normal(seeds)
    samples = draws(np.repeat(value[:, None], 4, axis=1), 200_000)
    spread = value.std(ddof=1) / np.sqrt(seeds)
    expected = stats.t.interval(0.95, seeds - 1, value.mean(), spread)
    assert bootstrap.interval(samples) == pytest.approx(
        expected, abs=0.03 * (expected[1] - expected[0])
    )
    p = bootstrap.p_values(value.mean(keepdims=True), np.zeros((9, 1)), value[:, None])
    assert p == pytest.approx(stats.ttest_1samp(value, 0).pvalue)


def test_how_often_a_source_comes_up_is_poisson_and_sources_are_independent():
    """To within four and a half standard errors, and steps of 2^-16."""
    counts = bootstrap.counts(range(300), 8000).astype(float).T
    frequencies = np.bincount(counts.astype(int).ravel(), minlength=9) / counts.size
    for k, share in enumerate(frequencies):
        expected = math.exp(-1) / math.factorial(k)
        spread = math.sqrt(expected / counts.size)
        assert share == pytest.approx(expected, abs=4.5 * spread + 2**-16)
    half = counts[:, ::2].sum(axis=1)  # whose variance a covariance would show in
    assert half.mean() == pytest.approx(150, abs=4.5 * math.sqrt(150 / 8000))
    assert half.var() == pytest.approx(150, rel=4.5 * math.sqrt(2 / 8000))


def test_a_sources_counts_follow_from_its_name_alone():
    together = bootstrap.counts(["a", "b", "c"], 50)
    assert (bootstrap.counts(["c", "a"], 50) == together[[2, 0]]).all()
    assert (together[0] != together[1]).any()
    counts = bootstrap.counts(range(5000), 7)
    blocks = bootstrap.means(counts, np.ones(5000), np.arange(5000.0)[:, None])
    plain = counts.T.astype(float)
    assert blocks[:, 0] == pytest.approx(plain @ np.arange(5000) / plain.sum(axis=1), rel=1e-5)


def test_a_set_that_a_draw_misses_has_a_mean_all_the_same():
    counts = bootstrap.counts(["one"], 200)
    assert (counts == 0).any()
    assert (bootstrap.means(counts, np.array([2.0]), np.array([[1.0]])) == 0.5).all()


def test_p_is_that_of_a_normal_statistic_and_knows_what_has_no_spread():
    samples = np.random.default_rng(0).normal(2, 1, (100_000, 1))
    p = bootstrap.p_values(np.array([2.0]), samples, np.array([[2.0]]))
    assert p == pytest.approx(2 * stats.norm.sf(2), rel=0.02)
    values, nothing = np.array([0.0, 5.0]), np.zeros((9, 2))
    assert list(bootstrap.p_values(values, nothing, values[None])) == [1, 0]
    one_of_millions = bootstrap.counts(["one"], 500).T * 100 / 3.75e6 / 56  # in mRI, of ImageNet-C
    assert bootstrap.p_values(np.array([5e-7]), one_of_millions, np.array([[5e-7]])) > 0.3
