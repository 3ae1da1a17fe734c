"""What each section says, against the numbers that it is made of."""

import dataclasses

import msgspec
import numpy as np
import pandas
import pytest

from engine.campaigns.record import Row
from engine.measures.rows import PRE
from engine.measures.tables import extremes
from engine.report import charts, sections
from engine.report.published import read_published
from engine.report.results import Results
from engine.report.section import Section
from engine.report.text import signed
from helpers import made_results, reports
from helpers.stores import SETS

CHANGE = ["change_pts", "change_low", "change_high"]


@pytest.fixture(scope="module")
def results(report) -> Results:
    return report[1]


def section(results: Results, key: str) -> Section:
    return next(built for built in sections.of(results) if built.key == key)


def test_the_ranking_is_sorted_and_has_every_method(results):
    data = section(results, "ranking").tables[1].data
    assert list(data["mRI_pts"]) == sorted(data["mRI_pts"], reverse=True)
    assert set(data["method"]) == {"FT", "EWC & co", "WiSE-FT"}


def test_the_maps_hold_every_cell_and_their_axes_have_one_order(results):
    figures = [*section(results, "map").figures, *section(results, "maps").figures]
    assert [figure.caption for figure in figures] == ["FT", "EWC & co", "WiSE-FT"]
    for figure in figures:
        columns = [list(dict.fromkeys(figure.data[k])) for k in ("evaluated_on", "downstream")]
        assert columns[0] == [*columns[1], "up"] == [*results.before("lite0")]
    keys, numbers = ["method", "downstream", "evaluated_on"], ["accuracy_pct", "change_pts"]
    drawn = pandas.concat([figure.data for figure in figures]).set_index(keys)[numbers]
    expected = results.cells.set_index(keys)[numbers]
    pandas.testing.assert_frame_equal(drawn.sort_index(), expected.sort_index())
    np.testing.assert_allclose(expected["accuracy_pct"], results.cells["accuracy"])


def test_the_heading_of_fine_tunings_map_names_the_largest_changes_on_datasets_of_ri(results):
    heading = section(results, "map").heading
    cells = results.cells.query("method == 'FT'")
    cells = cells[cells["evaluated_on"].isin(reports.SETS)].query("downstream != evaluated_on")
    low, high = extremes(cells, "change_pts")
    for cell in (low, high):
        number = signed(cell["change_pts"])
        assert f"{number} ({cell['downstream']} → {cell['evaluated_on']})" in heading


def test_comparisons_are_with_the_best_and_answers_add_up(results):
    data = section(results, "differences").tables[0].data.set_index("method")
    best = results.ranked().iloc[0]
    assert data.index[0] == best["method"] and (data["difference_pts"][1:] < 0).all()
    titles = results.shown.set_index("arm")["method"]
    tests = results.against(best["arm"]).rename(titles).reindex(data.index)
    tests = tests.rename(columns={"p_corrected": "corrected_p"})
    for name in ("difference_pts", "difference_low", "difference_high", "corrected_p"):
        pandas.testing.assert_series_equal(data[name], tests[name])
    before = np.mean([results.before("lite0")[name] for name in reports.SETS])
    np.testing.assert_allclose(data["both_right_pct"] + data["lost_pct"], before)
    after = results.shown.set_index("method")["on_other_datasets_pct"][data.index]
    np.testing.assert_allclose(data["both_right_pct"] + data["gained_pct"], after)


def test_the_explorer_holds_every_number_once(results):
    data = section(results, "explorer").tables[0].data
    keys = ["method", "against", "downstream", "evaluated_on"]
    assert len(data) == 3 * (1 + 3 + 4 + 3 * 4) + 3 * (1 + 3) and not data.duplicated(keys).any()
    table, others = data.set_index(keys), {"evaluated_on": "others"}
    ri = dict(zip(["RI_pts", "RI_low", "RI_high"], CHANGE, strict=True))
    parts = [
        results.cells,
        results.ri.rename(columns=ri).assign(**others),
        results.shown.rename(columns={"mRI_pts": "change_pts"}).assign(downstream="all", **others),
    ]
    for part in parts:
        expected = part.assign(against="pretrained").set_index(keys)
        for name in {"accuracy_pct", *CHANGE} & {*expected}:
            np.testing.assert_allclose(table.loc[expected.index, name], expected[name])
    pair, titles = results.comparisons.iloc[0], results.shown.set_index("arm")["method"]
    line = table.loc[titles[pair["arm"]], titles[pair["against"]], "all", "others"]
    assert line["change_pts"] == pair["difference_pts"]
    assert line["corrected_p"] == pair["p_corrected"]


def test_the_trade_off_has_the_curve_and_names_what_tables_show(results):
    data = section(results, "trade-off").figures[0].data
    assert list(data["alpha"].dropna()) == [0.0, 0.5, 1.0]
    names = [name for name in data["name"] if name]
    assert names == ["pretrained", "FT", "EWC & co", "WiSE-FT, α = 0.5"]


def test_published_numbers_stand_beside_those_of_their_model_and_variant_only():
    slides = read_published()

    def ranking(model: str) -> pandas.DataFrame:
        paper = [(model, "lwf", "paper", None, "", i, j, 55) for i in SETS for j in (*SETS, "up")]
        made = made_results.of_arms(
            {("fine_tune", None, ""): (60, 55), ("lwf", None, ""): (60, 55)},
            models=[model],
            more=paper,
        )
        made = dataclasses.replace(made, published=slides)
        return section(made, "ranking").tables[1].data.set_index("method")

    assert "published_mRI_pts" not in ranking("LAION-2B")  # ours is over three sets
    slides = msgspec.structs.replace(slides, sets=dict.fromkeys([*SETS, "up"], ""))
    numbers = slides.models["LAION-2B"].mri
    for model in ("LAION-2B", "vit_base_patch16_clip_224.laion2b_ft_in1k"):
        shown = ranking(model)["published_mRI_pts"].dropna()
        assert dict(shown) == {"FT": numbers["fine_tune"], "LwF (paper)": numbers["lwf"]}
    assert "published_mRI_pts" not in ranking("other")


def test_fine_tuning_upstream_has_a_published_mri_over_the_sets_of_the_campaign():
    names = {"a": "IN-V2", "b": "IN-A", "c": "IN-C", "up": "IN-1K"}
    slides = read_published()
    of = slides.models["LAION-2B"]
    of = msgspec.structs.replace(of, fine_tuned={"up": of.fine_tuned["imagenet_val"]})
    slides = msgspec.structs.replace(slides, sets=names, models={"LAION-2B": of})
    cells = [("LAION-2B", "pre", "", None, "", "", on, 50.0) for on in names]
    for method in ("fine_tune", "lwf"):
        at = ("LAION-2B", method, "canonical", None, "", "up")
        cells += [(*at, on, 40.0) for on in names]
    for sets in (("a", "b"), ("a", "b", "c")):
        here = [cell for cell in cells if cell[6] in (*sets, "up")]
        made = made_results.of_cells(here, sets=list(sets), downstreams=["up"])
        made = dataclasses.replace(made, published=slides)
        shown = section(made, "ranking").tables[1].data.set_index("method")["published_mRI_pts"]
        after = of.fine_tuned["up"]["fine_tune"]
        changes = [after[names[s]] - of.before[names[s]] for s in sets]
        assert dict(shown.dropna()) == {"FT": pytest.approx(np.mean(changes))}
        held_out = section(changed(made, holdout=True), "ranking").tables[1].data
        assert "published_mRI_pts" not in held_out


def changed(results: Results, **values) -> Results:
    """The results with other values of their record."""
    return dataclasses.replace(results, record=dataclasses.replace(results.record, **values))


def test_a_set_without_distances_and_a_pair_that_did_not_converge_are_named(results):
    matrix = results.record.matrix()
    matrix.values[0, 1] = matrix.values[1, 0] = np.nan
    made = section(changed(results, distances=matrix.plain()), "distances")
    assert "1 pair missing" in made.text
    assert made.figures[-1].data["distance"].isna().sum() == 2
    keys = [built.key for built in sections.of(changed(results, distances=None))]
    assert "distances" not in keys


def test_what_was_not_measured_is_not_claimed(results):
    unheld = changed(results, holdout=False)
    for key, words in (("maps", "nothing held out"), ("settings", "Nothing is held out")):
        assert words in section(unheld, key).text and words not in section(results, key).text
    text = section(results, "how-to-read").text
    assert "They are about this one training" in text
    photos = section(changed(results, contact_sheet=""), "how-to-read").text
    drawings = "another rendering of a drawing in the training set"
    assert drawings in text and drawings not in photos


def test_every_row_has_its_hyper_parameters(results):
    settings, rows = section(results, "settings").tables
    assert dict(settings.data.values)["Command"] == "rib campaign drawn"
    assert list(rows.data["method"]) == ["FT", "EWC & co", "WiSE-FT"]
    assert list(rows.data["betas"]) == ["0.9, 0.999"] * 3


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
    settings = results.record.rows[0].settings
    greedy = Row("ewc", settings | {"method.select": "greedy"})
    marked = changed(results, rows=[greedy, Row("fine_tune", settings)])
    note = "EWC & co: chosen by accuracy on held-out images of the downstream dataset"
    assert note in section(marked, "ranking").tables[-1].caption
    assert note in section(marked, "trade-off").text
    assert "chosen by" not in section(results, "trade-off").text
