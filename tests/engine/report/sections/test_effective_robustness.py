"""The section of effective robustness: its lines, its points, its numbers and what it says."""

import itertools

import numpy as np
import pytest
from made_results import drawn, of_cells, results, row
from scipy.stats import norm
from stores import SETS

from engine.report.sections import effective_robustness

GIVEN = {"a": [(20, 10), (50, 35), (80, 75), (95, 90)], "c": [(20, 5), (50, 45), (95, 85)]}


@pytest.fixture(scope="module")
def of_grid(tmp_path_factory):
    """With a user's models, of which `b` has none."""
    folder = tmp_path_factory.mktemp("grid")
    lines = {"model,set,accuracy": None}
    for name, models in GIVEN.items():
        for x, y in models:
            lines |= {f"m{x},up,{x}": None, f"m{x},{name},{y}": None}
    (folder / "models.csv").write_text("\n".join(lines))
    return results(folder, folder / "models.csv")


def test_points_lines_and_table_are_those_of_the_measures(of_grid):
    section = effective_robustness.section(of_grid)
    data = section.figures[0].data
    cells = of_grid.grid.cells
    models = data[data["kind"] == "model"]
    assert len(models) == 2 * (1 + 2 * 2)
    for point in models.to_dict("records"):
        match = (cells["downstream"] == point["downstream"]) & (
            cells["evaluated_on"] == point["evaluated_on"]
        )
        assert point["effective_robustness_pts"] in list(cells.loc[match, "effective_robustness"])
    for name in GIVEN:
        on_set = data[data["evaluated_on"] == name]
        ends = on_set[on_set["kind"] == "line"]
        x, y = norm.ppf(np.array(GIVEN[name]).T / 100)
        slope, level = np.polyfit(x, y, 1)
        expected = slope * norm.ppf(ends["upstream_pct"] / 100) + level
        np.testing.assert_allclose(ends["set_probit"], expected, atol=1e-9)
    means = section.tables[0].data
    elsewhere = (cells["method"] == "lwf") & (cells["downstream"] != cells["evaluated_on"])
    known = cells[elsewhere & cells["evaluated_on"].isin(GIVEN)]
    by_column = known.groupby("downstream")["effective_robustness"].mean()
    lwf = row(means, method="LwF")
    assert lwf["effective_robustness_pts"] == pytest.approx(by_column.mean())
    assert lwf["effective_robustness_low"] < lwf["effective_robustness_high"]
    assert means["effective_robustness_pts"].is_monotonic_decreasing


def test_the_mean_counts_each_set_fine_tuned_on_alike_as_everywhere():
    """Of a model fine-tuned on `a` two sets count, of one fine-tuned on `up` three."""
    level, cells = itertools.count(30, 7), []
    for model in "xyz":
        arms = [("pre", "", ""), *(("fine_tune", "canonical", on) for on in ("a", "up"))]
        for method, variant, downstream in arms:
            at = (model, method, variant, None, "", downstream)
            cells += [(*at, on, 20 + next(level) ** 2 % 61) for on in (*SETS, "up")]
    made = of_cells(cells, downstreams=["a", "up"])
    means = effective_robustness.section(made).tables[0].data.query("method == 'FT'")
    of_arms = made.grid.named(made.grid.by_arm).set_index("model")["effective_robustness_pts"]
    for line in means.itertuples():
        assert of_arms[line.model].iloc[1] == pytest.approx(line.effective_robustness_pts)


def test_the_figure_has_all_points_and_says_what_lines_are_fitted_over(of_grid):
    section = effective_robustness.section(of_grid)
    assert "Lines are fitted over models given by the user" in section.text
    assert (section.figures[0].data["kind"] == "given").sum() == 4 + 3
    (svg,) = drawn(section).values()
    assert svg.count('aria-roledescription="point"') == 10 + 7
    assert "on the set, %" in svg


def test_too_few_models_for_any_line_are_refused(tmp_path):
    file = tmp_path / "models.csv"
    file.write_text("model,set,accuracy\nm,up,20\nm,a,10")
    with pytest.raises(ValueError, match=r"models\.csv: a trend line needs 3 models on a set"):
        results(tmp_path / "grid", file)
