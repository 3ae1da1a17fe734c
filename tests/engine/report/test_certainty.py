"""Uncertainty in tables, in the report's section and in the headline's sentence."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from stores import SETS, grid, random_hits

from engine.measures import metrics
from engine.measures.rows import Agreement
from engine.measures.standings import rounded, standings
from engine.report import certainty

TITLES = {"fine_tune": "FT", "lwf": "L<w>F", "ewc": "EWC & co"}


def worked_out(folder, hits, methods=tuple(TITLES), sets=SETS):
    read = metrics.gather(grid(folder, hits, methods, sets))
    summary = metrics.summarise(read, sets)
    uncertainty = certainty.Certainty.of(read, summary, sets, "up")
    (ranking,) = standings(summary.accuracy, summary.mri, sets=sets, upstream="up", methods=TITLES)
    return ranking, uncertainty


def strong(gain: dict[str, float], n: int = 60, seed: int = 0):
    """Hits of nested models: a stronger one gets all that a weaker one gets, and more."""
    rank = np.random.default_rng(seed).random(n)
    return lambda method, *_: rank < 0.3 + gain.get(method, 0.0)


def test_tables_fit_and_hold_the_numbers(tmp_path):
    sets = tuple(f"a-very-long-name-of-set-{k}" for k in range(8))
    ranking, uncertainty = worked_out(tmp_path, random_hits(), sets=sets)
    tables = [
        certainty.interval_table(ranking, uncertainty),
        certainty.comparison_table(ranking, uncertainty),
        certainty.behaviour_table(ranking, uncertainty),
    ]
    for text in tables:
        assert max(map(len, text.splitlines())) <= 100
    for text in tables[:2]:
        assert "source images like these" in " ".join(text.split())
    best = ranking.ranked()[0]
    row = next(line for line in tables[0].splitlines() if line.startswith(best.title))
    assert row.split()[-1] == f"{best.mri.mri:+.1f}"
    ends = next(
        i for i in uncertainty.intervals if (i.quantity, i.method) == ("mRI", best.arm.method)
    )
    below = tables[0].splitlines()[tables[0].splitlines().index(row) + 1]
    assert below.split()[-1] == f"±{(ends.high - ends.low) / 2:.1f}"


def test_comparison_is_with_the_best_or_with_the_named_method(tmp_path):
    gain = strong({"fine_tune": 0.1, "lwf": 0.2, "ewc": 0.5})
    ranking, uncertainty = worked_out(tmp_path / "all", gain)
    text = certainty.comparison_table(ranking, uncertainty)
    assert "Against EWC & co" in text and "(Holm) for 3" in " ".join(text.split())
    named = certainty.comparison_table(ranking, uncertainty, "fine_tune")
    assert "Against FT" in named and "(Holm) for 3" in " ".join(named.split())
    (row,) = re.findall(r"EWC & co +\S+ +(\S+) +\[.*\] +\S+ +(\S+) +(\d) +(\d)", named)
    assert float(row[0]) > 0 and row[2:] == ("3", "0")
    (with_best,) = re.findall(r"FT +\S+ +\S+ +\[.*\] +\S+ +(\S+) +\d +\d", text)
    assert row[1] == with_best  # the same pair has the same corrected p in both tables


def test_the_sentence_names_those_that_the_images_cannot_tell_from_the_best(tmp_path):
    ranking, uncertainty = worked_out(
        tmp_path / "near", strong({"ewc": 0.5, "lwf": 0.48, "fine_tune": 0.1})
    )
    assert certainty.indistinguishable(ranking, uncertainty) == (
        "On these images L<w>F cannot be told from it (a paired test at 5%, corrected for 3 "
        "comparisons; one training seed)."
    )
    ranking, uncertainty = worked_out(tmp_path / "same", strong({}))
    assert "L<w>F and EWC & co cannot be told" in certainty.indistinguishable(ranking, uncertainty)
    ranking, uncertainty = worked_out(tmp_path / "far", strong({"ewc": 0.6, "lwf": 0.3}))
    assert certainty.indistinguishable(ranking, uncertainty).startswith(
        "Every other method can be told"
    )
    ranking, uncertainty = worked_out(tmp_path / "alone", strong({}), ("ewc",))
    assert certainty.indistinguishable(ranking, uncertainty) == ""
    assert "no finished method" in certainty.comparison_table(ranking, uncertainty, "lwf")


def test_one_other_set_and_one_comparison_are_singular(tmp_path):
    ranking, uncertainty = worked_out(tmp_path, random_hits(), ("fine_tune", "lwf"), ("a", "b"))
    texts = [
        certainty.comparison_table(ranking, uncertainty),
        certainty.indistinguishable(ranking, uncertainty),
    ]
    for text in texts:
        flat = " ".join(text.split())
        assert "for 1 comparison" in flat and "1 comparisons" not in flat


def test_on_a_sample_the_weights_say_who_is_better(tmp_path):
    """Ten sources stand for twenty times as many images as each of the others."""
    heavy = np.arange(60) < 20
    right = {"fine_tune": ~heavy, "lwf": heavy, "pre": np.arange(60) % 3 == 0}
    cells = grid(
        tmp_path,
        lambda method, *_: right[method],
        ("fine_tune", "lwf"),
        weight=np.where(heavy, 20.0, 1.0),
    )
    read = metrics.gather(cells)
    summary = metrics.summarise(read, SETS)
    uncertainty = certainty.Certainty.of(read, summary, SETS, "up")
    assert all(row.difference < 0 and row.p < 0.01 for row in uncertainty.comparisons)


def test_csv_files_hold_every_row(tmp_path):
    _, uncertainty = worked_out(tmp_path / "grid", random_hits())
    certainty.write_csv(tmp_path, uncertainty)
    read = {}
    for name in ("intervals", "comparisons", "behaviour"):
        with (tmp_path / f"{name}.csv").open(newline="") as file:
            read[name] = list(csv.DictReader(file))
    # 4 sets x (1 + 3 x 3) accuracies, 9 RI, 3 mRI; 3 pairs, overall and on 3 sets
    counts = Counter(row["quantity"] for row in read["intervals"])
    assert [counts[name] for name in ("accuracy", "RI", "mRI")] == [40, 9, 3]
    # of all cells but the pre-trained model's, their means a method, and a method's on each set
    shares = 36 + 3 + 3 * 4
    assert [counts[name] for name in ("same_top1", "both_right", "lost", "gained")] == [shares] * 4
    assert counts["calibration_error"] == counts["effective_robustness"] == 0
    assert counts["change"] == 9 + 3
    assert [len(read[name]) for name in ("comparisons", "behaviour")] == [3 + 9, 40]
    row = read["comparisons"][0]
    assert (row["method"], row["against_method"], row["evaluated_on"]) == ("fine_tune", "lwf", "")
    assert float(row["low"]) <= float(row["difference"]) <= float(row["high"])
    assert float(row["p"]) <= float(row["p_corrected"]) <= 1
    assert read["behaviour"][0]["same_top1"] == "" != read["behaviour"][-1]["same_top1"]


WITHOUT_TORCH = """
import sys

class NoTorch:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "torch":
            raise ImportError(name)

sys.meta_path.insert(0, NoTorch())
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
import stores
from engine.measures import metrics
from engine.report import certainty, finish, sections
folder = Path(sys.argv[3])
cells = stores.grid(folder / "store", stores.random_hits(), methods=["a", "b"])
found = metrics.gather(cells)
summary = metrics.summarise(found, stores.SETS)
metrics.write_csv(folder, summary)
certainty.write_csv(folder, certainty.Certainty.of(found, summary, stores.SETS, "up"))
"""


def test_everything_is_computed_from_the_store_where_there_is_no_torch(tmp_path):
    """Accuracy, RI, mRI, intervals, comparisons and behaviour are those of a run with torch."""
    without_torch, with_torch = tmp_path / "there", tmp_path / "here"
    tests = Path(__file__).resolve().parents[2]
    for folder in (without_torch, with_torch):
        folder.mkdir()
    words = [sys.executable, "-c", WITHOUT_TORCH, tests, tests.parent, without_torch]
    subprocess.run(list(map(str, words)), check=True)
    cells = metrics.gather(grid(with_torch / "store", random_hits(), methods=["a", "b"]))
    summary = metrics.summarise(cells, SETS)
    metrics.write_csv(with_torch, summary)
    certainty.write_csv(with_torch, certainty.Certainty.of(cells, summary, SETS, "up"))
    files = sorted(path.name for path in with_torch.glob("*.csv"))
    assert {"accuracy.csv", "behaviour.csv", "comparisons.csv", "intervals.csv"} < set(files)
    for name in files:
        assert (without_torch / name).read_bytes() == (with_torch / name).read_bytes(), name


def test_every_table_has_the_intervals_of_its_numbers(tmp_path):
    """Answers kept, lost and gained."""
    ranking, uncertainty = worked_out(tmp_path, random_hits())
    line = ranking.lines[0]
    ends = [uncertainty.interval(name, line.arm) for name in Agreement._fields]
    halves = [f"±{rounded((high - low) / 2)}" for low, high in filter(None, ends)]
    assert len(set(halves)) > 2 and "±0.0" not in halves
    lines = certainty.behaviour_table(ranking, uncertainty).splitlines()
    (at,) = [k for k, text in enumerate(lines) if text.startswith(f"{line.title} ")]
    assert lines[at + 1].split() == halves
