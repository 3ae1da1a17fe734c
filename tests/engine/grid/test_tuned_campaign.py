"""A small campaign of equal tuning, from training to the page: what was chosen, and by what."""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import fmean

import campaigns
import grids
import pytest

pytestmark = pytest.mark.slow
folder, grid, SETS = campaigns.folder, grids.grid, campaigns.SETS
DOWNSTREAMS = ("outline", "few")
TUNED = "downstreams: [outline, few]\nvary: {optimizer.lr: [0.02, 0.5]}\n"
ROWS = "  strong: {base: strong_fine_tune, title: FT (strong), optimizer: {lr: 0.5}}\n"
PLAIN = {"FT": "optimizer.lr=0.02", "FT (strong)": "optimizer.lr=0.5"}
KEYS = {"FT": "fine_tune", "FT (strong)": "strong", "WiSE-FT": "wise_ft"}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_each_method_has_the_rate_that_is_best_on_the_hold_out(
    folder: Path, grid: grids.Grid
) -> None:
    whole = (folder / "shapes.yaml").read_text().replace("  linear_probe: {}\n", ROWS)
    (folder / "tuned.yaml").write_text(whole + TUNED)
    report = campaigns.run(folder, name="tuned")
    accuracy = {
        (row["method"], row["setting"], row["downstream"], row["evaluated_on"]): float(
            row["accuracy"]
        )
        for row in rows(report / "accuracy.csv")
        if row["headline"] == "True"
    }

    def ri(method: str, rate: str, name: str) -> float:
        others = [on for on in SETS if on != name]
        changes = [accuracy[method, rate, name, o] - accuracy["pre", "", "", o] for o in others]
        return fmean(changes)

    chosen: dict[str, list[float]] = {}
    for row in rows(report / "tables" / "tuning-choices.csv"):
        method, name = KEYS[row["method"]], row["downstream"]
        best = max(PLAIN.values(), key=lambda rate: accuracy[method, rate, name, name])
        assert row["setting"] == best
        assert float(row["RI_pts"]) == pytest.approx(ri(method, best, name), abs=1e-5)
        chosen.setdefault(row["method"], []).append(float(row["RI_pts"]))
    assert chosen.keys() == KEYS.keys() and {len(each) for each in chosen.values()} == {2}
    for row in rows(report / "tables" / "tuning.csv"):
        tuned = fmean(chosen[row["method"]])
        assert row["settings"] == "2" and float(row["mRI_tuned_pts"]) == pytest.approx(
            tuned, abs=1e-5
        )
        if row["method"] in PLAIN:
            rate = PLAIN[row["method"]]
            plain = fmean(ri(KEYS[row["method"]], rate, name) for name in DOWNSTREAMS)
            assert float(row["mRI_plain_pts"]) == pytest.approx(plain, abs=1e-5)
            assert float(row["gain_pts"]) == pytest.approx(tuned - plain, abs=1e-5)
    assert "With two settings for every method, " in (report / "index.html").read_text()
