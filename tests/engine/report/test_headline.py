"""The order of rows, the terminal's table, and the sentences that a report begins with."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import recipe
from engine.measures.metrics import PRE, Accuracy, Mri, improvements
from engine.measures.standings import standings
from engine.report import console, headline
from engine.report.table import set_head, table

SETS = ["mono", "flat", "twemoji", "emojione-monotone"]
BEFORE = {"mono": 8.0, "flat": 64.0, "twemoji": 46.0, "emojione-monotone": 10.0, "up": 95.0}
METHODS = {"fine_tune": "FT", "lwf": "LwF", "wise_ft": "WiSE-FT"}


def campaign(shift=None, model="lite0", seed=0):
    """Rows of a whole grid; `shift` is each method's mean change, alphas lie between."""
    shift = shift or {"fine_tune": 3.0, "lwf": 5.0, "wise_ft": 9.0}
    rng = np.random.default_rng(seed)
    rows = [Accuracy(model, PRE, "", None, "", "", on, 100, value) for on, value in BEFORE.items()]
    mri = []
    for method, mean in shift.items():
        for alpha in (0.0, 0.5, 1.0) if method == "wise_ft" else (None,):
            arm, row = (model, method, "canonical", alpha, ""), alpha in (None, 0.5)
            rows += [
                Accuracy(*arm, i, j, 100, BEFORE[j] + (30 if i == j else mean) + rng.normal(), row)
                for i in SETS
                for j in BEFORE
            ]
            ri = np.mean(list(improvements(rows, SETS)[rows[-1].arm].values()))
            mri.append(Mri(*arm, float(ri), float(ri) - 1, float(ri) + 1, headline=row))
    return rows, mri


def arranged(rows, mri, methods=METHODS):
    return standings(rows, mri, sets=SETS, upstream="up", methods=methods)


def arrange(rows, mri):
    (ranking,) = arranged(rows, mri)
    return ranking


def test_standings_order_and_means():
    rows, mri = campaign()
    ranking = arrange(rows, mri)
    assert ranking.sets == ("flat", "twemoji", "emojione-monotone", "mono")
    assert [line.title for line in ranking.lines] == ["FT", "LwF", "WiSE-FT"]
    assert [line.arm.alpha for line in ranking.curves[0]] == [0.0, 0.5, 1.0]
    assert [line.title for line in ranking.ranked()] == ["WiSE-FT", "LwF", "FT"]
    ft = ranking.lines[0]
    mean_before = np.mean([BEFORE[name] for name in SETS])
    assert ft.ood == pytest.approx(ft.mri.mri + mean_before)
    assert ft.downstream == pytest.approx(np.mean([ft.after[name][name] for name in SETS]))
    assert ft.upstream == pytest.approx(np.mean([ft.after[name]["up"] - 95 for name in SETS]))


def test_standings_name_variants_and_methods_nobody_titled():
    rows, mri = campaign()
    extra = [replace(r, variant="paper") for r in rows if r.method == "fine_tune"]
    extra += [replace(r, method="mine") for r in rows if r.method == "lwf"]
    mri += [replace(r, variant="paper", mri=2.0) for r in mri if r.method == "fine_tune"]
    mri += [replace(r, method="mine", mri=1.0) for r in mri if r.method == "lwf"]
    ranking = arrange(rows + extra, mri)
    assert [line.title for line in ranking.lines] == ["FT", "FT (paper)", "LwF", "WiSE-FT", "mine"]
    assert [line.title for line in ranking.ranked()] == [
        "WiSE-FT",
        "LwF",
        "FT",
        "FT (paper)",
        "mine",
    ]


def test_table_shows_every_number_in_place():
    rows, mri = campaign()
    ranking = arrange(rows, mri)
    text = table([ranking], ["a sample"])
    assert text.endswith("\n\nnote: a sample")
    lines = text.splitlines()
    (before,) = [line.split() for line in lines if line.startswith("pre-trained")]
    assert before == ["pre-trained", "%", "64.0", "46.0", "10.0", "8.0"]
    for ranked in ranking.lines:
        (printed,) = [line for line in lines if line.startswith(ranked.title + " ")]
        numbers = [float(x) for x in re.findall(r"[-+]?\d+\.\d", printed.replace("−", "-"))]
        row = ranked.mri
        expected = [*(ranked.ri[name] for name in ranking.sets), row.mri, row.mri_low, row.mri_high]
        assert numbers == pytest.approx(expected, abs=0.051)
    assert set(text) - {"─"} <= set(map(chr, range(128)))


@given(
    st.lists(st.text("abcdefgh-_", min_size=1, max_size=30), min_size=8, max_size=8, unique=True),
    st.floats(-99, 99),
)
def test_table_fits_the_terminal_and_is_aligned(sets, change):
    rows = [Accuracy("m", PRE, "", None, "", "", name, 1, 50.0) for name in sets]
    arm = ("m", "greedy_soup", "canonical", None, "")
    rows += [Accuracy(*arm, i, j, 1, 50.0 + change) for i in sets for j in sets]
    mri = [Mri(*arm, change, change, change)]
    methods = {"greedy_soup": "Greedy soup"}
    text = table(standings(rows, mri, sets=sets, upstream="", methods=methods))
    lines = text.splitlines()
    rule = next(len(line) for line in lines if line.startswith("─"))
    assert rule <= 100 and max(map(len, lines)) <= 100
    assert len(lines[-1]) == rule
    numbers = [float(x) for x in re.findall(r"[-+]?\d+\.\d", lines[-1])]
    assert numbers == pytest.approx([change] * 11, abs=0.051)


def test_an_interpolation_of_one_alpha_is_in_the_table():
    rows, mri = campaign()
    ranking = arrange(
        [replace(row, alpha=0.3) for row in rows if row.alpha in (None, 0.5) and row.method != PRE]
        + [row for row in rows if row.method == PRE],
        [replace(row, alpha=0.3) for row in mri if row.headline],
    )
    assert "WiSE-FT, alpha 0.3" in [line.title for line in ranking.lines] and ranking.curves == ()


def test_a_grid_of_two_sets_and_one_method_is_written_in_the_singular():
    pair, arm = ("flat", "mono"), ("lite0", "lwf", "canonical", None, "")
    rows = [row for row in campaign()[0] if row.method == PRE]
    rows += [Accuracy(*arm, i, j, 100, BEFORE[j] + 1) for i in pair for j in (*pair, "up")]
    models = standings(rows, [Mri(*arm, 1.0, 0, 2.0)], sets=pair, upstream="up", methods=METHODS)
    finding = headline.finding(models[0])
    assert "LwF has an mRI of +1.0 points on the one set a model was not fine-tuned on" in finding
    assert "in accuracy on the 1 other set, in points" in table(models)
    nothing = replace(models[0], lines=())
    assert headline.finding(nothing) == "No method has been fine-tuned on every set yet."


@pytest.mark.parametrize(
    ("shift", "words"),
    [
        (
            {"fine_tune": 3.0, "lwf": 9.0},
            ["LwF has the highest of two mRIs", "three sets", "not corrected for the choice"],
        ),
        ({"fine_tune": 9.0, "lwf": 3.0}, ["FT has the highest", "the next is LwF with +"]),
        ({"fine_tune": -9.0, "lwf": -3.0}, ["LwF has the highest", "plain fine-tuning has −"]),
        ({"lwf": 5.0}, ["LwF has an mRI of", "95% interval"]),
        ({}, ["No method has been fine-tuned on every set yet"]),
    ],
)
def test_finding(shift, words):
    rows, mri = campaign(shift or {"lwf": 1.0})
    if not shift:
        rows, mri = [row for row in rows if row.method == PRE], []
    text = headline.finding(arrange(rows, mri))
    assert all(word in text for word in words), text


def test_published_numbers_are_the_slides():
    models = recipe.published()["models"]
    assert {len(entry["mri"]) for entry in models.values() if "mri" in entry} == {9}
    assert models["IN-1K+AugReg"]["mri"]["soup"] == 3.9
    before, after = (models["OpenAI"][key] for key in ("before", "fine_tuned_on_val"))
    assert after["IN-A"] - before["IN-A"] == pytest.approx(-33.4, abs=0.05)
    assert all(
        set(entry["before"]) == set(entry["fine_tuned_on_val"])
        for entry in models.values()
        if "before" in entry
    )


def test_the_benchmarks_sets_head_columns_in_full():
    sets = recipe.load("imagenet_rib").dataset.sets
    row = ["Visual prompt", *["-12.4"] * 9, "[-12.5, -10.2]"]
    text = console.text("", ["", *map(set_head, sets), "mRI", "95% interval"], [row])
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    heads = "\n".join(lines[:2]).split()
    assert heads.count("IN") == 7 and {"v2", "objectnet", "cartoon", "interval"} <= set(heads)
