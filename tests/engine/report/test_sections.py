"""What each section says, against the numbers that it is made of."""

from __future__ import annotations

import dataclasses

import made_results
import numpy as np
import pandas
import pytest
import reports
import stores
import vl_convert

from engine import recipe
from engine.measures.distances import Matrix
from engine.measures.metrics import PRE, improvements
from engine.report import figures, frames, labels, sections, tables
from engine.report.section import Section
from engine.report.sections import trade_off
from engine.report.tables import Results


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    return tables.results(reports.finished(tmp_path_factory.mktemp("runs")))


def section(results: Results, key: str) -> Section:
    (match,) = (built for built in sections.of(results) if built.key == key)
    return match


def accuracy(results: Results) -> dict[tuple[str, float | None, str, str], float]:
    return {
        (row.method, row.alpha, row.downstream, row.evaluated_on): row.accuracy
        for row in results.grid.accuracy
    }


def test_the_ranking_is_sorted_and_has_every_mean(results):
    data = section(results, "ranking").tables[0].data
    accuracies = accuracy(results)
    assert list(data["mRI"]) == sorted(data["mRI"], reverse=True)
    assert set(data["method"]) == {"FT", "EWC & co", "WiSE-FT"}
    (ft,) = data[data["method"] == "FT"].to_dict("records")
    (arm,) = (row.arm for row in results.grid.accuracy if row.key[1:] == _cell("fine_tune"))
    ri = improvements(results.grid.accuracy, reports.SETS)[arm]
    assert ft["mRI"] == pytest.approx(np.mean(list(ri.values())))
    on_downstream = [accuracies["fine_tune", None, name, name] for name in reports.SETS]
    assert ft["on_downstream_set"] == pytest.approx(np.mean(on_downstream))
    up = [
        accuracies["fine_tune", None, name, "up"] - accuracies[PRE, None, "", "up"]
        for name in reports.SETS
    ]
    assert ft["change_upstream"] == pytest.approx(np.mean(up))
    assert ft["change_upstream_low"] <= ft["change_upstream"] <= ft["change_upstream_high"]


def _cell(method: str) -> tuple[str, str, None, str, str, str]:
    return method, "canonical", None, "", reports.SETS[0], reports.SETS[0]


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
            assert row["accuracy"] == pytest.approx(after)
            assert row["change"] == pytest.approx(after - before)
        encoding = figure.spec["encoding"]
        assert encoding["x"]["sort"] == [*encoding["y"]["sort"], "up"]
    assert len(maps.tables[0].data) == 3 * 12


def test_many_maps_are_one_figure_to_choose_from(tmp_path, monkeypatch, results):
    monkeypatch.setattr(sections.maps, "SMALL_MULTIPLES", 2)
    (figure,) = section(results, "maps").figures
    binds = [parameter["bind"]["options"] for parameter in figure.spec["params"]]
    assert binds == [["lite0"], ["FT", "EWC & co", "WiSE-FT"]]


def test_comparisons_are_with_the_best_and_of_all_pairs(results):
    how_sure, pairs = section(results, "how-sure").tables
    best = results.models[0].ranked()[0]
    tests = results.sure.against(best.arm)
    titles = {line.title: line.arm for line in results.models[0].lines}
    for row in how_sure.data.iloc[1:].to_dict("records"):
        test = tests[titles[row["method"]]]
        assert row["difference"] == test.difference < 0
        assert row["difference_low"], row["difference_high"] == (test.low, test.high)
    assert np.isnan(how_sure.data["difference"][0]) and how_sure.data["method"][0] == best.title
    assert len(pairs.data) == len(results.sure.comparisons) == 3 + 9


def test_the_trade_off_has_the_curve_and_names_what_tables_show(results):
    data = section(results, "trade-off").figures[0].data
    assert list(data["alpha"].dropna()) == [0.0, 0.5, 1.0]
    names = [name for name in data["name"] if name]
    assert names == ["pre-trained", "FT", "EWC & co", "WiSE-FT, α = 0.5"]


def test_names_beside_a_curve_do_not_lie_on_it():
    """The curve leaves its named step to the right, and comes to it from the left below."""
    steps = [(0.0, 0.0), (4.0, 9.0), (10.0, 9.0)]
    data = pandas.DataFrame(
        [trade_off._point(f"α = {k}", "a step" * (k == 1), *step) for k, step in enumerate(steps)]
    ).assign(alpha=range(3), curve="WiSE-FT")
    between = trade_off._between_steps(data)
    assert {(0.0, 0.0), (10.0, 9.0)} <= set(between)
    assert all(y == pytest.approx(min(9, x * 9 / 4)) for x, y in between)
    beside_points_alone = labels.sides({"a step": steps[1]}, [steps[0], steps[2]])
    assert beside_points_alone["right"] == ["a step"]
    *_, name = trade_off._spec(data)["layer"]
    assert name["mark"]["type"] == "text" and name["mark"]["align"] == "right"  # to the left


def test_published_numbers_stand_beside_those_of_their_model_only(tmp_path, monkeypatch):
    over_eight = frames.ranking(tables.results(reports.finished(tmp_path / "8", model="LAION-2B")))
    assert "published_mRI" not in over_eight  # ours is over three sets
    over_three_sets = recipe.published() | {"downstreams": len(reports.SETS)}
    monkeypatch.setattr(recipe, "published", lambda: over_three_sets)
    for model in ("LAION-2B", "vit_base_patch16_clip_224.laion2b_ft_in1k"):
        run = reports.finished(tmp_path / model, model=model)
        data = frames.ranking(tables.results(run)).set_index("method")
        published = recipe.published()["models"]["LAION-2B"]["mri"]
        assert data["published_mRI"]["FT"] == published["fine_tune"]
    unpublished = frames.ranking(tables.results(reports.finished(tmp_path / "other")))
    assert "published_mRI" not in unpublished


def test_a_set_without_distances_and_a_pair_that_did_not_converge_are_named(results):
    matrix = results.record.matrix()
    values = matrix.values.copy()
    values[0, 1] = values[1, 0] = np.nan
    holes = dataclasses.replace(matrix, values=values)
    record = dataclasses.replace(results.record, distances=holes.plain())
    changed = dataclasses.replace(results, record=record)
    assert any("1 pairs of sets" in text for text in section(changed, "coverage").statements)
    table = section(changed, "distances").tables[0].data
    assert len(table) == 6 and table["distance"].isna().sum() == 1
    without = dataclasses.replace(results, record=dataclasses.replace(record, distances=None))
    assert "distances" not in [built.key for built in sections.of(without)]
    assert isinstance(matrix, Matrix)


def test_what_was_not_measured_is_not_claimed(results):
    without = dataclasses.replace(results.record, holdout=False)
    text = section(dataclasses.replace(results, record=without), "maps").text
    assert "no hold-out" in text and "no hold-out" not in section(results, "maps").text
    seeds = " ".join(section(results, "how-to-read").statements)
    assert "another training seed is not in them" in seeds
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
            svg = vl_convert.vegalite_to_svg(figures.whole(figure, width=400))
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


def luminance(colour: str) -> float:
    channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_numbers_can_be_read_on_every_colour_of_a_map(mode):
    for colour in (*figures.DIVERGING[mode], *figures.RAMP[mode]):
        dark, light = sorted(map(luminance, (colour, figures.INK[mode])))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, colour


def test_a_name_stands_where_it_covers_no_other_name_or_point():
    far = "a long name at the edge"
    sides = labels.sides({"left one": (0.0, 0.0), "right one": (0.02, 0.0), far: (1.0, 1.0)})
    assert "left one" not in sides["right"] and far not in sides["right"]
    assert {name for names in sides.values() for name in names} == {"left one", "right one", far}
    assert labels.sides({"alone": (3.0, 3.0)})["right"] == ["alone"]


def test_models_that_are_all_right_upstream_leave_a_page_without_effective_robustness(tmp_path):
    evaluations = stores.grid(
        tmp_path,
        lambda method, downstream, on: np.arange(60) % 7 < (7 if on == "up" else 3),
        tuple(made_results.TITLES),
    )
    several = [dataclasses.replace(row, model=f"m{k}") for k in range(3) for row in evaluations]
    for rows in (evaluations, several):
        results = tables._results(made_results.record(rows), rows, None)
        keys = [built.key for built in sections.of(results)]
        assert "ranking" in keys and "effective-robustness" not in keys


def test_what_was_chosen_on_the_set_it_is_measured_on_is_marked(results):
    settings = results.record.settings | {
        "Rows": {"ewc": {"options": "select=greedy, members=['pre']"}, "fine_tune": {}}
    }
    record = dataclasses.replace(results.record, settings=settings)
    marked = dataclasses.replace(results, record=record)
    note = "EWC & co: chosen by accuracy on the images held out of the set fine-tuned on"
    assert note in section(marked, "ranking").tables[0].caption
    assert note in section(marked, "trade-off").text
    assert "chosen by" not in section(results, "trade-off").text


def test_images_that_a_model_trained_on_are_said_to_be_evaluated(results):
    without = dataclasses.replace(results.record, holdout=False)
    said = {
        of.record.holdout: " ".join(section(of, "coverage").statements)
        for of in (results, dataclasses.replace(results, record=without))
    }
    assert "nothing is held out" in said[False] and "not trained on" not in said[False]
    assert "those that are held out of its training" in said[True]
