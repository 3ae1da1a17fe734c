"""Paired tests between methods, against SciPy, brute force and laws."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import SETS, grid, random_hits, several_seeds

from engine.measures import comparisons, metrics
from engine.measures.rows import Arm

FT, LWF, EWC = (Arm("lite0", name, "canonical", None) for name in ("fine_tune", "lwf", "ewc"))


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_sign_test_is_scipys_exact_binomial_test(better, worse):
    stats = pytest.importorskip("scipy.stats")
    n = better + worse
    expected = stats.binomtest(better, n, 0.5).pvalue if n else 1.0
    assert comparisons.sign_test(better, worse) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("counts", [(1_000_000, 1_003_000), (900_000, 901_000), (0, 5000)])
def test_sign_test_of_millions(counts):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(counts[0], sum(counts), 0.5).pvalue
    assert comparisons.sign_test(*counts) == pytest.approx(expected, rel=1e-6, abs=1e-300)


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_its_definition(p):
    corrected = comparisons.holm(p)
    for k, value in enumerate(p):
        # Rejected at level a: all that are smaller, in order, lie below a over how many are left.
        smaller = sorted(p)[: sorted(p).index(value) + 1]
        raised = [(len(p) - rank) * lower for rank, lower in enumerate(smaller)]
        assert corrected[k] == pytest.approx(min(1.0, max(raised)))


def test_holm_by_hand():
    assert comparisons.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert comparisons.holm([]).shape == (0,)


def test_false_findings_among_many_comparisons_are_rare_only_with_correction():
    rng = np.random.default_rng(0)
    findings = np.zeros(2)
    for _ in range(300):
        p = [
            comparisons.sign_test(*np.bincount(rng.integers(0, 2, 80), minlength=2))
            for _ in "x" * 20
        ]
        findings += min(p) < 0.05, min(comparisons.holm(p)) < 0.05
    assert findings[0] > 100 and findings[1] <= 0.07 * 300


def test_with_two_sets_and_an_image_a_source_the_test_on_a_set_is_mcnemars(tmp_path):
    stats = pytest.importorskip("scipy.stats")
    source = [f"s{i:03}" for i in range(60)]
    cells = grid(tmp_path, random_hits(), ("fine_tune", "lwf"), ("a", "b"), source=source)
    rows = comparisons.compare(metrics.gather(cells), [(FT, LWF)], ("a", "b"))
    assert [row.evaluated_on for row in rows] == ["", "a", "b"]
    hit = {}
    for cell in cells:
        data = pq.read_table(cell.path)
        hit[cell.method, cell.downstream, cell.evaluated_on] = (
            data["top1"].to_numpy() == data["label"].to_numpy()
        )
    for row, downstream in zip(rows[1:], "ba", strict=True):
        first, second = (hit[m, downstream, row.evaluated_on] for m in ("fine_tune", "lwf"))
        counts = int((first & ~second).sum()), int((~first & second).sum())
        assert (row.better, row.worse) == counts
        assert row.p == pytest.approx(stats.binomtest(counts[0], sum(counts)).pvalue)
        assert row.difference == pytest.approx(100 * (first.mean() - second.mean()))
        assert row.low <= row.difference <= row.high


def test_differences_equal_a_loop_over_resampled_sources(tmp_path):
    cells = grid(tmp_path, random_hits(), ("fine_tune", "lwf"))
    read = metrics.gather(cells)
    overall, *on_sets = comparisons.compare(read, [(FT, LWF)], SETS)
    mri = {row.method: row.mri for row in metrics.summarise(read, SETS).mri}
    assert overall.difference == pytest.approx(mri["fine_tune"] - mri["lwf"])
    assert overall.difference == pytest.approx(np.mean([row.difference for row in on_sets]))
    change = {}
    for cell in cells:
        data = pq.read_table(cell.path)
        hit = data["top1"].to_numpy() == data["label"].to_numpy()
        change[cell.method, cell.downstream, cell.evaluated_on] = hit.astype(float)
    net = np.mean(
        [
            change["fine_tune", i, j] - change["lwf", i, j]
            for i, j in itertools.permutations(SETS, 2)
        ],
        axis=0,
    )
    by_source = 100 * net.reshape(30, 2).mean(1)
    rng = np.random.default_rng(1)
    loop = [rng.choice(by_source, 30).mean() for _ in range(10_000)]
    expected = np.quantile(loop, (0.025, 0.975))
    assert (overall.low, overall.high) == pytest.approx(expected, abs=0.5)
    assert overall.p == pytest.approx(
        2 * min(np.mean(np.array(loop) <= 0), np.mean(np.array(loop) >= 0)), abs=0.03
    )


def test_a_method_equals_itself_and_differs_from_a_far_better_one(tmp_path):
    base = random_hits()
    drawn: dict[tuple[str, str], np.ndarray] = {}

    def hits(method, downstream, on):
        same = drawn.setdefault((downstream, on), base("fine_tune", downstream, on))
        return same | (method == "ewc")

    cells = grid(tmp_path, hits, ("fine_tune", "lwf", "ewc"))
    read = metrics.gather(cells)
    rows = comparisons.compare(read, comparisons.all_pairs([FT, LWF, EWC]), SETS)
    equal, worse, also = (row for row in rows if not row.evaluated_on)
    assert (equal.difference, equal.low, equal.high, equal.p, equal.p_corrected) == (0, 0, 0, 1, 1)
    assert worse.p_corrected < 0.05 > also.p_corrected and worse.high < 0 and also.high < 0
    on_sets = [row for row in rows if row.evaluated_on]
    assert [row.better for row in on_sets] == [0] * 9
    assert all((row.worse > 10) == (row.against == EWC) for row in on_sets)
    assert all(row.swapped().swapped() == row for row in rows)
    assert worse.swapped().arm == EWC and worse.swapped().low == -worse.high > 0


def test_copies_of_images_are_no_evidence(tmp_path):
    hits = {key: random_hits(40, seed)("", "", "") for seed, key in enumerate("pfl")}
    compared = []
    for times in (1, 10):
        source = np.repeat([f"s{i:03}" for i in range(40)], times)
        cells = grid(
            tmp_path / str(times),
            lambda method, *_, times=times: np.repeat(hits[method[0]], times),
            ("fine_tune", "lwf"),
            source=source,
        )
        compared.append(comparisons.compare(metrics.gather(cells), [(FT, LWF)], SETS))
    for single, ten in zip(*compared, strict=True):
        assert (ten.better, ten.worse, ten.p) == (single.better, single.worse, single.p)
        assert (ten.low, ten.high) == pytest.approx((single.low, single.high))


def test_enough_draws_for_the_corrected_p_of_many_pairs(tmp_path):
    names = [f"m{k}" for k in range(12)]
    strength = {name: k / 11 for k, name in enumerate(names)}
    rank = np.random.default_rng(0).random(60)
    cells = grid(tmp_path, lambda method, *_: rank < strength.get(method, 0.5), names)
    arms = [Arm("lite0", name, "canonical", None) for name in names]
    pairs = comparisons.all_pairs(arms)
    assert len(pairs) == 66
    overall = [
        row
        for row in comparisons.compare(metrics.gather(cells), pairs, SETS)
        if not row.evaluated_on
    ]
    extreme = next(row for row in overall if (row.method, row.against_method) == ("m0", "m11"))
    assert extreme.p_corrected < 0.02


def test_draws_are_made_until_other_draws_would_not_change_a_claim(tmp_path, monkeypatch):
    """One of these fifteen p lies so near the threshold that a million draws do not decide it."""
    rng = np.random.default_rng(2)
    names = [f"m{k}" for k in range(6)]
    strength = {"pre": 0.4} | {name: 0.4 + 0.05 * k for k, name in enumerate(names)}
    cells = grid(tmp_path, lambda method, *_: rng.random(60) < strength[method], names)
    read = metrics.gather(cells)
    pairs = comparisons.all_pairs([Arm("lite0", name, "canonical", None) for name in names])
    ends, draws = [], metrics.sum_draws
    monkeypatch.setattr(metrics, "sum_draws", lambda *words: ends.append(words[4]) or draws(*words))

    def tests(seed):
        rows = comparisons.compare(read, pairs, SETS, seed=seed)
        assert all(row.p_error == row.p_corrected_error == 0 for row in rows if row.evaluated_on)
        overall = [row for row in rows if not row.evaluated_on]
        near = [comparisons.undecided(row.p_corrected, row.p_corrected_error) for row in overall]
        return [None if n else row.p_corrected < 0.05 for n, row in zip(near, overall, strict=True)]

    first, second = tests(0), tests(1)
    assert max(ends) == comparisons.MOST
    assert first == second and first.count(None) == 1 and {True, False} < set(first)
    monkeypatch.setattr(comparisons, "MOST", comparisons.FIRST)
    assert tests(0).count(None) > 1


def test_seeds_that_disagree_make_a_difference_unsure(tmp_path):
    def lucky(seed):
        rng = np.random.default_rng(seed)
        share = {"pre": 0.4, "fine_tune": 0.5, "lwf": (0.5, 0.9)[seed]}
        return lambda method, *_: rng.random(60) < share[method]

    cells = several_seeds(tmp_path, lucky, (0, 1), methods=("fine_tune", "lwf"))
    (overall, *_) = comparisons.compare(metrics.gather(cells), [(LWF, FT)], SETS)
    assert overall.difference > 10 and overall.p > 0.05


def test_what_cannot_be_compared_is_refused(tmp_path):
    cells = grid(tmp_path, random_hits(), ("fine_tune", "lwf"))
    part = metrics.gather(
        [cell for cell in cells if (cell.method, cell.downstream) != ("lwf", "b")]
    )
    with pytest.raises(
        ValueError, match=r"lite0 lwf \(canonical\) was not fine-tuned on every set"
    ):
        comparisons.compare(part, [(FT, LWF)], SETS)
    with pytest.raises(ValueError, match="lite0 ewc"):
        comparisons.compare(part, [(FT, EWC)], SETS)
    assert comparisons.compare(part, [], SETS) == ()
    vit = Arm("vit", "fine_tune", "canonical", None)
    assert comparisons.all_pairs([FT, vit, LWF]) == [(FT, LWF)]
