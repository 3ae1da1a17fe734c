"""The terminal's comparisons, the sentence on what can be told apart, and the CSV files."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

import numpy as np
from made_results import of_evaluations
from stores import in_settings, random_hits, several_seeds

from engine.measures import behaviour
from engine.report import headline, terminal
from engine.report.finish import tables

TITLES = {"fine_tune": "FT", "lwf": "L<w>F", "ewc": "EWC & co"}
MODEL = "lite0"


def worked_out(folder, hits, methods=tuple(TITLES), setting=""):
    return of_evaluations(in_settings(folder, {setting: hits}, methods), methods=TITLES)


def strong(gain: dict[str, float], n: int = 60, seed: int = 0):
    """Hits of nested models: a stronger one gets all that a weaker one gets, and more."""
    rank = np.random.default_rng(seed).random(n)
    return lambda method, *_: rank < 0.3 + gain.get(method, 0.0)


def test_comparison_is_with_the_best_or_with_the_named_method(tmp_path):
    gain = strong({"fine_tune": 0.1, "lwf": 0.2, "ewc": 0.5})
    results = worked_out(tmp_path / "all", gain)
    text = terminal.comparisons(results, MODEL)
    assert max(map(len, text.splitlines())) <= 100 and "source images like these" in text
    assert "Against EWC & co" in text and "(Holm) for 3" in " ".join(text.split())
    named = terminal.comparisons(results, MODEL, "fine_tune")
    assert "Against FT" in named and "(Holm) for 3" in " ".join(named.split())
    (row,) = re.findall(r"EWC & co +\S+ +(\S+) +\[.*\] +\S+ +(\S+) +(\d) +(\d)", named)
    assert float(row[0]) > 0 and row[2:] == ("3", "0")
    (with_best,) = re.findall(r"FT +\S+ +\S+ +\[.*\] +\S+ +(\S+) +\d +\d", text)
    assert row[1] == with_best  # the same pair has the same corrected p in both tables


def test_those_that_the_images_cannot_tell_from_the_best_are_named(tmp_path):
    results = worked_out(tmp_path / "near", strong({"ewc": 0.5, "lwf": 0.48, "fine_tune": 0.1}))
    assert headline.lead(results) == (
        "L<w>F cannot be told from EWC & co (a paired test at 5%, corrected for 3 comparisons; 1 "
        "training seed). Every method fine-tunes the pre-trained lite0 on each of 3 sets in turn "
        "and is evaluated on the 2 other sets."
    )
    results = worked_out(tmp_path / "same", strong({}))
    assert "L<w>F and EWC & co cannot be told" in headline.told_apart(results, MODEL)
    apart = dataclasses.replace(results, comparisons=results.comparisons[:0])  # by their settings
    assert headline.told_apart(apart, MODEL).startswith("No other row has the setting of ")
    assert headline.lead(apart).startswith("Every method")
    far, alone = strong({"ewc": 0.6, "lwf": 0.3}), worked_out(tmp_path, strong({}), ("ewc",))
    for setting, suffix in (("", ""), ("dataset.shots=1", " of its setting")):
        text = headline.told_apart(
            worked_out(tmp_path / f"far{setting}", far, setting=setting), MODEL
        )
        assert text.endswith(f" can be told from every other method{suffix}")
    assert headline.lead(alone).startswith("Every method")
    assert "no finished method" in terminal.comparisons(alone, MODEL, "lwf")


def test_csv_files_hold_every_row(tmp_path):
    files = tables(worked_out(tmp_path / "grid", random_hits()))
    # Of 3 methods: 4 sets x 3 cells, 4 means on a set, 3 over the others (RI) and 1 of both (mRI);
    # of the pre-trained model 4 cells and their mean. 3 pairs, overall and on 3 sets.
    counts = Counter(files["intervals.csv"]["quantity"])
    assert [counts[name] for name in ("accuracy", "RI", "mRI")] == [65, 9, 3]
    assert [counts[name] for name in behaviour.OF_CHANGES] == [60] * 4
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
    table = tables(of_evaluations(cells))["seeds.csv"]
    assert ",".join(table.columns) == (
        "model,method,variant,alpha,setting,downstream,evaluated_on,seed,n,accuracy"
    )
    assert set(table["seed"]) == {0, 7}
