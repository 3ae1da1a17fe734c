"""Accuracy on a curve at equal downstream accuracy, against plain computations from the files."""

import itertools
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from engine.measures.equal_accuracy import against_curve, interpolated
from engine.measures.rows import PRE, Evaluation
from helpers import stores
from helpers.stores import SETS

ALPHAS = (0.0, 0.3, 0.7, 1.0)
IMAGES = 200  # two of each concept, which is one source
Hits = Mapping[tuple[str, str, str], np.ndarray]  # arm, downstream, evaluated on


@pytest.fixture(scope="module", params=[(0,), (0, 1, 2)], ids=["one seed", "three seeds"])
def made(request, tmp_path_factory) -> tuple[list[Evaluation], list[Hits]]:
    """Interpolations that adapt more and lose more, and methods on, above and beyond them."""
    rng, folder = np.random.default_rng(2), tmp_path_factory.mktemp("curve")
    shares = {f"wise {alpha}": (0.3 + 0.4 * alpha, 0.6 - 0.3 * alpha) for alpha in ALPHAS}
    shares |= {"ewc": (0.45, 0.62), "fine_tune": (0.6, 0.35), "lora": (0.9, 0.5)}
    evaluations, hits = [], []
    for seed in request.param:
        hits.append({})
        keys = [(PRE, "", on) for on in (*SETS, "up")] * (seed == 0)
        keys += [(name, i, j) for name in shares for i in SETS for j in (*SETS, "up")]
        for number, (name, i, j) in enumerate(keys):
            share = shares.get(name, (0.5, 0.5))[i != j]
            hits[-1][name, i, j] = rng.random(IMAGES) < share
            path = folder / f"{seed}-{number}.parquet"
            pq.write_table(stores.table(hits[-1][name, i, j]), path)
            method, _, alpha = name.partition(" ")
            row = stores.cell(path, method, i, j, float(alpha) if alpha else None, seed)
            evaluations.append(replace(row, headline=alpha in ("", "0.3")))
    return evaluations, hits


def accuracies(hits: Hits, name: str, weights: np.ndarray) -> np.ndarray:
    """Downstream and other accuracy [2] in percent, with a weight for each source."""
    of_images = np.repeat(weights, 2)
    parts = [[], []]
    for i in SETS:
        of = {j: 100 * np.average(hits[name, i, j], weights=of_images) for j in SETS}
        parts[0].append(of[i])
        parts[1].append(np.mean([of[j] for j in SETS if j != i]))
    return np.mean(parts, axis=1)


def by_search(curve: np.ndarray, at: float) -> float:
    """The highest y of a polyline [A, 2] at an x, by walking along its segments."""
    walk = np.concatenate([np.linspace(a, b, 20001) for a, b in itertools.pairwise(curve)])
    near = np.abs(walk[:, 0] - at) < 2e-3
    return walk[near, 1].max() if near.any() else np.nan


def difference(all_hits: list[Hits], name: str, weights: np.ndarray, *, nearest: bool) -> float:
    mean = {
        of: np.mean([accuracies(hits, of, weights) for hits in all_hits], axis=0)
        for of in (name, *(f"wise {alpha}" for alpha in ALPHAS))
    }
    curve = np.array([mean[f"wise {alpha}"] for alpha in ALPHAS])
    at, y = mean[name]
    if nearest:
        at = np.clip(at, curve[:, 0].min(), curve[:, 0].max())
    return y - by_search(curve, at)


def test_differences_and_intervals_are_those_of_a_plain_computation(made):
    evaluations, hits = made
    grid = stores.gather(evaluations)
    places = {(arm.method, arm.alpha): k for k, arm in enumerate(grid.arms)}
    points = [places["wise", alpha] for alpha in ALPHAS]
    names = ["ewc", "fine_tune", "lora"]
    table = against_curve(grid, points, [places[name, None] for name in names])
    for name, row in zip(names, table.itertuples(), strict=True):
        ones = np.ones(IMAGES // 2)
        downstream, other = np.mean([accuracies(of, name, ones) for of in hits], axis=0)
        assert row.downstream_accuracy_pct == pytest.approx(downstream)
        assert row.OOD_accuracy_pct == pytest.approx(other)
        expected = difference(hits, name, ones, nearest=False)
        assert row.difference_pts == pytest.approx(expected, abs=0.02, nan_ok=True)
        assert bool(np.isnan(row.difference_pts)) is (name == "lora"), "no alpha reaches LoRA"
    assert table["difference_low"].isna().tolist() == [False, False, True]
    if len(hits) > 1:  # the variance over seeds widens intervals
        return
    rng = np.random.default_rng(0)
    draws = [difference(hits, "ewc", rng.poisson(1, IMAGES // 2), nearest=True) for _ in range(600)]
    ewc = table.iloc[0]
    ends = np.quantile(draws, [0.025, 0.975])
    np.testing.assert_allclose([ewc["difference_low"], ewc["difference_high"]], ends, atol=1.2)
    assert ewc["difference_low"] > 0, "EWC is above the curve by construction"


def test_of_several_points_with_the_same_x_the_highest_counts():
    x, y = np.array([0.0, 2, 1, 1, 3]), np.array([0.0, 4, 9, 1, 5])
    at = np.array([1.0, 1.5, 3, 0, 3.5, -1])
    nan = np.nan
    np.testing.assert_allclose(interpolated(x, y, at), [9, 6.5, 5, 0, nan, nan])
