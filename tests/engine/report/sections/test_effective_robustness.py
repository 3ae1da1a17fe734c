"""The section of effective robustness: its lines, its points, its numbers and what it says."""

import itertools

import numpy as np
import pytest
from scipy.stats import norm

from engine.measures.effective_robustness import GIVEN as GIVEN_BY_USER
from engine.measures.effective_robustness import PUBLISHED
from engine.report.sections import effective_robustness
from helpers.made_results import drawn, of_cells, results, row
from helpers.stores import SETS

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
        line = row(section.tables[1].data, set=name)
        assert (line["models"], line["from_pct"], line["to_pct"]) == (
            len(GIVEN[name]), GIVEN[name][0][0], GIVEN[name][-1][0]
        )  # fmt: skip
        assert line["slope"] == pytest.approx(slope)
        assert line["R2"] == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)
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
        arms = [("pretrained", "", ""), *(("fine_tune", "original", on) for on in ("a", "up"))]
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
    assert "Baseline: models given by the user" in section.text
    assert (section.figures[0].data["kind"] == "given").sum() == 4 + 3
    (svg,) = drawn(section).values()
    assert svg.count('aria-roledescription="point"') == 10 + 7
    assert "on the dataset, %" in svg


def test_published_models_make_the_lines_where_there_is_no_file(tmp_path, monkeypatch):
    """Until now the page of one pretrained model had no such section."""
    models = [("resnet18.tv_in1k", 39, 20, 5), ("resnet50.tv_in1k", 40, 22, 8),
              ("vgg11.tv_in1k", 43, 30, 9), ("vit_tiny.in21k_ft_in1k", 44, 99, 99)]  # fmt: skip
    lines = ["# a comment", "model,up,a,c", *(",".join(map(str, each)) for each in models)]
    (tmp_path / "known.csv").write_text("\n".join(lines))
    monkeypatch.setattr("engine.report.results.TIMM_MODELS", tmp_path / "known.csv")
    made = results(tmp_path / "grid")
    section = effective_robustness.section(made)
    fits = section.tables[1].data
    assert list(fits["set"]) == ["a", "c"] and set(fits["models"]) == {3}
    assert set(fits["families"]) == {2} and set(fits["fitted_over"]) == {PUBLISHED}
    assert PUBLISHED in section.text
    dots = section.figures[0].data.query("kind == 'given'")
    assert sorted(dots["upstream_pct"]) == [40, 40, 43, 43], "one of each family and set"
    upstream = made.grid.cells["accuracy"].to_numpy()
    tuned = made.grid.cells.query("evaluated_on in ['a', 'c'] and downstream != evaluated_on")
    outside = [not 39 <= upstream[at] <= 43 for at in tuned["on_upstream"]]
    assert f"{sum(outside)} of {len(outside)} accuracies are outside" in section.text
    assert sum(outside) > 0
    (svg,) = drawn(section).values()
    assert svg.count('stroke-dasharray="1,3"') >= 2, "what is extrapolated is dotted"
    (tmp_path / "mine.csv").write_text(
        "model,set,accuracy\n"
        + "\n".join(f"m{k},{s},{20 + k}" for k in range(3) for s in ("up", "b"))
    )
    mine = results(tmp_path / "again", tmp_path / "mine.csv")
    assert {name: trend.basis for name, trend in mine.trends.items()} == {"b": GIVEN_BY_USER}


def test_the_heading_counts_what_intervals_show_and_ranks_nothing(of_grid):
    section = effective_robustness.section(of_grid)
    tuned = section.tables[0].data.query("method != 'pretrained'")
    above = (tuned["effective_robustness_low"] > 0).sum()
    below = (tuned["effective_robustness_high"] < 0).sum()
    assert section.heading == (
        f"{above} of 2 methods are significantly above the trend line, {below} below"
    )
    assert "most" not in section.heading


def test_too_few_models_for_any_line_are_refused(tmp_path):
    file = tmp_path / "models.csv"
    file.write_text("model,set,accuracy\nm,up,20\nm,a,10")
    with pytest.raises(ValueError, match=r"models\.csv: a trend line requires at least 3 models"):
        results(tmp_path / "grid", file)
