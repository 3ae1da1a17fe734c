"""The section of CKA: means by depth, the scatter against accuracy, and correlations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_results import TITLES, drawn, results, row
from scipy.stats import spearmanr
from stores import SETS

from engine.report.sections import cka

BLOCKS = ("blocks.0", "blocks.1", "blocks.2")


def rows(missing: bool = False) -> list[dict]:
    """CKA of both methods, of two seeds that agree in their mean."""
    rng, cka_rows = np.random.default_rng(0), []
    for method in TITLES:
        for downstream in SETS:
            for on in (*SETS, "up"):
                values = rng.random(len(BLOCKS))
                for seed, shift in ((0, -0.1), (1, 0.1)):
                    cell = {"model": "lite0", "method": method, "variant": "canonical"}
                    cell |= {"alpha": None, "setting": "", "downstream": downstream}
                    shifted = [float(value + shift) for value in values]
                    if missing and (method, downstream, on) == ("lwf", "a", "b"):
                        shifted[0] = None
                    blocks = dict(zip(BLOCKS, shifted, strict=True))
                    cka_rows.append(cell | {"evaluated_on": on, "seed": seed, "blocks": blocks})
    return cka_rows


def means(cka_rows: list[dict]) -> dict[tuple[str, str, str], float]:
    """Mean CKA over blocks and seeds by method, set trained on and set evaluated on."""
    by_cell: dict = {}
    for line in cka_rows:
        key = TITLES[line["method"]], line["downstream"], line["evaluated_on"]
        by_cell.setdefault(key, []).append(np.mean(list(line["blocks"].values())))
    return {key: float(np.mean(values)) for key, values in by_cell.items()}


@pytest.fixture(scope="module")
def of_grid(tmp_path_factory):
    return results(tmp_path_factory.mktemp("grid"), cka=rows())


@pytest.mark.parametrize("stored", [None, []])
def test_without_cka_there_is_no_section(of_grid, stored):
    assert cka.section(replace(of_grid, record=replace(of_grid.record, cka=stored))) is None


def test_the_scatter_has_mean_cka_and_the_change_in_accuracy(of_grid):
    section = cka.section(of_grid)
    data = section.figures[1].data
    assert len(data) == 2 * 3 * 3
    expected = means(rows())
    accuracies = {
        (r.method, r.downstream, r.evaluated_on): r.accuracy
        for r in of_grid.grid.cells.itertuples()
    }
    keys = {title: method for method, title in TITLES.items()}
    for point in data.to_dict("records"):
        key = point["method"], point["downstream"], point["evaluated_on"]
        assert point["downstream"] != point["evaluated_on"]
        assert point["cka"] == pytest.approx(expected[key])
        before = accuracies["pre", "", point["evaluated_on"]]
        after = accuracies[keys[point["method"]], point["downstream"], point["evaluated_on"]]
        assert point["change_pts"] == pytest.approx(after - before)


def test_correlations_are_scipys_over_all_sets_and_on_each(of_grid):
    section = cka.section(of_grid)
    data, table = section.figures[1].data, section.tables[0].data
    overall = row(table, evaluated_on="all sets")
    expected = spearmanr(data["cka"], data["change_pts"]).statistic
    assert overall["spearman_r"] == pytest.approx(expected)
    assert overall["fine_tuned_models"] == 6 and 0 < overall["p"] <= 1
    assert np.isnan(overall["spearman_low"])  # too few for an interval
    on_a = data[data["evaluated_on"] == "a"]
    expected = spearmanr(on_a["cka"], on_a["change_pts"]).statistic
    assert row(table, evaluated_on="a")["spearman_r"] == pytest.approx(expected)
    assert list(table["evaluated_on"][-2:]) == ["up", "all sets"]
    assert "over 6 fine-tuned models" in section.statements[0]


def test_a_model_whose_features_do_not_vary_is_left_out_of_correlations(of_grid):
    record = replace(of_grid.record, cka=rows(missing=True))
    section = cka.section(replace(of_grid, record=record))
    assert row(section.tables[0].data, evaluated_on="all sets")["fine_tuned_models"] == 5
    assert section.tables[1].data["cka"].isna().sum() == 1


def test_depth_is_a_share_and_a_mean_over_the_other_sets(of_grid):
    data = cka.section(of_grid).figures[0].data
    assert sorted(set(data["depth"])) == pytest.approx([1 / 3, 2 / 3, 1])
    values = [
        line["blocks"]["blocks.1"]
        for line in rows()
        if line["method"] == "lwf" and line["downstream"] != line["evaluated_on"]
    ]
    assert row(data, method="LwF", block="blocks.1")["cka"] == pytest.approx(np.mean(values))


def test_both_figures_can_be_drawn(of_grid):
    figures = drawn(cka.section(of_grid))
    assert figures["cka-depth-lite0"].count('aria-roledescription="line mark"') == 2
    assert figures["cka-accuracy-lite0"].count('aria-roledescription="point"') >= 18
