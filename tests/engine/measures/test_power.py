"""Least differences, against campaigns that are drawn."""

import numpy as np
import pytest

from engine.measures import seeds
from engine.measures.power import Errors
from engine.measures.seeds import SeedError


@pytest.mark.parametrize("count", [2, 5])
def test_a_least_difference_is_found_about_as_often_as_it_says(count):
    errors, rng, campaigns = Errors(0.5, 0.8, rows=10), np.random.default_rng(0), 4000
    difference = errors.difference(count)
    freedom = (count - 1) * (errors.rows - 1)
    over_seeds = 0.8**2 / count
    values = difference + rng.normal(0, np.sqrt(0.5**2 + over_seeds), campaigns)
    pooled = over_seeds * rng.chisquare(freedom, campaigns) / freedom
    error = SeedError(pooled, np.full(campaigns, float(freedom)))
    _, p = seeds.tested(values, np.full(campaigns, 0.5**2), error)
    assert np.mean(p * errors.comparisons < 0.05) == pytest.approx(0.8, abs=0.04)


def test_more_seeds_separate_less_and_a_floor_stays():
    errors = Errors(0.5, 0.8, rows=10)
    assert errors.comparisons == 45
    least = [errors.difference(count) for count in range(1, 20)]
    assert least == sorted(least, reverse=True)
    needed = errors.needed(2.5) or 0
    assert errors.difference(needed) <= 2.5 < errors.difference(needed - 1)
    assert errors.needed(1.0) is None  # the images alone leave more
    # By hand, of two seeds: a variance of .25 + .32, of which seeds' has 1 degree of freedom, so
    # the sum 3.17: (3.08 + 0.97) * 0.755.
    assert Errors(0.5, 0.8, rows=2).difference(2) == pytest.approx(3.06, abs=0.005)
