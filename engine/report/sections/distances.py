"""How far sets are apart, and whether fine-tuning on a far one forgets more."""

from __future__ import annotations

import numpy as np
import pandas

from engine.measures import correlation
from engine.measures.correlation import Correlation
from engine.measures.distances import Matrix, pairs
from engine.measures.tables import extremes
from engine.report import charts
from engine.report.results import FINE_TUNE, Results
from engine.report.section import Figure, Section, Table


def section(results: Results) -> Section | None:
    matrix = results.record.matrix()
    if matrix is None or len(results.models) != 1:
        return None
    upstream = results.record.upstream
    points = _points(results, matrix)
    heading, statements, scatter = "Is what is far forgotten more?", [], []
    if len(points):
        spearman = correlation.spearman(*points[["distance", "drop_pct"]].to_numpy().T)
        statements = [_statement(points, spearman)]
        heading = "What is far is not shown to be forgotten more"
        if spearman.p < 0.05:
            heading = f"What is far is forgotten {'more' if spearman.value > 0 else 'less'}"
        scatter = [_scatter(points, upstream, *statements)]
    return Section(
        "distances",
        heading,
        _text(matrix),
        statements,
        [*scatter, _map(matrix)],
        [_table(matrix)],
    )


def of_matrix(matrix: Matrix) -> Section:
    """The section of distances alone."""
    table = [_table(matrix)]
    return Section("distances", "Distances", _text(matrix), (), [_map(matrix)], table, is_open=True)


def _points(results: Results, matrix: Matrix) -> pandas.DataFrame:
    """A row a set that plain fine-tuning was run on and whose distance is known: its distance to
    the upstream set, and the drop in accuracy there."""
    cells, upstream = results.cells, results.record.upstream
    plain = results.shown.loc[results.shown["key"] == FINE_TUNE, "arm"]
    here = (cells["evaluated_on"] == upstream) & (cells["downstream"] != upstream)
    rows = cells[here & cells["arm"].isin(plain[:1])]
    row = matrix.row(upstream) if upstream in matrix.names else {}
    data = pandas.DataFrame(
        {
            "set": rows["downstream"],
            "distance": rows["downstream"].map(row),
            "drop_pct": -rows["change_pts"],
        }
    )
    return data.dropna().reset_index(drop=True)


def _statement(points: pandas.DataFrame, spearman: Correlation) -> str:
    """Spearman's and Pearson's coefficient of drop and distance, in a sentence."""
    pearson = correlation.pearson(*points[["distance", "drop_pct"]].to_numpy().T)
    if np.isnan(pearson.value):
        return (
            f"A correlation needs {correlation.FEWEST} sets or more whose distance and drop are "
            f"not the same; there are {len(points)} sets."
        )
    return (
        f"Distance and forgetting: Spearman {spearman}, Pearson {pearson}, {len(points)} sets; p "
        "by permutation of the sets."
    )


def _text(matrix: Matrix) -> str:
    kind = f"{'entropic, debiased, ' if matrix.eps else ''}{matrix.certainty()}"
    drawn = f" of at most {matrix.samples:,} images of each set" if matrix.samples else ""
    return (
        "Distances between all sets are optimal transport of the pre-trained model's features and "
        f"classes{drawn} ({kind}), in squared units of the features."
    )


def _scatter(points: pandas.DataFrame, upstream: str, strength: str) -> Figure:
    spec = charts.scatter(points, "distance", "drop_pct", name="set", trend=True)
    spec["encoding"]["x"]["title"] = f"distance to {upstream}"
    spec["encoding"]["y"]["title"] = f"drop in accuracy on {upstream}, points"
    return Figure(
        "forgetting",
        f"A dot for each set: how far it is from {upstream} against what plain fine-tuning on it "
        "loses there; the line is the least-squares trend.",
        strength,
        points,
        spec,
    )


def _map(matrix: Matrix) -> Figure:
    once = pairs(matrix)[["set", "other", "distance", "gap", "marginal_error"]]
    turned = once.rename(columns={"set": "other", "other": "set"})
    same = pandas.DataFrame({"set": matrix.names, "other": matrix.names})
    same["distance"] = np.diag(matrix.values)
    data = pandas.concat([once, same, turned], ignore_index=True)
    order = {name: k for k, name in enumerate(matrix.names)}
    data = data.sort_values(["set", "other"], key=lambda names: names.map(order))
    known = once.dropna(subset="distance")
    alt = "No pair of sets has a certified distance."
    if len(known):
        near, far = extremes(known, "distance")
        alt = (
            f"Nearest: {near['set']} and {near['other']}, {near['distance']:.4g}; farthest: "
            f"{far['set']} and {far['other']}, {far['distance']:.4g}."
        )
    caption = "The farther, the darker; a pair that did not converge is empty."
    spec = charts.heat(data, "other", "set", "distance")
    return Figure("distances", caption, alt, data, spec)


def _table(matrix: Matrix) -> Table:
    return Table(
        "distances",
        "Every pair: its distance, the certified gap and the marginal error; none where the pair "
        "did not converge.",
        pairs(matrix).drop(columns="eps"),
    )
