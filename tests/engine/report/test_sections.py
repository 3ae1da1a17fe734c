"""What each section says, against the numbers that it is made of."""

from __future__ import annotations

import dataclasses

import made_results
import numpy as np
import pytest
import reports
import vl_convert
from stores import SETS

from engine import recipe
from engine.measures.rows import PRE
from engine.report import charts, sections
from engine.report import results as report_results
from engine.report.results import Results, of_campaign
from engine.report.section import Section


@pytest.fixture(scope="module")
def results(report) -> Results:
    return report[1]


def section(results: Results, key: str) -> Section:
    return next(built for built in sections.of(results) if built.key == key)


def accuracy(results: Results) -> dict[tuple[str, float | None, str, str], float]:
    return {
        (row.method, None if row.alpha < 0 else row.alpha, *row[6:8]): row.accuracy
        for row in results.grid.cells.fillna({"alpha": -1}).itertuples()
    }


def test_the_ranking_is_sorted_and_has_every_mean(results):
    data = section(results, "ranking").tables[1].data
    accuracies = accuracy(results)
    assert list(data["mRI_pts"]) == sorted(data["mRI_pts"], reverse=True)
    assert set(data["method"]) == {"FT", "EWC & co", "WiSE-FT"}
    (ft,) = data[data["method"] == "FT"].to_dict("records")
    arm = next(k for k, arm in enumerate(results.grid.arms) if arm.method == "fine_tune")
    assert ft["mRI_pts"] == pytest.approx(results.ri[results.ri["arm"] == arm]["RI_pts"].mean())
    on_downstream = [accuracies["fine_tune", None, name, name] for name in reports.SETS]
    assert ft["on_downstream_set_pct"] == pytest.approx(np.mean(on_downstream))
    up = [
        accuracies["fine_tune", None, name, "up"] - accuracies[PRE, None, "", "up"]
        for name in reports.SETS
    ]
    assert ft["change_upstream_pts"] == pytest.approx(np.mean(up))
    assert ft["change_upstream_low"] <= ft["change_upstream_pts"] <= ft["change_upstream_high"]


def test_the_maps_hold_every_cell_and_their_axes_have_one_order(results):
    maps = section(results, "maps")
    accuracies = accuracy(results)
    assert [figure.caption for figure in maps.figures] == ["FT", "EWC & co", "WiSE-FT"]
    for figure, (method, alpha) in zip(
        maps.figures, [("fine_tune", None), ("ewc", None), ("wise_ft", 0.5)], strict=True
    ):
        assert len(figure.data) == 3 * 4
        for row in figure.data.to_dict("records"):
            after = accuracies[method, alpha, row["downstream"], row["evaluated_on"]]
            before = accuracies[PRE, None, "", row["evaluated_on"]]
            assert row["accuracy_pct"] == pytest.approx(after)
            assert row["change_pts"] == pytest.approx(after - before)
        columns = [list(dict.fromkeys(figure.data[k])) for k in ("evaluated_on", "downstream")]
        assert columns[0] == [*columns[1], "up"] == [*results.before("lite0")]


def test_comparisons_are_with_the_best_and_answers_add_up(results):
    (how_sure,) = section(results, "how-sure").tables
    best = results.ranked().iloc[0]
    tests, arms = results.against(best["arm"]), results.shown.set_index("method")["arm"]
    for row in how_sure.data.iloc[1:].to_dict("records"):
        test = tests.loc[arms[row["method"]]]
        for name in ("difference_pts", "difference_low", "difference_high"):
            assert row[name] == test[name]
        assert row["difference_pts"] < 0 and row["corrected_p"] == test["p_corrected"]
    assert np.isnan(how_sure.data["difference_pts"][0])
    assert how_sure.data["method"][0] == best["method"]
    numbers = section(results, "ranking").tables[1].data.merge(how_sure.data, on="method")
    before = np.mean([results.before("lite0")[name] for name in reports.SETS])
    np.testing.assert_allclose(numbers["both_right_pct"] + numbers["lost_pct"], before)
    after = numbers["both_right_pct"] + numbers["gained_pct"]
    np.testing.assert_allclose(after, numbers["on_other_sets_pct"])


def test_the_explorer_holds_every_number_once(results):
    data = section(results, "explorer").tables[0].data
    keys = ["method", "against", "downstream", "evaluated_on"]
    assert len(data) == 3 * (1 + 3 + 4 + 3 * 4) + 3 * (1 + 3) and not data.duplicated(keys).any()
    table = data.set_index(keys)
    others, each = "others", "all"
    for row in results.ri.itertuples():
        line = table.loc[row.method, "pre-trained", row.downstream, others]
        assert line["change_pts"] == pytest.approx(row.RI_pts)
        assert line["accuracy_pct"] - line["before_pct"] == pytest.approx(row.RI_pts)
        assert line[["change_low", "change_high"]].tolist() == [row.RI_low, row.RI_high]
    for row in results.shown.itertuples():
        line = table.loc[row.method, "pre-trained", each, others]
        assert line["change_pts"] == pytest.approx(row.mRI_pts)
    for row in results.cells.itertuples():
        line = table.loc[row.method, "pre-trained", row.downstream, row.evaluated_on]
        assert line["accuracy_pct"] == row.accuracy_pct
        assert line["change_pts"] == pytest.approx(row.change_pts)
    pair = results.comparisons.iloc[0]
    titles = results.shown.set_index("arm")["method"]
    line = table.loc[titles[pair["arm"]], titles[pair["against"]], each, others]
    assert line["change_pts"] == pair["difference_pts"]
    assert line["corrected_p"] == pair["p_corrected"]


def test_the_trade_off_has_the_curve_and_names_what_tables_show(results):
    data = section(results, "trade-off").figures[0].data
    assert list(data["alpha"].dropna()) == [0.0, 0.5, 1.0]
    names = [name for name in data["name"] if name]
    assert names == ["pre-trained", "FT", "EWC & co", "WiSE-FT, α = 0.5"]


def test_published_numbers_stand_beside_those_of_their_model_only(tmp_path, monkeypatch):
    def ranking(name: str, **values):
        made = of_campaign(reports.finished(tmp_path / name, **values))
        return section(made, "ranking").tables[1].data.set_index("method")

    assert "published_mRI_pts" not in ranking("8", model="LAION-2B")  # ours is over three sets
    over_three_sets = recipe.published() | {"downstreams": len(reports.SETS)}
    monkeypatch.setattr(report_results, "slides", lambda: over_three_sets)
    report_results.published.cache_clear()
    published = recipe.published()["models"]["LAION-2B"]["mri"]
    for model in ("LAION-2B", "vit_base_patch16_clip_224.laion2b_ft_in1k"):
        assert ranking(model, model=model)["published_mRI_pts"]["FT"] == published["fine_tune"]
    assert "published_mRI_pts" not in ranking("other")


def test_a_set_without_distances_and_a_pair_that_did_not_converge_are_named(results):
    matrix = results.record.matrix()
    matrix.values[0, 1] = matrix.values[1, 0] = np.nan
    record = dataclasses.replace(results.record, distances=matrix.plain())
    made = section(dataclasses.replace(results, record=record), "distances")
    assert "1 pair missing" in made.text
    assert made.figures[-1].data["distance"].isna().sum() == 2
    without = dataclasses.replace(results, record=dataclasses.replace(record, distances=None))
    assert "distances" not in [built.key for built in sections.of(without)]


def test_what_was_not_measured_is_not_claimed(results):
    without = dataclasses.replace(results.record, holdout=False)
    unheld = dataclasses.replace(results, record=without)
    for key, words in (("maps", "no hold-out"), ("settings", "nothing is held out")):
        assert words in section(unheld, key).text and words not in section(results, key).text
    seeds = section(results, "how-to-read").text
    assert "Another training seed is not in them" in seeds
    photos = dataclasses.replace(results, record=dataclasses.replace(without, contact_sheet=""))
    drawings = "another rendering of a drawing that it has seen"
    assert drawings in seeds and drawings not in section(photos, "how-to-read").text


def test_every_row_has_its_hyper_parameters(results):
    settings, rows = section(results, "settings").tables
    assert dict(settings.data.values)["Command"] == "rib campaign drawn"
    assert list(rows.data["method"]) == ["FT", "EWC & co", "WiSE-FT"]
    assert list(rows.data["betas"]) == ["0.9, 0.999"] * 3


def test_every_figure_can_be_drawn_and_says_in_words_what_it_shows(results):
    for built in sections.of(results):
        for figure in built.figures:
            svg = vl_convert.vegalite_to_svg(charts.drawn(figure, 400))
            assert svg.count("<path") + svg.count("<text") > 5, figure.name
            assert len(figure.alt) > 20 and figure.caption
            fields = set(_fields(figure.spec))
            assert fields <= set(figure.data), (figure.name, fields - set(figure.data))


def _fields(spec):
    if isinstance(spec, dict):
        for key, value in spec.items():
            if key == "field" and isinstance(value, str):
                yield value
            elif key != "data":
                yield from _fields(value)
    elif isinstance(spec, list):
        for value in spec:
            yield from _fields(value)


HALF_TURN = np.array(  # CSS's hue-rotate(180deg)
    [[-0.574, 1.430, 0.144], [0.426, 0.430, 0.144], [0.426, 1.430, -0.856]]
)


def luminance(colour: str, is_dark: bool) -> float:
    rgb = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    if is_dark:
        rgb = (HALF_TURN @ (0.95 - 0.9 * rgb)).clip(0, 1)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


@pytest.mark.parametrize("is_dark", [False, True])
def test_numbers_can_be_read_on_every_colour_of_a_map(is_dark):
    for colour in charts.DIVERGING + charts.RAMP:
        dark, light = sorted(luminance(of, is_dark) for of in (colour, charts.INK))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, colour


def test_models_that_are_all_right_upstream_leave_a_page_without_effective_robustness():
    for models in (["a"], ["a", "b", "c"]):
        cells = [
            (model, method, variant, None, "", downstream, on, 100 if on == "up" else 40)
            for model in models
            for method, variant, downstreams in ((PRE, "", [""]), ("fine_tune", "canonical", SETS))
            for downstream in downstreams
            for on in (*SETS, "up")
        ]
        made = made_results.of_cells(cells)
        keys = [built.key for built in sections.of(made)]
        assert "ranking" in keys and "effective-robustness" not in keys


def test_what_was_chosen_on_the_set_it_is_measured_on_is_marked(results):
    settings = results.record.settings | {
        "Rows": {"ewc": {"options": "select=greedy, members=['pre']"}, "fine_tune": {}}
    }
    record = dataclasses.replace(results.record, settings=settings)
    marked = dataclasses.replace(results, record=record)
    note = "EWC & co: chosen by accuracy on the images held out of the set fine-tuned on"
    assert note in section(marked, "ranking").tables[-1].caption
    assert note in section(marked, "trade-off").text
    assert "chosen by" not in section(results, "trade-off").text
