"""Spearman's coefficient against SciPy's, and its interval over units."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from engine.measures import bootstrap
from engine.measures.correlation import spearman


@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(3, 6))
def test_the_coefficient_is_scipys_with_ties(seed, units, width):
    x, y = np.random.default_rng(seed).integers(0, 6, (2, units, width)).astype(float)
    value = spearman(x, y, resamples=10).value
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert math.isnan(value)
    else:
        assert value == pytest.approx(stats.spearmanr(x.ravel(), y.ravel()).statistic)


def test_the_interval_draws_whole_units():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 5, 4))
    units = np.random.default_rng(0).integers(0, 5, (300, 5))
    drawn = [stats.spearmanr(x[u].ravel(), y[u].ravel()).statistic for u in units]
    assert spearman(x, y, resamples=300).ends == pytest.approx(bootstrap.ends(np.array(drawn)))


def test_copies_of_a_unit_do_not_narrow_the_interval():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 8, 1))
    alone = spearman(x, y)
    copied = spearman(np.repeat(x, 6, axis=1), np.repeat(y, 6, axis=1))
    assert copied.value == pytest.approx(alone.value)
    assert copied.ends.half_width == pytest.approx(alone.ends.half_width)


def test_too_few_units_have_no_interval_and_too_few_values_no_coefficient():
    value, ends = spearman(np.array([[1.0, 2], [3, 4]]), np.array([[2.0, 4], [6, 9]]))
    assert value == pytest.approx(1) and math.isnan(ends.low)
    assert math.isnan(spearman(np.ones((1, 2)), np.ones((1, 2))).value)
    assert math.isnan(spearman(np.ones((4, 2)), np.arange(8.0).reshape(4, 2)).value)
