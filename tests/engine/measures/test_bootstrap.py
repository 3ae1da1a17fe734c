"""Intervals: clusters and seeds in them, and whether they hold the truth as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stores import SETS, grid, random_hits, several_seeds, table

from engine.measures import bootstrap, intervals, metrics, predictions


def draws(sums: np.ndarray, resamples: int = 1000, seed: int = 0, start: int = 0) -> np.ndarray:
    """Draws of the mean of `sums` [seeds, sources], an image a source."""
    bank = predictions.SetPredictions()
    bank.sources, bank.total = np.arange(sums.shape[1]), np.ones(sums.shape[1])
    columns = {"x": sums[:, :, None]}
    means = bootstrap.means({"x": bank}, columns, resamples=resamples, seed=seed, start=start)
    return means["x"][:, 0]


def coverage(simulate, repeats: int) -> float:
    """Share of simulated data sets whose interval holds the truth, 0."""
    held = 0
    for repeat in range(repeats):
        low, high, _ = bootstrap.ends(draws(simulate(np.random.default_rng(repeat)), 400))
        held += low <= 0 <= high
    return held / repeats


@pytest.mark.slow
def test_intervals_over_images_hold_the_truth_as_often_as_they_say():
    covered = coverage(lambda rng: rng.choice([-1.0, 0, 1], (1, 150), p=[0.2, 0.6, 0.2]), 400)
    assert 0.92 <= covered <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "images"), [(2, 100), (5, 100)])
def test_intervals_over_seeds_and_images_hold_the_truth_for_few_seeds_too(seeds, images):
    def simulate(rng):
        noise = 0.3 * rng.standard_normal((seeds, 1)) + 0.5 * rng.standard_normal(images)
        return noise + 0.5 * rng.standard_normal((seeds, images))

    assert 0.92 <= coverage(simulate, 400) <= 0.998


def test_intervals_that_ignore_the_seeds_are_too_narrow():
    """The test above can fail: here the mean over seeds is taken for a single seed."""

    def simulate(rng):
        noise = 0.3 * rng.standard_normal((2, 1)) + 0.5 * rng.standard_normal(100)
        return (noise + 0.5 * rng.standard_normal((2, 100))).mean(0, keepdims=True)

    assert coverage(simulate, 400) < 0.8


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_where_only_seeds_vary_the_interval_is_students(seeds):
    stats = pytest.importorskip("scipy.stats")
    value = np.random.default_rng(seeds).standard_normal(seeds)
    interval = bootstrap.ends(draws(np.repeat(value[:, None], 4, axis=1), 200_000))[:2]
    spread = value.std(ddof=1) / np.sqrt(seeds)
    expected = stats.t.interval(0.95, seeds - 1, value.mean(), spread)
    width = expected[1] - expected[0]
    assert interval == pytest.approx(expected, abs=0.03 * width)


def test_one_bootstrap_agrees_with_scipys(tmp_path):
    stats = pytest.importorskip("scipy.stats")
    hits = (np.random.default_rng(0).random((1, 200)) < 0.3).astype(float)
    interval = bootstrap.ends(draws(hits, 20_000))[:2]
    expected = stats.bootstrap(
        (hits[0],), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert interval == pytest.approx(tuple(expected), abs=0.006)


def thinned(
    rng: np.random.Generator, sources: int, sets: int, keep: float
) -> dict[str, np.ndarray]:
    """The sources of each set, drawn at random."""
    return {str(j): np.flatnonzero(rng.random(sources) < keep) for j in range(sets)}


def mean_over_sets(
    rows_of_set: dict[str, np.ndarray], value: np.ndarray, resamples: int
) -> np.ndarray:
    """Draws of the mean over sets of the mean of `value` [sources, sets], an image a source."""
    banks, columns = {}, {}
    for j, (name, rows) in enumerate(rows_of_set.items()):
        banks[name] = predictions.SetPredictions()
        banks[name].sources, banks[name].total = rows, np.ones(len(rows))
        columns[name] = value[rows, j][None, :, None]
    means = bootstrap.means(banks, columns, resamples=resamples, seed=0)
    return np.mean(list(means.values()), axis=0)[:, 0]


def test_intervals_hold_where_every_source_is_in_sets_of_its_own():
    """Sources shared by eight sets at random: nearly each makes a pattern that no other has."""
    held = 0
    for repeat in range(300):
        rng = np.random.default_rng(repeat)
        value = rng.standard_normal((200, 1)) + 0.5 * rng.standard_normal((200, 8))
        samples = mean_over_sets(thinned(rng, 200, 8, 0.5), value, 300)
        low, high, _ = bootstrap.ends(samples)
        held += low <= 0 <= high
    assert 0.92 <= held / 300 <= 0.98


def test_a_set_that_a_draw_misses_has_a_mean_all_the_same():
    held = {"many": np.arange(40), "one": np.array([40])}
    value = np.concatenate([np.zeros((40, 2)), np.ones((1, 2))])
    samples = mean_over_sets(held, value, 500)
    np.testing.assert_allclose(samples, 0.5)


@pytest.mark.parametrize("seeds", [1, 3])
def test_draws_are_the_same_however_many_are_made(seeds):
    sums = np.random.default_rng(0).random((seeds, 20))
    many = draws(sums, 2 * bootstrap.TOGETHER + 7)
    assert len(many) == 2 * bootstrap.TOGETHER + 7 and len(np.unique(many)) > 250
    for count in (50, bootstrap.TOGETHER, bootstrap.TOGETHER + 1):
        np.testing.assert_allclose(draws(sums, count), many[:count], rtol=1e-12)
    for start in (50, bootstrap.TOGETHER - 1, bootstrap.TOGETHER):
        np.testing.assert_allclose(draws(sums, len(many), start=start), many[start:], rtol=1e-12)


def test_how_often_a_source_comes_up_is_poisson_and_sources_are_independent():
    """To within four and a half standard errors, and steps of 2^-16."""
    bank = predictions.SetPredictions()
    bank.sources, bank.total = np.arange(300), np.ones(300)
    counts = bootstrap.draw({"x": bank}, resamples=8000, seeds=1, seed=1).counts.astype(float)
    frequencies = np.bincount(counts.astype(int).ravel(), minlength=9) / counts.size
    for k, share in enumerate(frequencies):
        expected = math.exp(-1) / math.factorial(k)
        spread = math.sqrt(expected / counts.size)
        assert share == pytest.approx(expected, abs=4.5 * spread + 2**-16)
    half = counts[:, ::2].sum(axis=1)  # whose variance a covariance would show in
    assert half.mean() == pytest.approx(150, abs=4.5 * math.sqrt(150 / 8000))
    assert half.var() == pytest.approx(150, rel=4.5 * math.sqrt(2 / 8000))


def test_p_value_is_where_the_interval_reaches_zero():
    def p(samples):
        return bootstrap.p_value(bootstrap.tails(samples), len(samples)).p

    samples = np.arange(-30.0, 970.0)
    assert p(samples) == pytest.approx(2 * 32 / 1001)
    assert p(-samples) == p(samples)
    assert p(samples + 500) == 2 / 1001
    assert p(np.zeros(100)) == 1


@pytest.mark.parametrize("share", [0.2, 0.02, 0.0005, 0.00001])
def test_a_p_is_within_four_of_its_errors_of_what_infinitely_many_draws_would_say(share):
    counts = np.random.default_rng(0).binomial(10_000, share, 5000)
    estimate = bootstrap.p_value(np.stack([counts, 10_000 - counts]), 10_000)
    assert (np.abs(estimate.p - 2 * share) <= bootstrap.CERTAIN * estimate.error + 1e-12).all()
    if 10_000 * share > 100:  # and it is no wider than it must be
        assert estimate.error.mean() == pytest.approx(np.std(estimate.p), rel=0.2)


def test_an_end_varies_as_much_as_its_error_says():
    rng = np.random.default_rng(0)
    ends = np.array([bootstrap.ends(rng.standard_normal(2000)) for _ in range(500)])
    assert ends[:, :2].mean(axis=0) == pytest.approx((-1.96, 1.96), abs=0.02)
    assert ends[:, 2].mean() == pytest.approx(ends[:, 0].std(), rel=0.25)
    samples = rng.standard_normal(4001)
    assert bootstrap.ends(samples)[:2] == pytest.approx(np.quantile(samples, (0.025, 0.975)))
    assert bootstrap.ends(np.ones(7)) == (1, 1, 0)


@pytest.mark.parametrize(("spread", "count"), [(0.0, 1000), (1.0, 4000), (1e6, metrics.MOST)])
def test_draws_are_doubled_until_their_ends_are_settled(spread, count):
    numbers = spread * np.random.default_rng(0).standard_normal((metrics.MOST, 1))
    blocks: list[tuple[int, int]] = []

    def draw(start, stop):
        blocks.append((start, stop))
        return numbers[start:stop]

    np.testing.assert_array_equal(metrics.settle(draw), numbers[:count])
    stops = [stop for _, stop in blocks]
    assert blocks == list(zip([0, *stops], stops, strict=False))
    assert stops[:-1] == [1000 * 2**k for k in range(len(stops) - 1)]


def test_duplicated_images_do_not_narrow_any_interval(tmp_path):
    """Every image ten times over, as one source: no more evidence, so no other interval."""
    hits = {key: random_hits(40, seed)("", "", "") for seed, key in enumerate("pfw")}

    def all_intervals(name, times, sources):
        cells = grid(
            tmp_path / name,
            lambda method, *_: np.repeat(hits[method[0]], times),
            ("fine_tune", "wise_ft"),
            source=sources,
        )
        read = metrics.gather(cells)
        return intervals.intervals(read, metrics.summarise(read, SETS), (), SETS, "up", trends={})

    names = np.array([f"s{i:05}" for i in range(400)])
    plain = all_intervals("plain", 1, names[:40])
    assert {row.quantity for row in plain} == {"accuracy", "RI", "mRI", "change"}
    for single, ten in zip(plain, all_intervals("ten", 10, np.repeat(names[:40], 10)), strict=True):
        assert (ten.low, ten.high) == pytest.approx((single.low, single.high))
    wrong = all_intervals("wrong", 10, names)
    width = [sum(row.high - row.low for row in rows) for rows in (plain, wrong)]
    assert width[0] / width[1] == pytest.approx(np.sqrt(10), rel=0.1)


def test_intervals_of_a_grid_equal_a_loop_over_resampled_sources(tmp_path):
    """RI and accuracy by brute force: concepts drawn, all images of each taken, in plain loops."""
    cells = grid(tmp_path, random_hits())
    read = metrics.gather(cells)
    rows = {
        (row.quantity, row.method, row.downstream, row.evaluated_on): row
        for row in intervals.intervals(
            read, metrics.summarise(read, SETS), (), SETS, "up", trends={}, resamples=4000
        )
    }
    hit = {}
    for cell in cells:
        data = pq.read_table(cell.path)
        hit[cell.method, cell.downstream, cell.evaluated_on] = (
            data["top1"].to_numpy() == data["label"].to_numpy()
        )
    rng = np.random.default_rng(5)
    accuracy, ri = [], []
    for _ in range(4000):
        concepts = rng.integers(30, size=30)
        images = np.concatenate([2 * concepts, 2 * concepts + 1])
        accuracy.append(100 * hit["fine_tune", "a", "up"][images].mean())
        changes = [
            100 * (hit["fine_tune", "b", on][images].mean() - hit["pre", "", on][images].mean())
            for on in ("a", "c")
        ]
        ri.append(np.mean(changes))
    for key, samples in (
        (("accuracy", "fine_tune", "a", "up"), accuracy),
        (("RI", "fine_tune", "b", ""), ri),
    ):
        expected = np.quantile(samples, (0.025, 0.975))
        assert (rows[key].low, rows[key].high) == pytest.approx(expected, abs=1.7)  # a step is 1.67
        assert rows[key].low <= rows[key].value <= rows[key].high


def test_seeds_that_disagree_widen_the_interval_and_seeds_that_agree_do_not(tmp_path):
    base = random_hits(seed=8)
    hits = {}

    def same(method, downstream, on):
        return hits.setdefault((method, downstream, on), base(method, downstream, on))

    def lucky(seed):
        rng = np.random.default_rng(seed)
        return lambda *key: same(*key) | (rng.random(60) < 0.25 * seed * (key[0] != "pre"))

    (single,) = metrics.summarise(grid(tmp_path / "one", same), SETS).mri
    agree = several_seeds(tmp_path / "agree", lambda seed: same, (0, 1, 2))
    (equal,) = metrics.summarise(agree, SETS).mri
    assert (equal.mri, equal.mri_low, equal.mri_high) == pytest.approx(
        (single.mri, single.mri_low, single.mri_high)
    )
    disagree = several_seeds(tmp_path / "disagree", lucky, (0, 1, 2))
    (wide,) = metrics.summarise(disagree, SETS).mri
    assert wide.mri_high - wide.mri_low > 2 * (single.mri_high - single.mri_low)


def test_accuracies_of_seeds_that_disagree_stay_between_0_and_100(tmp_path):
    def lucky(seed):
        return lambda *_: np.arange(60) >= 12 * seed

    read = metrics.gather(several_seeds(tmp_path, lucky, (0, 1)))
    rows = intervals.intervals(read, metrics.summarise(read, SETS), (), SETS, "up", trends={})
    ends = [(r.low, r.high) for r in rows if r.quantity == "accuracy" and r.method == "fine_tune"]
    assert {high for _, high in ends} == {100} and all(0 <= low < 100 for low, _ in ends)


def test_a_set_of_one_kind_of_answer_has_no_width_and_other_sources_are_fine(tmp_path):
    path = tmp_path / "all.parquet"
    pq.write_table(table(np.ones(6, bool), source=pa.array(list("uvwxyz"))), path)
    cells = grid(tmp_path, random_hits())
    up = [cell for cell in cells if cell.evaluated_on == "up"]
    for cell in up:
        pq.write_table(pq.read_table(path), cell.path)
    read = metrics.gather(cells)
    rows = intervals.intervals(read, metrics.summarise(read, SETS), (), SETS, "up", trends={})
    ends = [(r.low, r.high) for r in rows if (r.evaluated_on, r.quantity) == ("up", "accuracy")]
    assert ends == [(100, 100)] * len(up)
