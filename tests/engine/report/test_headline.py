"""The order of rows, the terminal's table, and the sentences that a report begins with."""

import re

import numpy as np
import pytest

from engine.measures.rows import PRE
from engine.recipe.resolve import load_recipe
from engine.report import console, headline, results, terminal
from engine.report.results import Results
from engine.report.text import set_head
from helpers import made_results
from helpers.stores import synthetic

SETS = ["mono", "flat", "twemoji", "emojione-monotone"]
BEFORE = {"mono": 8.0, "flat": 64.0, "twemoji": 46.0, "emojione-monotone": 10.0, "up": 95.0}
METHODS = {"fine_tune": "FT", "lwf": "LwF", "wise_ft": "WiSE-FT"}


def campaign(shift=None, seed=0) -> list[tuple]:
    """Cells of a whole grid; `shift` is each method's mean change, alphas lie between."""
    shift = {"fine_tune": 3.0, "lwf": 5.0, "wise_ft": 9.0} if shift is None else shift
    rng = np.random.default_rng(seed)
    cells = [("lite0", PRE, "", None, "", "", on, value) for on, value in BEFORE.items()]
    for method, mean in shift.items():
        for alpha in (0.0, 0.5, 1.0) if method == "wise_ft" else (None,):
            arm, is_row = ("lite0", method, "canonical", alpha, ""), alpha in (None, 0.5)
            cells += [
                (*arm, i, j, BEFORE[j] + (30 if i == j else mean) + rng.normal(), is_row)
                for i in SETS
                for j in BEFORE
            ]
    return cells


def arranged(cells, sets=tuple(SETS), methods=METHODS) -> Results:
    record = made_results.record([], sets=list(sets), downstreams=list(sets), methods=methods)
    return results.of_grid(record, synthetic(cells, sets))


def test_the_order_of_sets_and_rows_and_every_mean():
    made = arranged(campaign())
    assert made.sets("lite0") == ["flat", "twemoji", "emojione-monotone", "mono"]
    assert list(made.shown["method"]) == ["FT", "LwF", "WiSE-FT"]
    assert list(made.arms["alpha"].dropna()) == [0.0, 0.5, 1.0]
    assert list(made.ranked()["method"]) == ["WiSE-FT", "LwF", "FT"]
    ft = made.shown.iloc[0]
    after = made.cells[made.cells["method"] == "FT"].set_index(["downstream", "evaluated_on"])
    mean_before = np.mean([BEFORE[name] for name in SETS])
    assert ft["on_other_datasets_pct"] == pytest.approx(ft["mRI_pts"] + mean_before)
    on_own = np.mean([after.loc[(name, name), "accuracy"] for name in SETS])
    assert ft["on_downstream_dataset_pct"] == pytest.approx(on_own)
    change = np.mean([after.loc[(name, "up"), "accuracy"] - 95 for name in SETS])
    assert ft["change_upstream_pts"] == pytest.approx(change)


def test_rows_name_variants_and_methods_nobody_titled():
    cells = campaign()
    cells += [(*c[:2], "paper", *c[3:7], c[7] - 1) for c in cells if c[1] == "fine_tune"]
    cells += [("lite0", "mine", *c[2:7], c[7] - 4) for c in cells if c[1] == "lwf"]
    made = arranged(cells)
    assert list(made.shown["method"]) == ["FT", "FT (paper)", "LwF", "WiSE-FT", "mine"]
    assert list(made.ranked()["method"]) == ["WiSE-FT", "LwF", "FT", "FT (paper)", "mine"]


def test_table_shows_every_number_in_place():
    made = arranged(campaign())
    text = terminal.table(made, ["a sample"])
    assert text.endswith("\n\nnote: a sample")
    lines = text.splitlines()
    (before,) = [line.split() for line in lines if line.startswith("pretrained")]
    assert before == ["pretrained", "%", "64.0", "46.0", "10.0", "8.0"]
    for row in made.shown.itertuples():
        (printed,) = [line for line in lines if line.startswith(row.method + " ")]
        numbers = [float(x) for x in re.findall(r"[-+]?\d+\.\d", printed.replace("−", "-"))]
        ri = made.ri[made.ri["arm"] == row.arm]["RI_pts"]
        expected = [*ri, row.mRI_pts, row.mRI_low, row.mRI_high]
        assert numbers == pytest.approx(expected, abs=0.051)
    assert set(text) - {"─"} <= set(map(chr, range(128)))


@pytest.mark.parametrize(
    ("shift", "words"),
    [
        (
            {"fine_tune": 3.0, "lwf": 9.0},
            ["LwF has the highest mRI", "plain fine-tuning: +"],
        ),
        ({"fine_tune": 9.0, "lwf": 3.0}, ["FT has the highest mRI", "LwF: +"]),
        (
            {"fine_tune": -9.0, "lwf": -1.0, "mine": -4.0},
            ["LwF has the highest mRI", "plain fine-tuning: −"],
        ),
        ({"lwf": 5.0}, ["LwF has an mRI of", "points ["]),
    ],
)
def test_finding(shift, words):
    text = headline.finding(arranged(campaign(shift)), "lite0")
    assert all(word in text for word in words), text


@pytest.mark.parametrize("name", ["imagenet_rib", "emoji"])
def test_a_campaigns_sets_head_columns_in_full_and_its_table_fits_the_terminal(name):
    sets = load_recipe(name).dataset.sets
    row = ["pretrained %", *["-12.4"] * (len(sets) + 1), "[-12.5, -10.2]"]
    text = console.text("", ["", *map(set_head, sets), "mRI", "95% CI"], [row])
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    heads = "\n".join(lines[:2]).split()
    words = " ".join(map(set_head, sets)).split()
    assert sorted(heads) == sorted([*words, "mRI", "95%", "CI"])
