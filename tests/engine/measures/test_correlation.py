"""Correlations of few units against SciPy's, their exact p, and when there is an interval."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from engine.measures.correlation import RANDOM, spearman


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(3, 9))
def test_the_coefficient_of_one_group_is_scipys_with_ties(seed, units):
    x, y = np.random.default_rng(seed).integers(0, 4, (2, units)).astype(float)
    found = spearman(x, y).value
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(stats.spearmanr(x, y).statistic)


def test_differences_between_groups_count_for_nothing():
    x, y = np.random.default_rng(0).normal(size=(2, 7, 4))
    shift = 100 * np.arange(4)
    shifted, plain = spearman(x + shift, y + shift), spearman(x, y)
    np.testing.assert_equal(dataclasses.astuple(shifted), dataclasses.astuple(plain))


def test_p_holds_where_groups_share_what_their_units_are():
    """Methods and sets fine-tuned on have effects of their own, and sets lack themselves."""
    rng, found, units = np.random.default_rng(0), [], 5
    for _ in range(200):
        pair = []
        for _ in "xy":
            values = rng.normal(size=(units, 1, 1)) + 2 * rng.normal(size=(1, 3, 1))
            values = values + rng.normal(size=(units, 3, units))
            values[np.arange(units), :, np.arange(units)] = np.nan
            pair.append(values.reshape(units, -1))
        found.append(spearman(*pair).p < 0.05)
    assert np.mean(found) < 0.1  # 5% and three standard errors of 200 campaigns


def test_three_points_in_order_prove_nothing():
    three = spearman(np.array([1.0, 2, 3]), np.array([1.0, 2, 3]))
    assert three.value == pytest.approx(1) and three.p == pytest.approx(1 / 3)
    assert math.isnan(three.low) and str(three) == "+1.00 (p 0.333)"


def test_p_of_eight_units_is_exact():
    x, y = np.random.default_rng(1).normal(size=(2, 8))
    test = stats.permutation_test(
        (x,), lambda x: stats.spearmanr(x, y).statistic, permutation_type="pairings",
        n_resamples=400, rng=np.random.default_rng(0),
    )  # fmt: skip
    assert spearman(x, y).p == pytest.approx(test.pvalue, abs=0.08)
    assert spearman(np.arange(8.0), np.arange(8.0)).p == pytest.approx(2 / math.factorial(8))


def test_the_observed_order_is_one_of_the_random_ones_so_that_p_is_never_zero():
    """Phipson and Smyth, 2010."""
    assert spearman(np.arange(12.0), np.arange(12.0)).p == pytest.approx(2 / (RANDOM + 1))


def test_copies_of_a_unit_change_neither_p_nor_interval():
    x, y = np.random.default_rng(2).normal(size=(2, 12, 1))
    alone, copied = spearman(x, y), spearman(*(np.repeat(v, 6, axis=1) for v in (x, y)))
    numbers = [(c.value, c.p, c.low, c.high) for c in (alone, copied)]
    assert numbers[0] == pytest.approx(numbers[1]) and alone.low < alone.value < alone.high


def test_what_does_not_vary_or_is_too_few_has_no_coefficient():
    assert math.isnan(spearman(np.ones((1, 2)), np.ones((1, 2))).value)
    assert math.isnan(spearman(np.array([1.0, np.nan, 3]), np.arange(3.0)).value)
    assert math.isnan(spearman(np.zeros((0, 0)), np.zeros((0, 0))).value)
