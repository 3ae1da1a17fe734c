"""Effective robustness against NumPy's fit on SciPy's normal distribution, and what is fitted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from stores import SETS, grid, random_hits

from engine.measures import effective_robustness, metrics, model_rows
from engine.measures.effective_robustness import GIVEN, PRE_TRAINED, Line


def percent(x) -> np.ndarray:
    return 100 * norm.cdf(x)


def robustness(upstream, shifted, fit=None) -> np.ndarray:
    """Height of each model above the line over the models `fit`."""
    x, y = np.array([upstream], float), np.array([shifted], float)
    in_fit = np.array([True] * x.size if fit is None else fit)
    return (y - Line.fit(x[:, in_fit], y[:, in_fit]).accuracy(x))[0]


def plain(upstream, shifted, at=None) -> np.ndarray:
    """Height above NumPy's fit over all models; of models `at` that are not fitted where given."""
    x, y = norm.ppf(np.asarray(upstream) / 100), norm.ppf(np.asarray(shifted) / 100)
    slope, level = np.polyfit(x, y, 1)
    upstream, shifted = (upstream, shifted) if at is None else at
    return np.asarray(shifted) - percent(slope * norm.ppf(np.asarray(upstream) / 100) + level)


def above_trend(rows, accuracy, models=None):
    trends = effective_robustness.trends([row.cell for row in accuracy], SETS, "up", models)
    return effective_robustness.above_trend(rows, accuracy, trends, "up")


def test_effective_robustness_is_the_height_above_the_line():
    x = np.array([-1.0, 0.2, 0.9, 2.0])
    shifted = percent(0.8 * x - 0.5)
    np.testing.assert_allclose(robustness(percent(x), shifted), 0, atol=1e-9)
    raised = np.append(shifted, percent(0.8 * 1.5 - 0.5) + 7)
    heights = robustness(percent(np.append(x, 1.5)), raised, [True] * 4 + [False])
    np.testing.assert_allclose(heights, [0, 0, 0, 0, 7], atol=1e-9)


@given(st.integers(0, 2**31), st.integers(3, 20))
def test_effective_robustness_is_numpys_fit(seed, models):
    upstream, shifted = np.random.default_rng(seed).uniform(20, 90, (2, models))
    np.testing.assert_allclose(robustness(upstream, shifted), plain(upstream, shifted), atol=1e-6)


def test_draws_have_lines_of_their_own():
    upstream, shifted = np.random.default_rng(0).uniform(20, 90, (2, 5, 8))
    together = shifted - Line.fit(upstream, shifted).accuracy(upstream)
    for b in range(5):
        np.testing.assert_allclose(together[b], plain(upstream[b], shifted[b]), atol=1e-9)


def test_accuracies_of_0_and_100_have_an_effective_robustness():
    np.testing.assert_allclose(robustness([0, 50, 100], [0, 50, 100]), 0, atol=0.02)


def test_models_of_the_same_upstream_accuracy_have_no_trend_line():
    assert np.isnan(robustness([70, 70, 70], [10, 20, 30])).all()
    assert np.isnan(robustness([70, 70, 90], [10, 20, 30], [True, True, False])).all()


def test_a_campaign_of_one_pre_trained_model_has_no_line(tmp_path):
    """Fine-tuned models are no models that nothing made robust."""
    read = metrics.gather(grid(tmp_path, random_hits(), ("fine_tune", "lwf")), draws=1)
    assert effective_robustness.trends([row.cell for row in read.accuracy], SETS, "up") == {}
    assert above_trend(read.behaviour, read.accuracy) == read.behaviour


def test_three_pre_trained_models_make_the_line_alone(tmp_path):
    behaviours, accuracy = [], []
    for k, model in enumerate(("m0", "m1", "m2")):
        read = metrics.gather(grid(tmp_path / model, random_hits(seed=k)))
        behaviours += [replace(row, model=model) for row in read.behaviour]
        accuracy += [replace(row, model=model) for row in read.accuracy]
    rows = above_trend(behaviours, accuracy)
    accuracies = {row.cell: row.accuracy for row in accuracy}
    on_b = [row for row in rows if row.evaluated_on == "b" and row.downstream != "b"]
    before = [row for row in on_b if row.method == "pre"]
    assert len(before) == 3 and len(on_b) == 9
    fitted, every = (
        tuple([accuracies[replace(row.cell, evaluated_on=on)] for row in of] for on in ("up", "b"))
        for of in (before, on_b)
    )
    assert [row.effective_robustness for row in on_b] == pytest.approx(list(plain(*fitted, every)))
    assert effective_robustness.trends(accuracies, SETS, "up")["b"].basis == PRE_TRAINED


def test_rows_of_the_user_make_the_line_of_the_sets_that_have_three(tmp_path):
    read = metrics.gather(grid(tmp_path, random_hits(), ("fine_tune", "lwf")))
    upstream, shifted = [30.0, 55.0, 80.0, 90.0], [10.0, 41.0, 60.0, 85.0]
    lines = ["model,set,accuracy,source"]
    for k, (x, y) in enumerate(zip(upstream, shifted, strict=True)):
        lines += [f"m{k},up,{x},paper", f"m{k},a,{y},paper"]
    lines += ["m0,b,5,paper", "m1,b,6,paper"]
    file = tmp_path / "models.csv"
    file.write_text("\n".join(lines))
    models = model_rows.read(file, SETS, "up")
    accuracies = {row.cell: row.accuracy for row in read.accuracy}
    trends = effective_robustness.trends(accuracies, SETS, "up", models)
    assert {name: (t.basis, t.models) for name, t in trends.items()} == {"a": (GIVEN, 4)}
    rows = above_trend(read.behaviour, read.accuracy, models)
    on_a = [row for row in rows if row.evaluated_on == "a" and not row.on_downstream]
    x, y = ([accuracies[replace(row.cell, evaluated_on=on)] for row in on_a] for on in ("up", "a"))
    expected = plain(upstream, shifted, (x, y))
    assert [row.effective_robustness for row in on_a] == pytest.approx(list(expected))
    without = above_trend(read.behaviour, read.accuracy)
    for row, plain_row in zip(rows, without, strict=True):
        assert (row == plain_row) == (row.evaluated_on != "a" or row.on_downstream)
