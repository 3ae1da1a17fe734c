"""The section of CKA: means by depth, the scatter against accuracy, and correlations."""

import numpy as np
import pandas
import pytest
from scipy.stats import spearmanr

from engine.extras import cka
from engine.measures.rows import PRE, Arm
from helpers.made_results import TITLES, drawn, of_cells, results, row
from helpers.reports import changed
from helpers.stores import SETS
from loaders.files.typed_json import DamagedFile

BLOCKS = ("blocks.0", "blocks.1", "blocks.2")


def rows(missing: bool = False) -> list[dict]:
    """CKA of both methods, of two seeds that agree in their mean."""
    rng, cka_rows = np.random.default_rng(1), []
    for method in TITLES:
        for downstream in SETS:
            for on in (*SETS, "up"):
                values = 0.1 + 0.8 * rng.random(len(BLOCKS))
                for seed, shift in ((0, -0.1), (1, 0.1)):
                    cell = {"model": "lite0", "method": method, "variant": "original"}
                    cell |= {"alpha": None, "setting": {}, "downstream": downstream}
                    shifted = [float(value + shift) for value in values]
                    if missing and (method, downstream, on) == ("lwf", "a", "b"):
                        shifted[0] = None
                    blocks = dict(zip(BLOCKS, shifted, strict=True))
                    cka_rows.append(cell | {"evaluated_on": on, "seed": seed, "blocks": blocks})
    return cka_rows


@pytest.fixture(scope="module")
def of_grid(tmp_path_factory):
    return results(tmp_path_factory.mktemp("grid"), extras={"cka": rows()})


@pytest.mark.parametrize("stored", [{}, {"cka": []}])
def test_without_cka_there_is_no_section(of_grid, stored):
    assert cka.section(changed(of_grid, extras=stored)) is None


WRONG = [
    {"blocks": {"blocks.0": "high"}},
    {"blocks": {"blocks.0": 1e308}},
    {"blocks": {}},
    {"blocks": [0.5]},
    {"setting": {"step": [1]}},
    {"evaluated_on": None},
]


@pytest.mark.parametrize("values", [*WRONG, None], ids=str)
def test_values_that_no_campaign_writes_are_an_error(of_grid, values):
    wrong = [*rows(), rows()[0] | values if values else {"cka": 1.0}]
    with pytest.raises(DamagedFile, match=r"extras.cka in the record of made-up is damaged \(.*\["):
        cka.section(changed(of_grid, extras={"cka": wrong}))


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


def test_few_datasets_have_no_test_and_a_missing_number_stays_missing(of_grid):
    """Over three datasets, no order of ranks has a p below 1/3."""
    assert cka.section(of_grid).heading == (
        "3 downstream datasets are too few to test whether features that changed less go with "
        "higher accuracy"
    )
    missing = cka.section(changed(of_grid, extras={"cka": rows(missing=True)}))
    assert missing.tables[0].data["cka"].isna().sum() == 1


def test_sets_that_differ_do_not_turn_the_headings_direction():
    """Hard sets gain more and their features move less, but within every set it is the reverse."""
    names, rng = [f"s{k}" for k in range(7)], np.random.default_rng(0)
    cells = [("lite0", PRE, "", None, "", "", on, 50.0) for on in (*names, "up")]
    moved = []
    for method in TITLES:
        for here, downstream in enumerate(names):
            for place, on in enumerate(names):
                value, noise = 10 * place - 2 * here, rng.normal(scale=0.3)
                arm = ("lite0", method, "original", None, "", downstream, on)
                cells.append((*arm, 50 + 10 * place + 2 * here + noise))
                blocks = dict.fromkeys(BLOCKS, 0.5 + value / 200)
                cell = dict(zip(Arm._fields, arm[:5], strict=True))
                cell |= {"setting": {}, "downstream": downstream}
                moved.append(cell | {"evaluated_on": on, "seed": 0, "blocks": blocks})
            cells.append((*arm[:6], "up", 50.0))
    made = of_cells(cells, sets=names, downstreams=names, extras={"cka": moved})
    points = cka.section(made).figures[1].data
    assert spearmanr(points["cka"], points["change_pts"]).statistic > 0.5
    within = points.groupby(["method", "evaluated_on"])[["cka", "change_pts"]]
    assert (within.corr(method="spearman")["cka"].xs("change_pts", level=-1) < -0.9).all()
    heading = cka.section(made).heading
    assert "features that changed less go with lower accuracy" in heading
    keys = [points["method"], points["evaluated_on"]]
    ranks = points[["cka", "change_pts"]].groupby(keys).rank()
    ranks -= ranks.groupby(keys).transform("mean")
    expected = f"{ranks.corr().loc['cka', 'change_pts']:+.2f}".replace("-", "\N{MINUS SIGN}")
    assert f"Spearman {expected}" in heading and heading.endswith("over 7 downstream datasets")


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


def test_cka_along_training_starts_at_the_pretrained_model(of_grid):
    """Means over blocks, datasets and seeds, computed again from the rows of the record."""
    during = [
        {
            **row,
            "setting": {"step": step},
            "blocks": {k: v / step for k, v in row["blocks"].items()},
        }
        for row in rows()
        for step in (1, 8)
        if row["method"] == "lwf"
    ]
    section = cka.section(changed(of_grid, extras={"cka": [*rows(), *during]}))
    assert [table.name for table in cka.section(of_grid).tables] == ["cka"]
    plain = cka.section(of_grid).tables[0].data
    pandas.testing.assert_frame_equal(section.tables[0].data, plain)
    table = section.tables[1].data.set_index(["quantity", "step"])["cka"]
    stored = pandas.DataFrame(rows()).query("method == 'lwf'")
    stored["cka"] = [np.mean(list(blocks.values())) for blocks in stored["blocks"]]
    is_own = stored["downstream"] == stored["evaluated_on"]
    parts = {
        "downstream dataset": stored[is_own],
        "upstream dataset": stored.query("evaluated_on == 'up'"),
        "other datasets": stored[~is_own].query("evaluated_on != 'up'"),
    }
    assert len(table) == 9
    for quantity, part in parts.items():
        of_steps = [table[quantity, step] for step in (0, 1, 8)]
        assert of_steps == pytest.approx([1, part["cka"].mean(), part["cka"].mean() / 8])
    assert set(drawn(section)) >= {"cka-training-lite0"}
