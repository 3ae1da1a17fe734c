"""Distances between datasets, and whether fine-tuning on distant ones forgets more."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas

from engine.measures import correlation
from engine.measures.tables import extremes, ordered
from engine.otdd.distance_matrix import Matrix, pairs
from engine.report import charts
from engine.report.results import FINE_TUNE, Results
from engine.report.section import Figure, Section


def section(results: Results) -> Section | None:
    if results.record.distances is None or len(results.models) != 1:
        return None
    matrix = Matrix.of(results.record.distances)
    made = dataclasses.replace(of_matrix(matrix), is_open=False)
    points = _points(results, matrix)
    related = correlation.spearman(*points[["distance", "drop_pts"]].to_numpy().T)
    upstream = results.record.upstream
    if np.isnan(related.value) or upstream is None:
        return made
    known = f"Spearman {related}, over {related.units} datasets"
    if related.units < correlation.FOR_A_TEST:
        heading = (
            f"{related.units} datasets are too few to test whether fine-tuning on more distant "
            "datasets loses more accuracy upstream"
        )
    elif related.p < 0.05:
        loses = "more" if related.value > 0 else "less"
        heading = f"Fine-tuning on more distant datasets loses {loses} accuracy upstream: {known}"
    else:
        heading = f"Accuracy lost upstream is not significantly related to distance: {known}"
    figure = _scatter(points, upstream, f"{heading}.")
    return dataclasses.replace(made, heading=heading, figures=[figure, *made.figures])


def of_matrix(matrix: Matrix) -> Section:
    """The section with distances only."""
    table = pairs(matrix).drop(columns="eps")
    known, heading = table.dropna(subset="distance"), "No distance between two datasets is known"
    if len(known):
        near, far = extremes(known, "distance")
        heading = (
            f"{near['set']} and {near['other']} are closest, {far['set']} and {far['other']} "
            "farthest apart"
        )
    drawn = f" of at most {matrix.samples:,} images per dataset" if matrix.samples else ""
    turned = table.rename(columns={"set": "other", "other": "set"})
    same = pandas.DataFrame({"set": matrix.names, "other": matrix.names})
    same["distance"] = np.diag(matrix.values)
    data = pandas.concat([table, same, turned], ignore_index=True)
    data = ordered(data, set=matrix.names, other=matrix.names)
    caption = (
        "Darker is farther; pairs that did not converge are empty. Certified gaps and marginal "
        "errors are in distances_pairs.csv."
    )
    spec = charts.heat(data, "other", "set", "distance")
    return Section(
        "distances",
        heading,
        "Optimal transport distances between all datasets, in the pretrained model's features and "
        f"classes{drawn} ({'entropic, debiased, ' if matrix.eps else ''}{matrix.certainty()}), in "
        "squared units of the features.",
        figures=[Figure("distances", caption, f"{heading}.", data, spec)],
        is_open=True,
    )


def _points(results: Results, matrix: Matrix) -> pandas.DataFrame:
    """One row per downstream dataset of plain fine-tuning with a known distance to upstream: this
    distance, and the drop in upstream accuracy."""
    cells, upstream = results.cells, results.record.upstream
    plain = results.shown.loc[results.shown["key"] == FINE_TUNE, "arm"]
    here = (cells["evaluated_on"] == upstream) & (cells["downstream"] != upstream)
    rows = cells[here & cells["arm"].isin(plain[:1])]
    apart = matrix.row(upstream) if upstream in matrix.names else {}
    distance = rows["downstream"].map(apart).astype(float)
    data = {"set": rows["downstream"], "distance": distance, "drop_pts": -rows["change_pts"]}
    return pandas.DataFrame(data).dropna(ignore_index=True)


def _scatter(points: pandas.DataFrame, upstream: str, words: str) -> Figure:
    spec = charts.scatter(points, "distance", "drop_pts", "set")
    spec["encoding"]["x"]["title"] = f"distance to {upstream}"
    spec["encoding"]["y"]["title"] = f"drop in accuracy on {upstream}, points"
    trend = {"type": "line", "strokeWidth": 1.5, "opacity": 0.5, "tooltip": None}
    fit = [{"regression": "drop_pts", "on": "distance"}]
    spec["layer"].insert(0, {"transform": fit, "mark": trend})
    caption = (
        f"A dataset's distance to {upstream}, and the accuracy that plain fine-tuning on it loses "
        "there, with the least-squares line; p is from permutations of the datasets."
    )
    return Figure("forgetting", caption, words, points, spec)
