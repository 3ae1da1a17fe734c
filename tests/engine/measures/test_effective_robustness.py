"""Effective robustness against NumPy's fit on SciPy's normal distribution, and what is fitted."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import linregress, norm

from engine.measures import effective_robustness, model_rows
from engine.measures.effective_robustness import (
    CAMPAIGN_MODELS,
    GIVEN,
    PUBLISHED,
    Baseline,
    Trend,
    predicted,
)
from engine.measures.tables import rows
from helpers.stores import gather, grid, random_hits


def percent(x) -> np.ndarray:
    return 100 * norm.cdf(x)


def robustness(upstream, shifted) -> np.ndarray:
    """Height of each model above the line over all."""
    x, y = np.array([upstream], float), np.array([shifted], float)
    return (y - predicted(x, y, x))[0]


def trend(upstream, shifted, basis: str, families=()) -> Trend:
    """The line over given models."""
    none = np.zeros(0, int)
    return Trend(none, none, none, np.stack([upstream, shifted]), basis, np.array(families))


def plain(upstream, shifted, at=None) -> np.ndarray:
    """Height above NumPy's fit over all models; of models `at` that are not fitted where given."""
    x, y = norm.ppf(np.asarray(upstream) / 100), norm.ppf(np.asarray(shifted) / 100)
    slope, level = np.polyfit(x, y, 1)
    upstream, shifted = (upstream, shifted) if at is None else at
    return np.asarray(shifted) - percent(slope * norm.ppf(np.asarray(upstream) / 100) + level)


def above_trend(read, baseline=None):
    return effective_robustness.above_trend(read, effective_robustness.trends(read, baseline))


def on(read, name: str, column: str = "effective_robustness") -> np.ndarray:
    """Of the cells on a set whose models were not trained on it."""
    cells = read.cells
    of_set = cells[(cells["evaluated_on"] == name) & (cells["downstream"] != name)]
    return of_set[column].to_numpy()


@given(st.integers(0, 2**31), st.integers(3, 20))
def test_effective_robustness_is_numpys_fit(seed, models):
    upstream, shifted = np.random.default_rng(seed).uniform(20, 90, (2, models))
    np.testing.assert_allclose(robustness(upstream, shifted), plain(upstream, shifted), atol=1e-6)


def test_accuracies_of_0_and_100_have_an_effective_robustness():
    np.testing.assert_allclose(robustness([0, 50, 100], [0, 50, 100]), 0, atol=0.02)


def test_models_of_the_same_upstream_accuracy_have_no_trend_line():
    assert np.isnan(robustness([70, 70, 70], [10, 20, 30])).all()
    x, y, elsewhere = (np.array([of]) for of in ([70.0, 70], [10.0, 20], [90.0]))
    assert np.isnan(predicted(x, y, elsewhere))


def test_the_fit_is_scipys():
    upstream, shifted = np.random.default_rng(0).uniform(20, 90, (2, 12))
    fit = trend(upstream, shifted, GIVEN).fit(np.zeros(1))
    known = linregress(norm.ppf(upstream / 100), norm.ppf(shifted / 100))
    assert (fit.models, fit.low, fit.high) == (12, upstream.min(), upstream.max())
    assert fit.slope == pytest.approx(known.slope) and fit.r2 == pytest.approx(known.rvalue**2)
    ends = np.array([fit.low - 0.1, fit.low, fit.high, fit.high + 0.1])
    assert fit.extrapolates(ends).tolist() == [True, False, False, True]


def test_published_models_are_drawn_by_family():
    """Of each draw the line is NumPy's over the models as often as their family comes up."""
    upstream, shifted = np.random.default_rng(1).uniform(20, 90, (2, 9))
    families = np.array([*"aabcccdef"])
    line = trend(upstream, shifted, PUBLISHED, families)
    times = line.drawn(50)
    assert (times[:, [0, 3, 3]] == times[:, [1, 4, 5]]).all() and np.ptp(times[:, 0]) > 0
    found = line.predicted(np.zeros((1, 1)), np.array([[55.0]]), times)
    for draw, value in zip(times, found, strict=True):
        if len(set(families[draw > 0])) > 2:
            x, y = (norm.ppf(np.repeat(v, draw) / 100) for v in (upstream, shifted))
            slope, level = np.polyfit(x, y, 1)
            assert value == pytest.approx(percent(slope * norm.ppf(0.55) + level))


def test_a_campaign_of_one_pre_trained_model_has_no_line(tmp_path):
    """Fine-tuned models are no models that nothing made robust."""
    read = gather(grid(tmp_path, random_hits(), ("fine_tune", "lwf")), draws=1)
    assert effective_robustness.trends(read) == {}
    assert above_trend(read) is read


def test_three_pre_trained_models_make_the_line_alone(tmp_path):
    evaluations = []
    for k, model in enumerate(("m0", "m1", "m2")):
        of_model = grid(tmp_path / model, random_hits(seed=k))
        evaluations += [replace(row, model=model) for row in of_model]
    read = above_trend(gather(evaluations))
    x = read.cells["accuracy"].to_numpy()[on(read, "b", "on_upstream")]
    y, is_pre = on(read, "b", "accuracy"), on(read, "b", "method") == "pretrained"
    assert is_pre.sum() == 3 and len(y) == 9
    expected = plain(x[is_pre], y[is_pre], (x, y))
    assert on(read, "b") == pytest.approx(list(expected))
    assert effective_robustness.trends(read)["b"].basis == CAMPAIGN_MODELS
    two = [row for row in evaluations if row.model != "m2"]
    again = [replace(row, model="m1 (other campaign)") for row in two if row.model == "m1"]
    assert not effective_robustness.trends(gather([*two, *again]))


def test_rows_of_the_user_make_the_line_of_the_sets_that_have_three(tmp_path):
    read = gather(grid(tmp_path, random_hits(), ("fine_tune", "lwf")))
    upstream, shifted = [30.0, 55.0, 80.0, 90.0], [10.0, 41.0, 60.0, 85.0]
    lines = ["model,set,accuracy,source"]
    for k, (x, y) in enumerate(zip(upstream, shifted, strict=True)):
        lines += [f"m{k},up,{x},paper", f"m{k},a,{y},paper"]
    lines += ["m0,b,5,paper", "m1,b,6,paper"]
    file = tmp_path / "models.csv"
    file.write_text("\n".join(lines))
    models = Baseline(model_rows.read_model_rows(file, read.sets, "up"), GIVEN)
    trends = effective_robustness.trends(read, models)
    assert {name: (t.basis, t.given.shape[1]) for name, t in trends.items()} == {"a": (GIVEN, 4)}
    above = above_trend(read, models)
    x = read.cells["accuracy"].to_numpy()[on(read, "a", "on_upstream")]
    expected = plain(upstream, shifted, (x, on(read, "a", "accuracy")))
    assert on(above, "a") == pytest.approx(list(expected))
    for row in rows(above.cells):
        elsewhere = row.evaluated_on == "a" != row.downstream
        assert np.isnan(row.effective_robustness) == (not elsewhere)
