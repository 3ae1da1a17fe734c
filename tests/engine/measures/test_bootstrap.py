"""The bootstrap: how often sources come up, and means over them."""

import math

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from engine.measures import bootstrap


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


def test_a_set_that_a_draw_misses_has_a_mean_all_the_same():
    counts = bootstrap.counts(["one"], 200)
    assert (counts == 0).any()
    assert (bootstrap.means(counts, np.array([2.0]), np.array([[1.0]])) == 0.5).all()


def test_means_depend_on_neither_threads_nor_the_order_of_sources():
    """To the bit: a report made on fewer cores is the same report."""
    random = np.random.default_rng(0)
    counts, total = bootstrap.counts(range(3000), 501), random.integers(1, 9, 3000) / 8
    sums, order = random.random((3000, 81)).astype(np.float32), random.permutation(3000)
    means = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            means += [
                bootstrap.means(counts, total, sums),
                bootstrap.means(counts[order], total[order], sums[order]),
            ]
    assert len({of.tobytes() for of in means}) == 1


@pytest.mark.parametrize("weight", [1e-9, 1.0, 1e9])  # parts of equal weight share a weight of 1
def test_means_are_exact_at_any_weight_of_an_image(weight):
    random = np.random.default_rng(1)
    counts, total = bootstrap.counts(range(3000), 501), weight * random.random(3000)
    sums = total[:, None] * (random.random((3000, 9)) < 0.75)
    weighed = counts.T @ np.column_stack([sums, total])
    means = bootstrap.means(counts, total, sums)
    assert means == pytest.approx(weighed[:, :-1] / weighed[:, -1:], rel=1e-7)
