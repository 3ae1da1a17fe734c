"""The terminal's tables, the headline's sentence on what can be told apart, and the CSV files."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import made_results
import numpy as np
from made_results import of_evaluations
from stores import SETS, grid, random_hits, several_seeds

from engine.measures import behaviour
from engine.report import finish, headline, terminal
from engine.report.finish import tables
from engine.report.text import rounded

TITLES = {"fine_tune": "FT", "lwf": "L<w>F", "ewc": "EWC & co"}
MODEL = "lite0"


def worked_out(folder, hits, methods=tuple(TITLES), sets=SETS):
    names = {"sets": list(sets), "downstreams": list(sets), "methods": TITLES}
    return of_evaluations(grid(folder, hits, methods, sets), **names)


def strong(gain: dict[str, float], n: int = 60, seed: int = 0):
    """Hits of nested models: a stronger one gets all that a weaker one gets, and more."""
    rank = np.random.default_rng(seed).random(n)
    return lambda method, *_: rank < 0.3 + gain.get(method, 0.0)


def test_tables_fit_and_hold_the_numbers(tmp_path):
    sets = tuple(f"a-very-long-name-of-set-{k}" for k in range(8))
    results = worked_out(tmp_path, random_hits(), sets=sets)
    texts = [
        terminal.intervals(results, MODEL),
        terminal.comparisons(results, MODEL),
        terminal.behaviour(results, MODEL),
    ]
    for text in texts:
        assert max(map(len, text.splitlines())) <= 100
    for text in texts[:2]:
        assert "source images like these" in " ".join(text.split())
    best = results.ranked(MODEL).iloc[0]
    lines = texts[0].splitlines()
    row = next(line for line in lines if line.startswith(best["method"]))
    assert row.split()[-1] == f"{best['mRI_pts']:+.1f}"
    below = lines[lines.index(row) + 1]
    assert below.split()[-1] == f"±{(best['mRI_high'] - best['mRI_low']) / 2:.1f}"
    means, halves = results.grid.mean(results.grid.elsewhere, ["arm"]), []
    for name in behaviour.OF_CHANGES:
        row = means.table("x", name).set_index("arm").loc[best["arm"]]
        halves.append(f"±{rounded((row['x_high'] - row['x_low']) / 2)}")
    lines = texts[2].splitlines()
    (at,) = [k for k, line in enumerate(lines) if line.startswith(f"{best['method']} ")]
    assert len(set(halves)) > 2 and lines[at + 1].split() == halves


def test_comparison_is_with_the_best_or_with_the_named_method(tmp_path):
    gain = strong({"fine_tune": 0.1, "lwf": 0.2, "ewc": 0.5})
    results = worked_out(tmp_path / "all", gain)
    text = terminal.comparisons(results, MODEL)
    assert "Against EWC & co" in text and "(Holm) for 3" in " ".join(text.split())
    named = terminal.comparisons(results, MODEL, "fine_tune")
    assert "Against FT" in named and "(Holm) for 3" in " ".join(named.split())
    (row,) = re.findall(r"EWC & co +\S+ +(\S+) +\[.*\] +\S+ +(\S+) +(\d) +(\d)", named)
    assert float(row[0]) > 0 and row[2:] == ("3", "0")
    (with_best,) = re.findall(r"FT +\S+ +\S+ +\[.*\] +\S+ +(\S+) +\d +\d", text)
    assert row[1] == with_best  # the same pair has the same corrected p in both tables


def test_the_sentence_names_those_that_the_images_cannot_tell_from_the_best(tmp_path):
    results = worked_out(tmp_path / "near", strong({"ewc": 0.5, "lwf": 0.48, "fine_tune": 0.1}))
    assert headline.indistinguishable(results, MODEL) == (
        "On these images L<w>F cannot be told from it (a paired test at 5%, corrected for 3 "
        "comparisons; one training seed)."
    )
    results = worked_out(tmp_path / "same", strong({}))
    assert "L<w>F and EWC & co cannot be told" in headline.indistinguishable(results, MODEL)
    results = worked_out(tmp_path / "far", strong({"ewc": 0.6, "lwf": 0.3}))
    assert headline.indistinguishable(results, MODEL).startswith("Every other method can be told")
    results = worked_out(tmp_path / "alone", strong({}), ("ewc",))
    assert headline.indistinguishable(results, MODEL) == ""
    assert "no finished method" in terminal.comparisons(results, MODEL, "lwf")


def test_csv_files_hold_every_row(tmp_path):
    files = tables(worked_out(tmp_path / "grid", random_hits()))
    # 4 sets x (1 + 3 x 3) accuracies, 9 RI, 3 mRI; 3 pairs, overall and on 3 sets
    counts = Counter(files["intervals.csv"]["quantity"])
    assert [counts[name] for name in ("accuracy", "RI", "mRI")] == [40, 9, 3]
    # of all cells but the pre-trained model's, their means a method, and a method's on each set
    shares = 36 + 3 + 3 * 4
    assert [counts[name] for name in behaviour.OF_CHANGES] == [shares] * 4
    assert counts["calibration_error"] == counts["effective_robustness"] == 0
    assert counts["change"] == 9 + 3
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


WITHOUT_TORCH = """
import sys

class NoTorch:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "torch":
            raise ImportError(name)

sys.meta_path.insert(0, NoTorch())
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
import made_results
from engine.report.finish import write_into
folder = Path(sys.argv[3])
write_into(folder / "report", made_results.results(folder / "store"))
"""


def test_everything_is_computed_from_the_store_where_there_is_no_torch(tmp_path):
    """Accuracy, RI, mRI, intervals, comparisons and behaviour are those of a run with torch."""
    without_torch, with_torch = tmp_path / "there", tmp_path / "here"
    tests = Path(__file__).resolve().parents[2]
    for folder in (without_torch, with_torch):
        folder.mkdir()
    words = [sys.executable, "-c", WITHOUT_TORCH, tests, tests.parent, without_torch]
    subprocess.run(list(map(str, words)), check=True)
    finish.write_into(with_torch / "report", made_results.results(with_torch / "store"))
    files = sorted(path.name for path in (with_torch / "report").iterdir() if path.is_file())
    assert {"accuracy.csv", "behaviour.csv", "intervals.csv", "index.html"} < set(files)
    for name in files:
        here, there = (folder / "report" / name for folder in (with_torch, without_torch))
        assert here.read_bytes() == there.read_bytes(), name
