"""Tables in the terminal, the sentences that a report begins with, and the CSV files."""

import dataclasses
import re
from collections import Counter

import numpy as np
import pytest

from engine.measures import scores
from engine.measures.rows import PRE
from engine.recipe.resolve import load_recipe
from engine.report import console, headline, terminal
from engine.report.number_files import tables
from engine.report.results import Results, of_grid
from engine.report.sections import about, paired, ranking
from engine.report.text import set_head
from helpers.made_results import of_arms, of_cells, of_evaluations
from helpers.stores import grid, random_hits, several_seeds

TITLES = {"fine_tune": "FT", "lwf": "L<w>F", "ewc": "EWC & co"}
MODEL = "lite0"


def of_methods(setting: str = "", **accuracies: float) -> Results:
    """Methods of the same accuracy on every set, where the pretrained model has 30%."""
    arms = {(method, None, setting): (of, of) for method, of in accuracies.items()}
    return of_arms(arms, before=30, methods=TITLES)


def test_comparison_is_with_the_best_or_with_the_named_method():
    results = of_methods(fine_tune=40, lwf=50, ewc=80)
    text = terminal.comparisons(results, MODEL)
    assert max(map(len, text.splitlines())) <= 100
    assert "source images like these" in " ".join(text.split())
    assert "Against EWC & co" in text and "(Holm) for 3" in " ".join(text.split())
    named = terminal.comparisons(results, MODEL, "fine_tune")
    assert "Against FT" in named and "(Holm) for 3" in " ".join(named.split())
    (row,) = re.findall(r"EWC & co +\S+ +(\S+) +\[.*\] +\S+ +(\S+) +(\d) +(\d)", named)
    assert row[0] == "+40.0" and row[2:] == ("3", "0")
    (with_best,) = re.findall(r"FT +\S+ +\S+ +\[.*\] +\S+ +(\S+) +\d +\d", text)
    assert row[1] == with_best  # the same pair has the same adjusted p in both tables


def test_those_that_are_not_significantly_different_from_the_best_are_named():
    assert headline.lead(of_methods(fine_tune=40, lwf=79.9, ewc=80)) == (
        "In this one training, L<w>F does not differ significantly from EWC & co (paired tests "
        "at 5%, adjusted for 3 comparisons; 1 training seed). The interval of the highest mRI is "
        "not adjusted for the selection of the method. Every method fine-tunes the pretrained "
        "lite0 on each of 3 datasets in turn and is evaluated on the 2 other datasets; mRI is the "
        "mean change in accuracy, in percentage points."
    )
    results = of_methods(fine_tune=40, lwf=40, ewc=40)
    assert "L<w>F and EWC & co do not differ significantly" in headline.told_apart(results, MODEL)
    apart = dataclasses.replace(results, comparisons=results.comparisons[:0])  # by their settings
    assert headline.told_apart(apart, MODEL).startswith("No other method has the setting of ")
    for setting, suffix in (("", ""), ("dataset.shots=1", " of its setting")):
        text = headline.told_apart(of_methods(setting, fine_tune=40, lwf=60, ewc=80), MODEL)
        assert text.startswith("In this one training, EWC & co")
        assert text.endswith(
            f" has a higher mRI on images like these than every other method{suffix}"
        )
    alone = of_methods(ewc=40)
    for made in (apart, alone):
        assert headline.lead(made).startswith("Every method")
    assert "No finished method" in terminal.comparisons(alone, MODEL, "lwf")


def shown(results: Results) -> list[str]:
    """All that orders methods: the first screen, the terminal, headings and captions."""
    first = [headline.finding(results, MODEL), headline.told_apart(results, MODEL)]
    text = [terminal.table(results), terminal.comparisons(results, MODEL)]
    made = [ranking.methods(results), ranking.trade_off(results), paired.best(results)]
    of_sections = [section.heading for section in made]
    tables = [table.caption for section in (made[0], made[2]) for table in section.tables]
    figures = [section.figures[0].caption for section in (made[0], made[2])]
    return [*first, *text, *of_sections, *tables, *figures]


def test_what_orders_methods_says_that_it_is_of_one_training():
    results = of_methods(fine_tune=40, lwf=60, ewc=80)
    for text in shown(results):
        assert "one training" in " ".join(text.split()), text
        assert "significantly better" not in text
    again = np.where(results.grid.cells["downstream"] == "a", 0.0, np.nan)
    again += results.grid.cells["accuracy"].to_numpy() + np.arange(len(again)) % 3 / 100
    replicated = of_grid(results.record, dataclasses.replace(results.grid, again=again))
    for text in shown(replicated):
        assert "one training" not in " ".join(text.split()), text
    text = headline.told_apart(replicated, MODEL)
    assert text == "EWC & co is significantly better than every other method"
    assert "1 training seed and a seed replicate" in headline.lead(replicated)
    assert "other training seeds, estimated from a second one on a;" in replicated.population_of_mri
    assert "Models on a were trained a second time" in about.how_to_read(replicated).text


def test_csv_files_hold_every_row(tmp_path):
    files = tables(of_evaluations(grid(tmp_path, random_hits(), tuple(TITLES)), methods=TITLES))
    # Of 3 methods: 4 sets x 3 cells, 4 means on a set, 3 over the others (RI) and 1 of both (mRI);
    # of the pretrained model 4 cells and their mean. 3 pairs, overall and on 3 sets.
    counts = Counter(files["intervals.csv"]["quantity"])
    assert [counts[name] for name in ("accuracy", "RI", "mRI")] == [65, 9, 3]
    assert [counts[name] for name in scores.names(scores.BEFORE_AFTER)] == [60] * 4
    assert counts["calibration_error"] == counts["effective_robustness"] == 0
    assert counts["change"] == 48
    assert [len(files[f"{name}.csv"]) for name in ("comparisons", "behaviour")] == [3 + 9, 40]
    row = files["comparisons.csv"].iloc[0]
    assert (row["method"], row["against_method"], row["evaluated_on"]) == ("fine_tune", "lwf", "")
    assert row["difference_low"] <= row["difference_pts"] <= row["difference_high"]
    assert row["p"] <= row["adjusted_p"] <= 1
    same = files["behaviour.csv"]["agreement_pct"]
    assert np.isnan(same.iloc[0]) and not np.isnan(same.iloc[-1])
    key = "model,method,variant,alpha,setting"
    heads = {name: ",".join(table.columns) for name, table in files.items()}
    assert heads["accuracy.csv"] == f"{key},downstream,evaluated_on,images,accuracy_pct,headline"
    assert heads["mri.csv"] == f"{key},mRI_pts,mRI_low,mRI_high,headline"
    assert heads["intervals.csv"] == f"{key},downstream,evaluated_on,quantity,value,low,high"
    assert heads["comparisons.csv"] == (
        f"{key},against_method,against_variant,against_alpha,evaluated_on,difference_pts,"
        "difference_low,difference_high,p,adjusted_p"
    )


def test_several_seeds_have_a_file(tmp_path):
    cells = several_seeds(tmp_path, lambda seed: random_hits(seed=seed), (0, 7))
    results = of_evaluations(cells)
    assert "They also cover 2 training seeds." in about.how_to_read(results).text
    table = tables(results)["seeds.csv"]
    assert ",".join(table.columns) == (
        "model,method,variant,alpha,setting,downstream,evaluated_on,seed,images,accuracy_pct"
    )
    assert set(table["seed"]) == {0, 7}


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
            arm, is_row = ("lite0", method, "original", alpha, ""), alpha in (None, 0.5)
            cells += [
                (*arm, i, j, BEFORE[j] + (30 if i == j else mean) + rng.normal(), is_row)
                for i in SETS
                for j in BEFORE
            ]
    return cells


def arranged(cells) -> Results:
    return of_cells(cells, sets=SETS, downstreams=SETS, methods=METHODS)


def test_the_order_of_sets_and_rows_and_every_mean():
    made = arranged(campaign())
    assert [*made.before("lite0")] == ["flat", "twemoji", "emojione-monotone", "mono", "up"]
    assert list(made.shown["method"]) == ["FT", "LwF", "WiSE-FT"]
    assert list(made.arms["alpha"].dropna()) == [0.0, 0.5, 1.0]
    assert list(made.ranked()["method"]) == ["WiSE-FT", "LwF", "FT"]
    ft = made.shown.iloc[0]
    after = made.cells[made.cells["method"] == "FT"].set_index(["downstream", "evaluated_on"])
    mean_before = np.mean([BEFORE[name] for name in SETS])
    assert ft["OOD_accuracy_pct"] == pytest.approx(ft["mRI_pts"] + mean_before)
    on_own = np.mean([after.loc[(name, name), "accuracy"] for name in SETS])
    assert ft["downstream_accuracy_pct"] == pytest.approx(on_own)
    change = np.mean([after.loc[(name, "up"), "accuracy"] - 95 for name in SETS])
    assert ft["change_upstream_pts"] == pytest.approx(change)


def test_rows_name_variants_and_methods_nobody_titled():
    cells = campaign()
    cells += [(*c[:2], "released", *c[3:7], c[7] - 1) for c in cells if c[1] == "fine_tune"]
    cells += [("lite0", "mine", *c[2:7], c[7] - 4) for c in cells if c[1] == "lwf"]
    made = arranged(cells)
    assert list(made.shown["method"]) == ["FT", "FT (released)", "LwF", "WiSE-FT", "mine"]
    assert list(made.ranked()["method"]) == ["WiSE-FT", "LwF", "FT", "FT (released)", "mine"]


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
    text = console.text("", ["", *map(set_head, sets), "mRI", "95% interval"], [row])
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    heads = "\n".join(lines[:2]).split()
    words = " ".join(map(set_head, sets)).split()
    assert sorted(heads) == sorted([*words, "mRI", "95%", "interval"])


def test_numbers_stand_right_under_heads_with_a_word_a_line():
    table = console.text(
        "lite0", ["", "high contrast", "mRI"], [["FT", "+8.2", "-0.1"], ["LP", "-", ""]]
    )
    assert table.splitlines() == [
        "lite0",
        "",
        "        high",
        "    contrast   mRI",
        "──────────────────",
        "FT      +8.2  -0.1",
        "LP         -",
    ]


def test_numbers_too_wide_for_the_terminal_are_whole_and_heads_too():
    table = console.text("", ["", *["images"] * 12], [["a row", *["[-12.5, -10.2]"] * 12]])
    heads, _, row = table.splitlines()
    assert heads.split() == ["images"] * 12
    assert row.startswith("a row ") and row.count(" [-12.5, -10.2]") == 12


def test_words_wrap_and_are_taken_literally():
    reason = "the quick brown fox :smile: jumps [b]over[/b] " * 5
    table = console.text(
        "", ["job", "GPU hours", "reason"], [["a/b", "1.2", reason], ["c", "-", "none"]]
    )
    lines = table.splitlines()
    assert max(map(len, lines)) <= console.WIDTH
    assert " ".join(" ".join(lines[3:-1]).split()) == f"a/b 1.2 {reason.strip()}"
    assert lines[-1].split() == ["c", "-", "none"]
