"""Samples of a set: unbiased, nested, drawn where it matters; intervals hold as often as stated."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import sampled_sets

from engine import recipe
from engine.errors import RecipeError
from engine.evaluation import budget


def frame(sizes: list[int], seed: int = 0, p_true: float | np.ndarray = 0.5) -> budget.Frame:
    """A set whose strata are groups of these sizes, all on one side."""
    group = np.repeat(np.arange(len(sizes)), sizes)
    n = len(group)
    doubt = np.broadcast_to(np.asarray(p_true, float), n)
    return budget.stratify(np.ones(n, bool), doubt, np.zeros(n, int), group, np.ones(n), [seed])


def answers(n: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Two models' answers on n images of ten classes: right before, p_true, right after, label."""
    rng = np.random.default_rng(seed)
    margin = rng.normal(0.3, 2, n)
    after = margin + rng.normal(0, 1.5, n) > 0
    return margin > 0, 1 / (1 + np.exp(-margin)), after, rng.integers(0, 10, n)


def test_estimate_is_unbiased_over_every_sample_there_is():
    """All samples of 2 of 4 and 2 of 3 images: the mean of means and of variances is the truth."""
    y = np.array([1, 0, 1, 1, 0, 0, 1.0])
    strata = frame([4, 3])
    means, variances = [], []
    for first in itertools.combinations(range(4), 2):
        for second in itertools.combinations(range(4, 7), 2):
            total = np.array([[y[list(first)].sum()], [y[list(second)].sum()]])
            estimate = budget.estimate(strata, np.array([2, 2]), total, total)
            means.append(estimate.mean[0])
            variances.append(estimate.variance[0])
    assert np.mean(means) == pytest.approx(y.mean())
    unseen = 1 / 2  # one answer more, over strata of equal spread and one degree of freedom each
    remaining = sum((n / 7) ** 2 * (1 - 2 / n) / 2 for n in (4, 3))
    assert np.mean(variances) == pytest.approx(np.var(means) + unseen * remaining)


def test_drawing_is_uniform_within_a_stratum():
    first = np.zeros(12)
    for seed in range(4000):
        first[frame([5, 7], seed).order[:4]] += 1
    np.testing.assert_allclose(first[:5] / 4000, 2 / 5, atol=0.04)
    np.testing.assert_allclose(first[5:] / 4000, 2 / 7, atol=0.04)


def test_all_images_give_the_full_result_and_no_doubt():
    right, p_true, after, label = answers(3000)
    strata = budget.stratify(right, p_true, label, np.zeros(3000, int), np.ones(3000), [1])
    estimate = budget.seen(strata, np.stack([after, right], 1)[strata.order])
    np.testing.assert_allclose(estimate.mean, [after.mean(), right.mean()], rtol=1e-12)
    assert (estimate.variance == 0).all()
    np.testing.assert_allclose(strata.weights(3000), 1)


def test_the_pre_trained_model_is_known_from_any_sample():
    """The stratified mean is therefore the post-stratified difference estimator."""
    right, p_true, after, label = answers(3000)
    strata = budget.stratify(right, p_true, label, np.zeros(3000, int), np.ones(3000), [1])
    for images in (strata.least, 500, 2999):
        drawn, weights = strata.order[:images], strata.weights(images)
        assert weights.sum() == pytest.approx(3000)
        assert (weights * right[drawn]).sum() / 3000 == pytest.approx(right.mean())
        change = (weights * (after[drawn] * 1.0 - right[drawn])).sum() / 3000
        estimate = budget.seen(strata, after[drawn][:, None])
        assert right.mean() + change == pytest.approx(estimate.mean[0])
        assert estimate.mean[0] == pytest.approx(after.mean(), abs=5 * estimate.variance[0] ** 0.5)


def test_a_smaller_budget_is_part_of_a_larger_one():
    sets = [frame([50, 9], 1), frame([400, 300], 2), frame([1000], 3)]
    least = sum(strata.least for strata in sets)
    before = [strata.least for strata in sets]
    for share in (budget.least_share(sets), 0.1, 0.11, 0.5, 0.9, 1.0):
        counts = budget.allocate(sets, share)
        assert all(a <= b for a, b in zip(before, counts, strict=True))
        assert sum(counts) == math.ceil(share * 1759) >= least
        before = counts
    assert before == [59, 700, 1000]
    assert sorted(sets[1].order) == list(range(700))  # prefixes of one order are nested


def test_sets_get_about_equally_many_images_and_a_small_one_all_of_its():
    small, *large = (frame([n], seed) for seed, n in enumerate((100, 100_000, 50_000, 50_000)))
    counts = budget.allocate([small, *large], 0.05)
    assert counts[0] == 100 and sum(counts) == 10_005
    assert counts[1:] == pytest.approx([9905 / 3] * 3, rel=0.12)


@pytest.mark.parametrize("sizes", [[70], [1], [50, 9, 400], [100_000], [3] * 7])
def test_least_share_is_enough_and_no_more_than_that(sizes):
    strata = frame(sizes)
    assert budget.allocate([strata], budget.least_share([strata])) == [strata.least]
    if strata.least > 1:
        with pytest.raises(
            RecipeError, match=rf"too little: it takes {strata.least} of {sum(sizes)}"
        ):
            budget.allocate([strata], (strata.least - 1) / sum(sizes))


def test_too_little_a_budget_names_one_that_is_enough():
    with pytest.raises(
        RecipeError, match=r"evaluate\.budget=0\.01 .* give (\S+) or more"
    ) as caught:
        budget.allocate([frame([70]), frame([30])], 0.01)
    share = float(str(caught.value).split("give ")[1].split()[0])
    assert budget.allocate([frame([70]), frame([30])], share) == [2, 2]


def test_allocation_is_neymans_and_the_best_of_all():
    sizes, p_true = [30, 60, 20], np.repeat([0.5, 0.9, 0.7], [30, 60, 20])
    strata = frame(sizes, p_true=p_true)
    deviation = strata.share * np.sqrt(np.array([0.25, 0.09, 0.21]))
    np.testing.assert_allclose(strata.share * strata.spread, deviation)
    for images in (10, 25, 40):
        drawn = strata.drawn(images)
        assert np.abs(drawn - images * deviation / deviation.sum()).max() <= 1
        variance = {
            (a, b, images - a - b): (deviation**2 / np.array([a, b, images - a - b])).sum()
            for a in range(2, images - 3)
            for b in range(2, images - a - 1)
        }
        assert variance[tuple(drawn)] == pytest.approx(min(variance.values()))


def test_neyman_stops_where_a_stratum_ends():
    strata = frame([3, 60], p_true=np.repeat([0.5, 0.99], [3, 60]))
    assert strata.drawn(40).tolist() == [3, 37]


@pytest.mark.parametrize("sizes", [[1], [1, 1, 1], [1, 40], [2, 1, 70]])
def test_strata_of_one_image_are_always_seen(sizes):
    strata = frame(sizes)
    drawn = strata.drawn(strata.least)
    np.testing.assert_array_equal(drawn, np.minimum(sizes, 2))
    estimate = budget.estimate(strata, drawn, drawn[:, None] * 1.0, drawn[:, None] * 1.0)
    assert estimate.mean[0] == pytest.approx(1) and np.isfinite(estimate.variance).all()
    if max(sizes) <= 2:
        assert estimate.variance[0] == 0


def test_strata_keep_groups_and_sides_apart_and_have_none_empty():
    right, p_true, _, label = answers(50_000)
    group = np.random.default_rng(1).integers(0, 30, 50_000) * 3  # numbers with gaps
    strata = budget.stratify(right, p_true, label, group, np.ones(50_000), [0])
    assert strata.size.min() > 0 and strata.size.sum() == 50_000
    for values in (group, right):
        low, high = (np.full(len(strata.size), fill) for fill in (10**6, -1))
        np.minimum.at(low, strata.stratum, values)
        np.maximum.at(high, strata.stratum, values)
        np.testing.assert_array_equal(low, high)
    assert len(strata.size) > 60 + 300


def test_large_strata_are_cut_by_doubt_and_then_by_class():
    n = 40_000
    p_true = np.linspace(0.5, 1, n)
    label = np.tile(np.arange(100), n // 100)
    strata = budget.stratify(np.ones(n, bool), p_true, label, np.zeros(n, int), np.ones(n), [0])
    assert len(strata.size) == budget.STRATA and np.ptp(strata.size) <= 1
    for stratum in (0, 250, 499):
        members = strata.stratum == stratum
        assert np.ptp(p_true[members]) < 1 / budget.BANDS
        assert np.ptp(label[members]) <= 3


def test_weights_of_groups_are_kept():
    """Corruptions count alike, whatever their images."""
    group = np.repeat([0, 1], [100, 300])
    weight = np.repeat([1 / 100, 1 / 300], [100, 300])
    y = np.repeat([1.0, 0.0], [100, 300])
    right = np.ones(400, bool)
    strata = budget.stratify(right, np.full(400, 0.5), np.zeros(400, int), group, weight, [0])
    assert budget.seen(strata, y[strata.order[:50]][:, None]).mean[0] == pytest.approx(0.5)
    assert (strata.weights(50) * y[strata.order[:50]]).sum() == pytest.approx(200)


def test_agreement_of_a_few_images_proves_nothing():
    strata = frame([70])
    few, many = (budget.seen(strata, np.ones((n, 1))).variance[0] ** 0.5 for n in (10, 60))
    assert few > 0.05 and 0 < many < 0.01


def test_too_small_a_sample_is_refused():
    strata = frame([10, 10])
    with pytest.raises(ValueError, match=r"draw `Frame.least` first"):
        budget.seen(strata, np.ones((strata.least - 1, 1)))
    with pytest.raises(ValueError, match="without images"):
        frame([0])


@pytest.mark.parametrize("value", [0, -0.1, 1.01, math.nan, math.inf])
def test_impossible_budgets_are_refused_by_name(value):
    with pytest.raises(
        RecipeError, match=r"evaluate\.budget=\S+ must be a number above 0 and at most 1"
    ):
        budget.allocate([frame([5])], value)
    with pytest.raises(RecipeError, match=r"evaluate\.budget"):
        budget.next_look(1, 0, 0, 1, value)
    with pytest.raises(RecipeError, match=r"evaluate\.budget"):
        recipe.load("emoji/fine_tune", [f"evaluate.budget={value if value == value else '.nan'}"])


@pytest.mark.parametrize("value", ["0", "0.0", "-1", ".inf"])
def test_impossible_half_widths_are_refused_by_name(value):
    with pytest.raises(RecipeError, match=r"evaluate\.half_width=\S+ must be a number above 0"):
        recipe.load("emoji/fine_tune", [f"evaluate.half_width={value}"])


def test_next_look_is_where_the_interval_should_be_narrow_enough():
    assert budget.next_look(1, 0, 0, 1, 1) == budget.FIRST
    assert budget.next_look(1, 0, 0, 1, 0.001) == 0.001
    assert budget.next_look(2, 0.01, 2, 1, 1) == pytest.approx(1.1 * 4 / 103, rel=0.05)
    assert budget.next_look(2, 0.01, 1.001, 1, 1) == pytest.approx(0.0125, rel=0.05)
    assert budget.next_look(3, 0.01, 2, 1, 0.02) == 0.02
    assert budget.next_look(budget.LOOKS, 0.01, 1.001, 1, 0.7) == 0.7


def test_quantiles_are_those_of_the_normal_distribution():
    assert budget.quantile() == pytest.approx(1.959964, abs=1e-6)
    assert budget.quantile(5) == pytest.approx(2.575829, abs=1e-6)


@pytest.fixture(scope="module")
def small() -> sampled_sets.Population:
    return sampled_sets.corrupted(groups=10, sources=2000, classes=100)[0]


def test_real_variance_is_what_samples_show_and_estimates_say(small):
    draws = sampled_sets.Draws([small], 2000, 0)
    value, variance, images = draws.look(np.arange(2000), 0.1)
    (true,) = small.variance(images)
    assert value.mean() == pytest.approx(small.mean[0], abs=4 * (true / 2000) ** 0.5)
    assert value.var() == pytest.approx(true, rel=0.15)
    assert variance.mean() == pytest.approx(true, rel=0.05)


@pytest.mark.parametrize("half_width", [0.02, 0.01])
def test_intervals_hold_in_spite_of_stopping(small, half_width):
    stopped = sampled_sets.stop([small], half_width, repeats=1000)
    assert stopped.covered >= 0.93
    assert stopped.images < 20_000
    assert sampled_sets.once([small], 0.1, repeats=1000).covered >= 0.93


def test_control_variate_saves_images(small):
    without = sampled_sets.corrupted(groups=10, sources=2000, classes=100, control=False)[0]
    assert sampled_sets.needed([small], 0.01) < 0.6 * sampled_sets.needed([without], 0.01)


@pytest.mark.slow
def test_coverage_at_the_size_of_imagenet_c():
    populations = [sampled_sets.corrupted()[0]]
    for half_width, most in ((0.005, 40_000), (0.001, 600_000)):
        stopped = sampled_sets.stop(populations, half_width)
        assert stopped.covered >= 0.93 and stopped.images < most
    assert sampled_sets.once(populations, 0.05).covered >= 0.93
