"""Distances between sets against POT, the formula and laws; and what they say about forgetting."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
import re

import campaigns
import grids
import made_results
import numpy as np
import pandas
import pytest
import torch
from distance_runs import run_of

from engine import cli
from engine.machine import ranks
from engine.measures import correlation
from engine.measures.distances import Matrix, write_csv
from engine.otdd import problems, solve
from engine.otdd.problems import Labelled, Options
from engine.otdd.solve import matrix
from engine.report.sections import distances as section
from engine.store import artifacts

CLASSES, D = 4, 6
folder, grid = campaigns.folder, grids.grid


def labelled(shift: float, n: int = 60, seed: int = 0) -> Labelled:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    labels[:CLASSES] = torch.arange(CLASSES)
    centres = 2 * torch.eye(CLASSES, D)
    return Labelled(centres[labels] + torch.randn(n, D, generator=generator) + shift, labels)


SETS = {"near": labelled(0.0), "mid": labelled(0.5, 50, 1), "far": labelled(3.0, 45, 2)}


def table_cost(a: Labelled, b: Labelled) -> np.ndarray:
    """The reference's way: moments a class, square roots, and a dense matrix."""
    gaussian = pytest.importorskip("ot.gaussian")
    cost = torch.cdist(a.features.double(), b.features.double()).square()
    for i, j in itertools.product(range(CLASSES), repeat=2):
        x, y = a.features[a.labels == i].double(), b.features[b.labels == j].double()
        w = gaussian.bures_wasserstein_distance(x.mean(0), y.mean(0), x.T.cov(), y.T.cov())
        cost[(a.labels == i)[:, None] & (b.labels == j)] += float(w) ** 2
    return cost.numpy()


def test_exact_distances_equal_pot_on_the_dense_cost():
    ot = pytest.importorskip("ot")
    distances = matrix(SETS, CLASSES, Options(exact=True))
    for (i, a), (j, b) in itertools.combinations(enumerate(SETS), 2):
        expected = ot.emd2([], [], table_cost(SETS[a], SETS[b]))
        assert distances.values[i, j] == distances.values[j, i] == pytest.approx(expected, rel=1e-5)
    assert distances.eps == 0 and not distances.values.diagonal().any()


def test_exact_distances_scale_as_their_features_do():
    pytest.importorskip("ot")
    expected = matrix(SETS, CLASSES, Options(exact=True)).values
    for scale in (1e-7, 1e-8):
        scaled = {n: Labelled(scale * s.features.double(), s.labels) for n, s in SETS.items()}
        values = matrix(scaled, CLASSES, Options(exact=True)).values
        np.testing.assert_allclose(values / scale**2, expected, rtol=1e-6)


def test_brackets_hold_exact_distances():
    pytest.importorskip("ot")
    exact = matrix(SETS, CLASSES, Options(exact=True)).values
    bracketed = matrix(SETS, CLASSES, Options(bracket=5e-3))
    np.testing.assert_allclose(bracketed.values, exact, rtol=2.5e-3)
    off = ~np.eye(3, dtype=bool)
    assert bracketed.eps == 0 and (bracketed.gaps[off] > 0).all() and (bracketed.gaps <= 5e-3).all()


def test_small_eps_undebiased_approaches_exact_transport():
    exact = matrix(SETS, CLASSES, Options(exact=True)).values
    errors = [
        np.abs(matrix(SETS, CLASSES, Options(eps=eps, debias=False)).values - exact).max()
        for eps in (0.1, 0.02)
    ]
    assert errors[1] < errors[0] / 2


def test_the_matrix_is_ordered_symmetric_and_certified():
    distances = matrix(SETS, CLASSES, Options(eps=0.1))
    assert distances.names == ("near", "mid", "far")
    assert (
        np.array_equal(distances.values, distances.values.T)
        and not distances.values.diagonal().any()
    )
    assert 0 < distances.row("near")["mid"] < distances.row("near")["far"]
    off = ~np.eye(3, dtype=bool)
    assert (distances.gaps <= 1e-4).all() and (distances.marginal_errors[off] > 0).all()
    assert distances.marginal_errors.max() < 1e-2
    turned = matrix(dict(reversed(SETS.items())), CLASSES, Options(eps=0.1))
    assert turned.eps == pytest.approx(distances.eps, rel=1e-6)
    np.testing.assert_allclose(turned.values[::-1, ::-1], distances.values, rtol=1e-2, atol=1e-3)


def test_a_set_is_at_home_in_its_copy():
    copies = {"one": SETS["near"], "two": Labelled(*(t.flip(0) for t in SETS["near"]))}
    distances = matrix(copies, CLASSES, Options(eps=0.2))
    assert abs(distances.values[0, 1]) < 1e-3 * matrix(SETS, CLASSES, Options(eps=0.2)).values[0, 2]


def test_self_terms_are_solved_once_a_set(monkeypatch):
    solved = []
    real = problems.transport

    def counted(cost, **options):
        solved.append(options.get("symmetric", False))
        return real(cost, **options)

    monkeypatch.setattr(problems, "transport", counted)
    matrix(SETS, CLASSES, Options(eps=0.2))
    assert (solved.count(False), solved.count(True)) == (3, 3)


def test_conventions():
    base = matrix(SETS, CLASSES, Options(exact=True)).values
    halved = matrix(SETS, CLASSES, Options(exact=True, half=True)).values
    np.testing.assert_allclose(halved, base / 2)
    plain = matrix(SETS, CLASSES, Options(exact=True, label_distance="none")).values
    means = matrix(SETS, CLASSES, Options(exact=True, label_distance="means")).values
    off = ~np.eye(3, dtype=bool)
    assert (plain[off] < means[off]).all() and (means[off] < base[off]).all()
    weighted = matrix(SETS, CLASSES, Options(exact=True, lam_y=0.0)).values
    np.testing.assert_allclose(weighted, plain, rtol=1e-9)
    absolute = matrix(SETS, CLASSES, Options(eps=2.0, relative=False))
    assert absolute.eps == 2.0
    drawn = [
        matrix(SETS, CLASSES, Options(exact=True, samples=20, seed=s)).values for s in (0, 0, 1)
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0][off] != drawn[2][off]).all()


def test_classes_that_a_set_lacks_do_not_matter():
    expected = matrix(SETS, CLASSES, Options(eps=0.2)).values
    spread = {name: Labelled(s.features, s.labels * 3 + 1) for name, s in SETS.items()}
    np.testing.assert_allclose(matrix(spread, 20, Options(eps=0.2)).values, expected, rtol=1e-6)


def test_an_unconverged_pair_is_missing_everywhere(tmp_path, caplog):
    distances = matrix(SETS, CLASSES, Options(eps=0.01, tolerance=1e-17))
    assert math.isnan(distances.values[0, 1]) and not distances.row("near")
    assert "near to mid did not converge" in caplog.text
    write_csv(tmp_path / "d.csv", distances)
    rows = list(csv.reader((tmp_path / "d.csv").open()))
    assert rows[0] == ["", "near", "mid", "far"] and rows[1] == ["near", "0.0", "", ""]


def test_exact_transport_that_stops_early_is_no_number(tmp_path, monkeypatch):
    monkeypatch.setattr(problems, "EXACT_STEPS", 1)
    _, run = run_of(SETS, tmp_path, monkeypatch)
    options = Options(exact=True, samples=20)
    with pytest.warns(UserWarning, match="numItermax"):
        computed = solve.distances(run, list(SETS), options)
    stored = solve.distances(run, list(SETS), options)
    off = ~np.eye(3, dtype=bool)
    for distances in (computed, stored):
        assert np.isnan(distances.values[off]).all() and np.isnan(distances.gaps[off]).all()
        assert distances.samples == 20


def test_the_csv_keeps_every_digit(tmp_path):
    distances = matrix(SETS, CLASSES, Options(eps=0.2))
    write_csv(tmp_path / "d.csv", distances)
    rows = list(csv.reader((tmp_path / "d.csv").open()))[1:]
    np.testing.assert_array_equal(
        np.array([row[1:] for row in rows], dtype=float), distances.values
    )
    heads, *pairs = csv.reader((tmp_path / "d_pairs.csv").open())
    assert heads == ["set", "other", "distance", "gap", "marginal_error", "eps"]
    assert [row[:2] for row in pairs] == [["near", "mid"], ["near", "far"], ["mid", "far"]]
    columns = (
        distances.values,
        distances.gaps,
        distances.marginal_errors,
        np.full((3, 3), distances.eps),
    )
    for row, (i, j) in zip(pairs, [(0, 1), (0, 2), (1, 2)], strict=True):
        assert [float(x) for x in row[2:]] == [column[i, j] for column in columns]


def test_certainty_is_the_worst_of_all_pairs_and_counts_the_missing():
    values = np.array([[0, 1, math.nan], [1, 0, 2], [math.nan, 2, 0]])
    gaps, errors = np.diag([0.0, 3e-5, 0.0]), np.diag([2e-3, math.nan, 0.0])
    distances = Matrix(("a", "b", "c"), values, gaps, errors, 0.25)
    assert distances.certainty() == (
        "ε 0.25, worst gap 3.0e-05, worst marginal error 2.0e-03; 1 pair missing"
    )
    exact = Matrix(("a", "b"), *np.zeros((3, 2, 2)), 0.0)
    assert exact.certainty().startswith("unregularised, worst gap 0.0e+00")
    assert exact.certainty() in section.of_matrix(exact).text


def test_copies_of_the_same_photographs_are_sampled_apart():
    """In pairs, two copies would be at distance 0 from each other whatever is drawn."""
    copies = {name: SETS["near"] for name in ("clean", "blurred")}
    distance = matrix(copies, CLASSES, Options(exact=True, samples=20)).values[0, 1]
    assert distance > 1
    alone = {name: copies[name] for name in ("blurred", "clean")}
    again = matrix(alone, CLASSES, Options(exact=True, samples=20)).values[0, 1]
    assert again == pytest.approx(distance, rel=1e-6)


def test_without_label_distances_no_covariance_is_made(monkeypatch):
    monkeypatch.setattr(problems, "class_gaussians", None)
    distances = matrix(SETS, CLASSES, Options(exact=True, label_distance="none"))
    assert np.isfinite(distances.values).all()
    outside = SETS | {"far": Labelled(SETS["far"].features, SETS["far"].labels + 1)}
    with pytest.raises(ValueError, match=r"far: .*outside"):
        matrix(outside, CLASSES, Options(label_distance="none"))


def test_distances_take_stored_features_and_are_kept(tmp_path, monkeypatch):
    released, run = run_of(SETS, tmp_path, monkeypatch)
    computed = solve.distances(run, list(SETS), Options(eps=0.2))
    np.testing.assert_array_equal(computed.values, matrix(SETS, CLASSES, Options(eps=0.2)).values)
    assert released == list(SETS)
    again = solve.distances(run, list(SETS), Options(eps=0.2))
    np.testing.assert_array_equal(again.values, computed.values)
    np.testing.assert_array_equal(again.gaps, computed.gaps)
    np.testing.assert_array_equal(again.marginal_errors, computed.marginal_errors)
    assert (again.names, again.eps) == (computed.names, computed.eps) and released == list(SETS)
    solve.distances(run, list(SETS), Options(eps=0.3))
    assert released == 2 * list(SETS)
    for path in run.store.root.glob("distances/*/matrix.json"):
        path.write_text(path.read_text().replace("near", "rean"))
    artifacts._hash_once.cache_clear()
    with pytest.raises(ValueError, match=r"matrix\.json was altered"):
        solve.distances(run, list(SETS), Options(eps=0.2))
    for names in (["near"], ["near", "near"]):
        with pytest.raises(ValueError, match="two or more distinct sets"):
            solve.distances(run, names)


def test_what_did_not_converge_is_kept_as_missing(tmp_path, monkeypatch):
    unsolved = Matrix(
        ("near", "mid"), np.array([[0, math.nan], [math.nan, 0]]), *np.ones((2, 2, 2)), 0.5
    )
    monkeypatch.setattr(solve, "matrix", lambda *_: unsolved)
    _, run = run_of(SETS, tmp_path, monkeypatch)
    solve.distances(run, ["near", "mid"])
    stored = solve.distances(run, ["near", "mid"])
    np.testing.assert_array_equal(stored.values, unsolved.values)


@pytest.mark.slow
def test_the_command_prints_the_matrix_and_writes_it(folder, grid, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(ranks, "stop", lambda: None)  # of the whole test session
    options = ["--campaign", str(folder / "shapes.yaml"), "--eps", "0.2", "--samples", "20"]
    words = ["distance", "outline", "few", *options, "--sample-seed", "1", f"runs={tmp_path}"]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    (matrix_folder,) = (tmp_path / "distance").iterdir()
    assert f"matrix  {matrix_folder / 'distances.csv'}" in printed
    assert 'data-figure="distances"' in (matrix_folder / "index.html").read_text()
    rows = list(csv.reader((matrix_folder / "distances.csv").open()))
    assert rows[0] == ["", "outline", "few"] and float(rows[1][2]) > 0
    assert ["1", "outline", "0", f"{float(rows[1][2]):.4g}"] in map(str.split, printed.splitlines())
    assert rows[1][2] == rows[2][1]
    pair = next(csv.DictReader((matrix_folder / "distances_pairs.csv").open()))
    assert pair["distance"] == rows[1][2] and float(pair["gap"]) <= 1e-4
    line = f"worst gap {float(pair['gap']):.1e}, worst marginal error "
    assert line in printed and line in (matrix_folder / "index.html").read_text()
    assert f"ε {float(pair['eps']):.3g}, {line}" in printed


@pytest.mark.slow
def test_the_command_takes_another_model(folder, grid, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(ranks, "stop", lambda: None)
    text = (folder / "model.yaml").read_text().replace("test_vit", "test_efficientnet")
    (tmp_path / "other.yaml").write_text(text.replace("name: tiny", "name: other"))
    words = ["distance", "outline", "few", "--campaign", str(folder / "shapes.yaml")]
    words += ["--eps", "0.2", "--samples", "20", f"runs={tmp_path}"]
    values = []
    for more in ([], ["--model", str(tmp_path / "other.yaml")]):
        assert cli.main([*words, *more]) == 0
    for name in ("tiny", "other"):
        (matrix_folder,) = (tmp_path / "distance").glob(f"{name}-*")
        values.append(float(list(csv.reader((matrix_folder / "distances.csv").open()))[1][2]))
        assert f"for {name}</h1>" in (matrix_folder / "index.html").read_text()
    assert values[0] != values[1]


def test_the_command_knows_its_sets(folder, grid, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(ranks, "stop", lambda: None)
    options = ["--campaign", str(folder / "shapes.yaml"), f"runs={tmp_path}"]
    assert cli.main(["distance", "outlyne", "few", *options]) == 2
    assert "'outlyne' is no set of" in (message := capsys.readouterr().err)
    assert "did you mean 'outline'?" in message
    assert not list(tmp_path.iterdir()), "no model is made before a set is refused"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 0.0}, "eps=0.0 must be a number above 0"),
        ({"label_distance": "gausian"}, "did you mean 'gaussian'"),
        ({"samples": 1}, "samples=1 must be a whole number of at least 2"),
        ({"tolerance": 0.0}, "tolerance=0.0 must be a number above 0"),
        ({"bracket": math.nan}, "bracket=nan must be a number above 0"),
        ({"exact": True, "bracket": 1e-3}, "exact needs no bracket"),
    ],
)
def test_bad_options_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Options(**change)


def test_bad_sets_are_refused_by_name(monkeypatch):
    broken = SETS["far"].features.clone()
    broken[3, 2] = torch.nan
    for features, labels, message in (
        (broken, SETS["far"].labels, "far: features: sample 3 holds NaN"),
        (SETS["far"].features, SETS["far"].labels + 1, "far: .*outside"),
        (SETS["far"].features[:1], SETS["far"].labels[:1], "far: one sample"),
        (SETS["far"].features, SETS["far"].labels[:9], r"far: labels .* must be int64 \[45\]"),
    ):
        with pytest.raises(ValueError, match=message):
            for samples in (None, 2):  # of which the wrong one need not be
                bad = SETS | {"far": Labelled(features, labels)}
                matrix(bad, CLASSES, Options(samples=samples))
    monkeypatch.setattr(problems, "EXACT_COSTS", 100)
    two = {name: SETS[name] for name in ("near", "mid")}  # of more pairs, any may fail first
    with pytest.raises(ValueError, match="near to mid: 60 x 50 samples are too many"):
        matrix(two, CLASSES, Options(exact=True))


def statement(drops, distances=(1.0, 2.0, 3.0, 5.0, 8.0)) -> str:
    data = pandas.DataFrame({"distance": distances[: len(drops)], "drop_pct": drops})
    spearman = correlation.spearman(*data[["distance", "drop_pct"]].to_numpy().T)
    return section._statement(data, spearman)


def test_a_monotone_relation_of_few_sets_says_how_little_it_proves():
    text = statement([1.0, 4.0, 9.0, 16.0, 25.0])
    assert re.search(r"Spearman \+1.00 \(p 0.017\), Pearson \S+ \(p 0.017\), 5 sets", text)
    assert "interval" not in text


@pytest.mark.parametrize(
    "points",
    [
        ([1.0] * 5,),
        ([1.0, 2.0, 3.0, 4.0, math.nan],),
        ([1.0, 2.0, 3.0, 4.0, 5.0], [2.0] * 5),
        ([1.0, 2.0],),
    ],
)
def test_no_correlation_without_variation(points):
    assert statement(*points).startswith("A correlation needs 3 sets or more")


def test_the_section_says_how_many_images_were_looked_at():
    distances = Matrix(("a", "b"), *np.zeros((3, 2, 2)), 1.0)
    assert "of at most" not in section.of_matrix(distances).text
    drawn = dataclasses.replace(distances, samples=10_000)
    assert "classes of at most 10,000 images of each set (" in section.of_matrix(drawn).text


def test_points_pair_the_drop_upstream_with_the_distance(tmp_path):
    results = made_results.results(tmp_path)
    apart = np.arange(9.0).reshape(3, 3)
    matrix = Matrix(("a", "c", "up"), apart, np.zeros((3, 3)), np.zeros((3, 3)), 1.0)
    cells = results.grid.cells.set_index(["method", "downstream", "evaluated_on"])["accuracy"]
    points = section._points(results, matrix)
    assert list(points["set"]) == ["a", "c"] and list(points["distance"]) == [6.0, 7.0]
    for row in points.itertuples():
        drop = cells["pre", "", "up"] - cells["fine_tune", row.set, "up"]
        assert row.drop_pct == pytest.approx(drop)
