"""What training seeds add to intervals and tests: by brute force, by laws, and in simulations."""

import itertools
from dataclasses import replace

import numpy as np
import pandas
import pytest
from scipy import sparse, stats

from bench import simulated_seeds
from engine.measures import comparisons, paired, seeds
from engine.measures.paired import ImageError
from engine.measures.seeds import SeedError
from engine.measures.tables import rows
from helpers.stores import SETS, gather, grid, random_hits, right, several_seeds

METHODS = ("fine_tune", "lwf", "ewc")
PAIRS = list(itertools.combinations(METHODS, 2))


def of_seed(seed: int):
    """Hits that differ from seed to seed, but for the pretrained model's."""
    rng, same = np.random.default_rng(seed), random_hits(seed=9)
    return lambda method, *at: same(method, *at) if method == "pretrained" else rng.random(60) < 0.5


@pytest.mark.parametrize("count", [2, 5])
def test_where_only_seeds_vary_interval_and_p_are_students(count):
    value = 1 + np.random.default_rng(count).standard_normal(count)
    spread = value.std(ddof=1) / np.sqrt(count)
    expected = stats.t.interval(0.95, count - 1, value.mean(), spread)
    mean, error = value.mean(keepdims=True), seeds.of_mean(value[:, None])
    ends, p = paired.tested(mean, [error])
    assert ends[:, 0] == pytest.approx(expected)
    _, expected_p = stats.ttest_1samp(value, 0)
    assert p == pytest.approx(expected_p)
    assert seeds.widened(mean, np.stack([mean, mean]), error)[:, 0] == pytest.approx(expected)


def test_without_seeds_p_is_of_the_images_and_intervals_stay_as_they_are():
    values, none = np.array([2.0, 0, 5]), seeds.none(3)
    images = ImageError(np.array([1.0, 0, 0]), np.array([9.0, 9, 9]))
    ends, p = paired.tested(values, [images, none])
    assert p[0] == pytest.approx(2 * stats.t.sf(2, 9)) and p[1] == 1
    assert 0 < p[2] < 1e-10  # no number of a file is a p of 0
    assert ends[:, 0] == pytest.approx(stats.t.interval(0.95, 9, 2))
    given = np.array([[1.0, -1, 4], [4.0, 1, 7]])
    assert (seeds.widened(values, given, none) == given).all()


def test_a_difference_is_significant_exactly_where_its_interval_excludes_0():
    rng = np.random.default_rng(0)
    values, images = rng.normal(0, 2, 5000), rng.gamma(2, 0.5, 5000)
    error = SeedError(rng.gamma(1, 0.5, 5000), rng.integers(1, 30, 5000).astype(float))
    ends, p = paired.tested(values, [ImageError(images, np.full(5000, 99.0)), error])
    assert ((p < 0.05) == (ends[0] > 0) | (ends[1] < 0)).all() and 0.1 < (p < 0.05).mean() < 0.9


def test_the_variance_of_pairs_is_pooled_over_rows_that_train(tmp_path):
    cells = several_seeds(tmp_path, of_seed, (0, 1, 2), methods=(*METHODS, "soup", "linear_probe"))
    fixed = {(c.downstream, c.evaluated_on): c.path for c in cells if c.method == "linear_probe"}
    cells = [replace(cell, trains=cell.method != "soup") for cell in cells]
    for k, cell in enumerate(cells):
        if cell.method == "linear_probe":
            cells[k] = replace(cell, path=fixed[cell.downstream, cell.evaluated_on])
    read = gather(cells)
    accuracy = read.trained.query("downstream != ''")
    accuracy = accuracy[accuracy["evaluated_on"].isin(SETS)]
    accuracy = accuracy[accuracy["downstream"] != accuracy["evaluated_on"]]
    mri = accuracy.groupby(["method", "seed"])["accuracy"].mean().unstack()
    pooled = np.mean([(mri.loc[a] - mri.loc[b]).var() / 3 for a, b in PAIRS])
    arms = [k for k, arm in enumerate(read.arms) if arm.method != "pretrained"]
    for row in rows(comparisons.compare(read, arms).query("evaluated_on == ''")):
        a, b = read.arms[row.arm].method, read.arms[row.against].method
        own = (mri.loc[a] - mri.loc[b]).var() / 3
        assert row.difference_pts == pytest.approx((mri.loc[a] - mri.loc[b]).mean())
        check_difference(read, row, max(own, pooled), 2 * (len(METHODS) - 1))


def check_difference(read, row, variance: float, freedom: int) -> None:
    """p and interval, from the variance over seeds and the degrees of freedom of its pool."""
    draws, places = read.mri.draws(), read.mri.keys["arm"].tolist()
    a, b = (draws[:, places.index(arm)].astype(float) for arm in (row.arm, row.against))
    of_images = (a - b).var() * 30 / 29  # sources

    def half_width(p: float) -> float:
        if freedom < 4:
            quantiles = stats.t.isf(p / 2, [29, freedom])
            return float(np.sqrt(quantiles**2 @ [of_images, variance]))
        total = of_images + variance
        of_total = total**2 / (of_images**2 / 29 + variance**2 / freedom)
        return stats.t.isf(p / 2, of_total) * np.sqrt(total)

    # 4,000 draws estimate the variance over images to about 2%.
    assert row.difference_high - row.difference_pts == pytest.approx(half_width(0.05), rel=0.03)
    assert half_width(row.p) == pytest.approx(abs(row.difference_pts), rel=0.03)


def test_a_replicate_gives_the_variance_of_a_mean_over_all_columns(tmp_path):
    first, second = (grid(tmp_path / str(k), of_seed(k), METHODS) for k in range(2))
    replicates = [cell for cell in second if cell.downstream == "a"]
    again = [replace(cell, seed=1, role="replicate") for cell in replicates]
    plain, read = gather(first), gather([*first, *again])
    assert plain.cells.equals(read.cells)

    def ri(which, method):  # of column `a`
        of_column = [c for c in which if (c.method, c.downstream) == (method, "a")]
        return np.mean([100 * right(c).mean() for c in of_column if c.evaluated_on in ("b", "c")])

    change = {method: ri(second, method) - ri(first, method) for method in METHODS}
    own = {(a, b): (change[a] - change[b]) ** 2 / 2 / 3 for a, b in PAIRS}
    arms = [k for k, arm in enumerate(read.arms) if arm.method != "pretrained"]
    compared = comparisons.compare(read, arms)
    for row in rows(compared.query("evaluated_on == ''")):
        pair = read.arms[row.arm].method, read.arms[row.against].method
        pooled = np.mean([*own.values()])
        check_difference(read, row, max(own[pair], pooled), len(METHODS) - 1)
    before = comparisons.compare(plain, arms)
    assert (before["difference_pts"] == compared["difference_pts"]).all()
    wider = compared["difference_high"] - compared["difference_low"]
    narrow = before["difference_high"] - before["difference_low"]
    assert (wider > narrow).all()  # on the replicated set too, where the replicate does not count
    wide, narrow = (of.numbers["change_high"] - of.numbers["change_low"] for of in (read, plain))
    of_columns = read.numbers["downstream"] != ""
    assert (wide[of_columns] == narrow[of_columns]).sum() == narrow[of_columns].notna().sum()
    assert (wide > narrow)[~of_columns & narrow.notna()].all()


def test_a_replicate_counts_for_the_rows_that_it_trained_alone():
    """Two models in one report, each with a replicate of another column."""
    columns = np.array([0, 1, 0, 1])  # of a model's two cells, then of the other's
    change, replicated = np.array([4.0, 0, 0, 6.0]), np.array([True, False, False, True])
    weights = sparse.csc_array([[0.5, 0], [0.5, 0], [0, 0.5], [0, 0.5]])
    error = seeds.of_replicates(change, replicated, columns, weights)
    assert list(error.variance) == [4**2 / 4, 6**2 / 4]  # (half of it)**2 / 2, of two columns
    assert list(error.freedom) == [1, 1]


def test_an_unknown_variance_over_seeds_gives_no_interval():
    unknown = SeedError(np.array([np.nan, 0]), np.ones(2))
    ends = np.array([[1.0, 1], [3.0, 3]])
    wide = seeds.widened(np.array([2.0, 2]), ends, unknown)
    assert np.isnan(wide[:, 0]).all() and list(wide[:, 1]) == [1, 3]


def test_a_replicate_that_saw_other_images_is_refused(tmp_path):
    first = grid(tmp_path / "0", of_seed(0), METHODS)
    other = grid(tmp_path / "1", lambda *_: np.zeros(58, bool), METHODS)
    with pytest.raises(ValueError, match="different images"):
        again = [replace(cell, role="replicate") for cell in other if cell.downstream == "a"]
        gather([*first, *again])


def test_numbers_that_no_seed_changes_have_no_variance_and_lend_none():
    own = SeedError(np.array([0.0, 4, 2, 9]), np.ones(4))
    groups, varies = pandas.Series([0, 0, 0, 0]), np.array([False, True, True, True])
    trains = np.array([True, True, True, False])
    variance, freedom = seeds.moderated(own, groups, varies, trains, of_pairs=False)
    assert list(variance) == [0, 4, 3, 9] and (freedom == 1).all()
    variance, _ = seeds.moderated(own, groups, varies, np.zeros(4, bool), of_pairs=False)
    assert list(variance) == [0, 5, 5, 9]


@pytest.mark.parametrize("r", [1, pytest.param(10, marks=pytest.mark.exhaustive)])
def test_tests_of_equal_methods_hold_at_their_level(r):
    """A few simulated campaigns; bench/README.md has 2,000 in a cell."""
    for rows_are in ("independent", "like the demo's"):
        for claimed, held, _ in (
            simulated_seeds.of_seeds(400, 2, r, rows_are),
            simulated_seeds.of_replicates(400, r, rows_are),
        ):
            assert claimed < 0.07 and held > 0.94
