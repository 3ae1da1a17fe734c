"""Least differences, against campaigns that are drawn."""

import numpy as np
import pytest

from engine.measures import seeds
from engine.measures.power import Errors
from engine.measures.seeds import SeedError


@pytest.mark.parametrize(("count", "images"), [(2, 1), (5, 1), (3, 4)])
def test_a_least_difference_is_found_about_as_often_as_it_says(count, images):
    errors, rng, campaigns = Errors(0.5, 0.8, rows=10), np.random.default_rng(0), 4000
    difference = errors.difference(count, images)
    freedom = (count - 1) * (errors.rows - 1)
    over_images, over_seeds = 0.5**2 / images, 0.8**2 / count
    values = difference + rng.normal(0, np.sqrt(over_images + over_seeds), campaigns)
    pooled = over_seeds * rng.chisquare(freedom, campaigns) / freedom
    error = SeedError(pooled, np.full(campaigns, float(freedom)))
    _, p = seeds.tested(values, np.full(campaigns, over_images), error)
    assert np.mean(p * errors.comparisons < 0.05) == pytest.approx(0.8, abs=0.04)


def test_more_seeds_and_images_separate_less_and_a_floor_stays():
    errors = Errors(0.5, 0.8, rows=10)
    assert errors.comparisons == 45
    least = [errors.difference(count) for count in range(1, 20)]
    assert least == sorted(least, reverse=True)
    needed = errors.needed(2.5) or 0
    assert errors.difference(needed) <= 2.5 < errors.difference(needed - 1)
    assert errors.needed(1.0) is None  # the images alone leave more
    assert errors.needed(1.0, images=10) == 19
