"""What each section says, against the numbers that it is made of."""

import numpy as np
import pandas
import pytest

from engine.campaigns.job_states import Attempt
from engine.campaigns.record import MethodRow
from engine.measures.rows import PRE
from engine.measures.tables import extremes
from engine.otdd.distance_matrix import Matrix
from engine.report import charts, sections
from engine.report.merged import merged
from engine.report.results import Results
from engine.report.section import Section
from engine.report.sections import about, changes
from engine.report.text import signed
from helpers import made_results, reports
from helpers.reports import changed
from helpers.stores import SETS

CHANGE = ["change_pts", "change_low", "change_high"]


@pytest.fixture(scope="module")
def results(report) -> Results:
    return report[1]


def section(results: Results, key: str) -> Section:
    made = (maker(results) for maker in (*sections.SECTIONS, *sections.ABOUT))
    return next(built for built in made if built is not None and built.key == key)


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
    for name in ("difference_pts", "difference_low", "difference_high", "adjusted_p"):
        pandas.testing.assert_series_equal(data[name], tests[name])
    before = np.mean([results.before("lite0")[name] for name in reports.SETS])
    np.testing.assert_allclose(data["both_right_pct"] + data["negative_flips_pct"], before)
    after = results.shown.set_index("method")["OOD_accuracy_pct"][data.index]
    np.testing.assert_allclose(data["both_right_pct"] + data["positive_flips_pct"], after)


def test_all_numbers_holds_every_number_once(results):
    data = section(results, "all-numbers").tables[0].data
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
    assert line["adjusted_p"] == pair["adjusted_p"]


def test_the_trade_off_has_the_curve_and_names_what_tables_show(results):
    data = section(results, "trade-off").figures[0].data
    assert list(data["alpha"].dropna()) == [0.0, 0.5, 1.0]
    names = [name for name in data["name"] if name]
    assert names == ["pretrained", "FT", "EWC & co", "WiSE-FT, α = 0.5"]


def test_a_set_without_distances_and_a_pair_that_did_not_converge_are_named(results):
    matrix = Matrix.of(results.record.distances)
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
            for method, variant, downstreams in ((PRE, "", [""]), ("fine_tune", "original", SETS))
            for downstream in downstreams
            for on in (*SETS, "up")
        ]
        made = made_results.of_cells(cells)
        keys = [built.key for built in sections.of(made)]
        assert "ranking" in keys and "effective-robustness" not in keys


def test_what_was_chosen_on_the_set_it_is_measured_on_is_marked(results):
    settings = results.record.rows[0].settings
    greedy = MethodRow("ewc", settings | {"method.select": "greedy"})
    marked = changed(results, rows=[greedy, MethodRow("fine_tune", settings)])
    note = "EWC & co: chosen by accuracy on held-out images of the downstream dataset"
    assert note in section(marked, "ranking").tables[-1].caption
    assert note in section(marked, "trade-off").text
    assert "chosen by" not in section(results, "trade-off").text


def test_fine_tuning_upstream_shows_each_set_and_the_mean_change():
    arms = {(method, None, ""): (95, 50) for method in ("fine_tune", "lwf")}
    upstream = [
        ("lite0", method, "original", alpha, "", "up", on, 100 if on == "up" else 30)
        for method, alpha, _ in arms
        for on in (*SETS, "up")
    ]
    section = changes.tuned_outside(made_results.of_arms(arms, more=upstream))
    assert section.heading.startswith("After fine-tuning on up, accuracy changes by −")
    data = section.tables[0].data
    ft = data[data["method"] == "FT"].set_index("evaluated_on")
    assert ft.index[0] == "up" and set(ft.index) == {"up", *SETS}
    assert ft.loc["up", "accuracy_pct"] == 100
    assert (ft["change_pts"] == ft["accuracy_pct"] - ft["before_pct"]).all()
    assert "published_change_pts" not in data
    assert len(section.figures) == 1 and len(section.figures[0].data) == 2 * 4


HOUR = 3600.0
ATTEMPTS = [
    Attempt("prepare", "prepare", 0.0, 0.5 * HOUR, "A100"),
    Attempt("column-a", "column", HOUR, 2 * HOUR, "A100", 1, "no room"),
    Attempt("column-a", "column", 3 * HOUR, 5 * HOUR, "A100"),
    Attempt("column-b", "column", HOUR, 4 * HOUR, "A100"),
    Attempt("column-c", "column", HOUR, None, "A100"),
]


def settings_table(results: Results, name: str) -> list[dict]:
    tables = {table.name: table.data for table in about.what_was_run(results).tables}
    return tables[name].to_dict("records")


def test_models_are_counted_once():
    """One per model, method, dataset fine-tuned on and seed, however many alphas and datasets
    evaluated on it has."""
    arms = {("fine_tune", None, ""): (60, 55)}
    arms |= {("wise_ft", alpha, ""): (60, 55) for alpha in (0.0, 0.5, 1.0)}
    models = f"{2 * len(made_results.SETS)} models"
    made = about.what_was_run(made_results.of_arms(arms, attempts=ATTEMPTS))
    assert made.heading == f"{models}, 6.5 h of jobs"
    made = about.what_was_run(made_results.of_arms(arms))  # an earlier campaign's cells
    assert made.heading == f"{models}, found in the store"


def test_hours_are_summed_and_failed_attempts_are_listed_with_their_reason():
    results = made_results.of_arms({("fine_tune", None, ""): (60, 55)}, attempts=ATTEMPTS)
    rows = settings_table(results, "job-minutes")
    assert [(row["stage"], row["jobs"], row["attempts"], row["minutes"]) for row in rows] == [
        ("prepare", 1, 1, 30.0),
        ("column", 2, 3, 360.0),
    ]
    assert about.what_was_run(results).heading.endswith(" models, 6.5 h of jobs")
    rows = settings_table(results, "failed-attempts")
    assert [(row["job"], row["minutes"]) for row in rows] == [("column-a", 60.0), ("column-c", 0.0)]
    assert rows[0]["why"] == "no room" and "killed" in rows[1]["why"]


def test_columns_that_not_all_campaigns_have_are_left_out_and_named(two):
    results = merged([two[0], reports.changed(two[1], downstreams=["flat", "mono"])])
    assert results.record.downstreams == ["flat", "mono"]
    assert set(results.grid.cells["downstream"]) == {"", "flat", "mono"}
    missing = {"column": "sketch", "reason": "not a column of all campaigns", "campaign": "a"}
    assert settings_table(results, "missing-columns") == [missing]
