"""The section of CKA: means by depth, the scatter against accuracy, and correlations."""

from dataclasses import replace

import numpy as np
import pandas
import pytest
from made_results import TITLES, drawn, results, row
from scipy.stats import spearmanr
from stores import SETS

from engine.report.sections import cka
from engine.report.text import signed

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


@pytest.fixture(scope="module")
def of_grid(tmp_path_factory):
    return results(tmp_path_factory.mktemp("grid"), cka=rows())


@pytest.mark.parametrize("stored", [None, []])
def test_without_cka_there_is_no_section(of_grid, stored):
    assert cka.section(replace(of_grid, record=replace(of_grid.record, cka=stored))) is None


def test_the_scatter_has_mean_cka_and_the_change_in_accuracy(of_grid):
    figure = cka.section(of_grid).figures[1]
    assert len(figure.spec["layer"]) == 1, "a method's many dots have no names beside them"
    data = figure.data
    assert len(data) == 2 * 3 * 3 and (data["downstream"] != data["evaluated_on"]).all()
    stored = pandas.DataFrame(rows()).replace({"method": TITLES})
    stored["cka"] = [np.mean(list(blocks.values())) for blocks in stored["blocks"]]
    keys = ["method", "downstream", "evaluated_on"]
    means = stored.groupby(keys)["cka"].mean()
    changes = of_grid.cells.set_index(keys)["change_pts"]
    for point in data.to_dict("records"):
        key = tuple(point[name] for name in keys)
        assert (point["cka"], point["change_pts"]) == (pytest.approx(means[key]), changes[key])


def test_the_heading_has_scipys_correlation_of_the_models_that_have_all_sets(of_grid):
    data = cka.section(of_grid).figures[1].data
    expected = spearmanr(data["cka"], data["change_pts"]).statistic
    heading = cka.section(of_grid).heading
    assert f"accuracy: Spearman {signed(expected, 2)} (p " in heading
    assert heading.endswith("over 6 fine-tuned models")
    missing = cka.section(replace(of_grid, record=replace(of_grid.record, cka=rows(missing=True))))
    assert missing.heading.endswith("over 5 fine-tuned models")
    assert missing.tables[0].data["cka"].isna().sum() == 1


def test_depth_is_a_share_and_a_mean_over_the_other_sets(of_grid):
    data = cka.section(of_grid).figures[0].data
    assert sorted(set(data["depth"])) == pytest.approx([1 / 3, 2 / 3, 1])
    values = [
        line["blocks"]["blocks.1"]
        for line in rows()
        if line["method"] == "lwf" and line["downstream"] != line["evaluated_on"]
    ]
    assert row(data, method="LwF", block="blocks.1")["cka"] == pytest.approx(np.mean(values))
    figures = drawn(cka.section(of_grid))
    assert figures["cka-depth-lite0"].count('aria-roledescription="line mark"') == 2
    assert figures["cka-accuracy-lite0"].count('aria-roledescription="point"') >= 18
