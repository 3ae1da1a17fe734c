"""The terminal's comparisons, the sentence on what can be told apart, and the CSV files."""

import dataclasses
import re
from collections import Counter

import numpy as np

from engine.measures import scores
from engine.report import headline, terminal
from engine.report.finish import tables
from engine.report.results import Results, of_grid
from engine.report.sections import about, paired, ranking
from helpers.made_results import of_arms, of_evaluations
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
    assert row[1] == with_best  # the same pair has the same corrected p in both tables


def test_those_that_are_not_significantly_different_from_the_best_are_named():
    assert headline.lead(of_methods(fine_tune=40, lwf=79.9, ewc=80)) == (
        "In this one training, L<w>F does not differ significantly from EWC & co (paired tests "
        "at 5%, corrected for 3 comparisons; 1 training seed). The interval of the highest mRI is "
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
    assert row["low"] <= row["difference"] <= row["high"]
    assert row["p"] <= row["p_corrected"] <= 1
    same = files["behaviour.csv"]["same_top1"]
    assert np.isnan(same.iloc[0]) and not np.isnan(same.iloc[-1])
    key = "model,method,variant,alpha,setting"
    heads = {name: ",".join(table.columns) for name, table in files.items()}
    assert heads["accuracy.csv"] == f"{key},downstream,evaluated_on,n,accuracy,headline"
    assert heads["mri.csv"] == f"{key},mri,mri_low,mri_high,headline"
    assert heads["intervals.csv"] == f"{key},downstream,evaluated_on,quantity,value,low,high"
    assert heads["comparisons.csv"] == (
        f"{key},against_method,against_variant,against_alpha,evaluated_on,difference,low,high,p,"
        "p_corrected"
    )


def test_several_seeds_have_a_file(tmp_path):
    cells = several_seeds(tmp_path, lambda seed: random_hits(seed=seed), (0, 7))
    results = of_evaluations(cells)
    assert "They also cover 2 training seeds." in about.how_to_read(results).text
    table = tables(results)["seeds.csv"]
    assert ",".join(table.columns) == (
        "model,method,variant,alpha,setting,downstream,evaluated_on,seed,n,accuracy"
    )
    assert set(table["seed"]) == {0, 7}
