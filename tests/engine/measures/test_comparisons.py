"""Paired tests between methods, against brute force and laws."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from engine.measures import comparisons, paired
from engine.measures.comparisons import Errors
from engine.measures.paired import ImageError
from engine.measures.seeds import SeedError
from engine.measures.tables import rows
from helpers.stores import SETS, gather, grid, mri, random_hits, right, setting

PRE, FT, LWF, EWC = range(4)  # arms of a grid of these methods


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_its_definition(p):
    adjusted = comparisons.holm(np.array(p))
    for k, value in enumerate(p):
        # Rejected at level a: all that are smaller, in order, lie below a over how many are left.
        smaller = sorted(p)[: sorted(p).index(value) + 1]
        raised = [(len(p) - rank) * lower for rank, lower in enumerate(smaller)]
        assert adjusted[k] == pytest.approx(min(1.0, max(raised)))


@given(
    st.integers(1, 6).flatmap(
        lambda count: st.tuples(
            st.just(count),
            st.sets(st.sampled_from([*itertools.combinations(range(count), 2)] or [(0, 0)])),
        )
    )
)
def test_alike_groups_are_the_largest_without_a_differing_pair(of):
    count, differing = of
    differing -= {(0, 0)}
    arms = [*range(count)][::-1]
    alike = [
        {*group}
        for size in range(1, count + 1)
        for group in itertools.combinations(arms, size)
        if not any({*pair} <= {*group} for pair in differing)
    ]
    largest = [group for group in alike if not any(group < other for other in alike)]
    groups = comparisons.alike_groups(arms, differing)
    assert sorted(map(sorted, groups)) == sorted(map(sorted, largest))
    assert groups == sorted(groups, reverse=True)
    assert all(group == sorted(group, reverse=True) for group in groups)


def test_many_sources_that_gain_a_little_and_few_that_lose_much_prove_nothing(tmp_path):
    """70 sources gain an image, 15 lose two and 15 three: the mean is -0.05, and a sign test says
    that the method is better."""
    net = np.repeat([1, -2, -3], [70, 15, 15])
    better = (np.arange(3) < np.maximum(net, 0)[:, None]).ravel()
    worse = (np.arange(3) < np.maximum(-net, 0)[:, None]).ravel()
    source = np.repeat([f"s{k:03}" for k in range(100)], 3)
    cells = grid(
        tmp_path,
        lambda method, *_: better if method == "fine_tune" else worse,
        ("fine_tune", "lwf"),
        source=source,
    )
    compared = rows(comparisons.compare(gather(cells), [FT, LWF]))
    assert [row.evaluated_on for row in compared] == ["", *SETS]
    for row in compared:
        assert row.difference_pts == pytest.approx(-100 * 0.05 / 3)
        assert row.difference_low < 0 < row.difference_high
        assert row.p > 0.5 and row.adjusted_p > 0.5
    assert stats.binomtest(70, 100).pvalue < 1e-4


def test_differences_equal_a_loop_over_resampled_sources(tmp_path):
    cells = grid(tmp_path, random_hits(), ("fine_tune", "lwf"))
    read = gather(cells)
    overall, *on_sets = rows(comparisons.compare(read, [FT, LWF]))
    of_method = mri(read).set_index("method")["mRI_pts"]
    assert overall.difference_pts == pytest.approx(of_method["fine_tune"] - of_method["lwf"])
    assert overall.difference_pts == pytest.approx(np.mean([row.difference_pts for row in on_sets]))
    hit = {(c.method, c.downstream, c.evaluated_on): right(c).astype(float) for c in cells}
    pairs = itertools.permutations(SETS, 2)
    net = np.mean([hit["fine_tune", i, j] - hit["lwf", i, j] for i, j in pairs], axis=0)
    by_source = 100 * net.reshape(30, 2).mean(1)
    rng = np.random.default_rng(1)
    loop = np.array([rng.choice(by_source, 30).mean() for _ in range(10_000)])
    expected = np.quantile(loop, (0.025, 0.975))
    assert (overall.difference_low, overall.difference_high) == pytest.approx(expected, abs=0.6)
    assert overall.p == pytest.approx(2 * min(np.mean(loop <= 0), np.mean(loop >= 0)), abs=0.03)


def test_a_method_equals_itself_and_differs_from_a_far_better_one(tmp_path):
    base = random_hits()
    same = {key: base("fine_tune", *key) for key in itertools.product(("", *SETS), (*SETS, "up"))}
    cells = grid(
        tmp_path, lambda method, *key: same[key] | (method == "ewc"), ("fine_tune", "lwf", "ewc")
    )
    compared = rows(comparisons.compare(gather(cells), [FT, LWF, EWC]))
    equal, worse, also = (row for row in compared if not row.evaluated_on)
    assert (equal.difference_pts, equal.p, equal.adjusted_p) == pytest.approx((0, 1, 1), abs=1e-9)
    assert (equal.difference_low, equal.difference_high) == pytest.approx((0, 0), abs=1e-4)
    assert worse.difference_high < 0 and also.difference_high < 0
    assert all((row.adjusted_p < 0.05) == (row.against == EWC) for row in compared)


def test_only_arms_of_one_model_and_setting_are_compared(tmp_path):
    cells = grid(tmp_path, random_hits(), ("fine_tune", "lwf"))
    cells += [replace(cell, model="vit") for cell in cells]
    trained = [cell for cell in cells if cell.method != "pretrained"]
    read = gather(cells + [replace(cell, setting=setting("step=16")) for cell in trained])
    arms = [k for k, arm in enumerate(read.arms) if arm.method != "pretrained"]
    compared = comparisons.compare(read, arms)
    pairs = {(read.arms[row.arm], read.arms[row.against]) for row in rows(compared)}
    of = {(a.model, str(a.setting), a.method, b.model, str(b.setting), b.method) for a, b in pairs}
    assert of == {
        (model, setting, "fine_tune", model, setting, "lwf")
        for model in ("lite0", "vit")
        for setting in ("", "step=16")
    }
    assert comparisons.compare(read, [FT]).empty


@pytest.mark.parametrize("count", [2, 5])
def test_a_minimum_detectable_difference_is_detected_about_as_often_as_it_says(count):
    errors, rng, campaigns = Errors(0.5, 0.8, rows=10), np.random.default_rng(0), 4000
    difference = errors.difference(count)
    freedom = (count - 1) * (errors.rows - 1)
    over_seeds = 0.8**2 / count
    values = difference + rng.normal(0, np.sqrt(0.5**2 + over_seeds), campaigns)
    pooled = over_seeds * rng.chisquare(freedom, campaigns) / freedom
    error = SeedError(pooled, np.full(campaigns, float(freedom)))
    images = ImageError(np.full(campaigns, 0.5**2), np.full(campaigns, 1e12))
    _, p = paired.tested(values, [images, error])
    assert np.mean(p * errors.comparisons < 0.05) == pytest.approx(0.8, abs=0.04)


def test_more_seeds_separate_less_and_a_floor_stays():
    errors = Errors(0.5, 0.8, rows=10)
    assert errors.comparisons == 45
    least = [errors.difference(count) for count in range(1, 20)]
    assert least == sorted(least, reverse=True)
    needed = errors.needed(2.5) or 0
    assert errors.difference(needed) <= 2.5 < errors.difference(needed - 1)
    assert errors.needed(1.0) is None  # the images alone leave more
    # By hand, of two seeds, with 1 degree of freedom: the root of (1.960 x 0.5)^2 +
    # (12.706 x 0.8)^2 / 2, and that of (0.842 x 0.5)^2 + (1.376 x 0.8)^2 / 2.
    # Their quantiles are those of 95% and, for a power of 80%, of 60%.
    assert Errors(0.5, 0.8, rows=2).difference(2) == pytest.approx(7.25 + 0.885, abs=0.005)
