"""The section on equal tuning: settings are chosen on held-out images alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import made_results
import numpy as np
import pytest
import stores

from engine.grid.attempts import Attempt
from engine.measures.rows import PRE
from engine.report import sections
from engine.report.results import Results
from engine.report.sections import tuning

N = 200
RATES = ("1e-4", "3e-4", "1e-3")
# Shares of images right by method and rate: held out of the set fine-tuned on, and on other sets.
SHARES = {
    ("fine_tune", "1e-4"): (0.6, 0.8), ("fine_tune", "3e-4"): (0.7, 0.6),
    ("fine_tune", "1e-3"): (0.9, 0.4), ("lwf", "1e-4"): (0.8, 0.7),
    ("lwf", "3e-4"): (0.6, 0.9), ("lwf", "1e-3"): (0.7, 0.5),
}  # fmt: skip
PLAIN = {"Rows": {"fine_tune": {"lr": 3e-4}, "lwf": {"lr": 0.001}}}


def results(folder: Path, key: str = "optimizer.lr", **values: Any) -> Results:
    """Two methods at three rates, with the first images of each file right."""

    def of_rate(rate: str) -> stores.Hits:
        def hits(method: str, downstream: str, on: str) -> np.ndarray:
            held_out, elsewhere = (0.5, 0.5) if method == PRE else SHARES[method, rate]
            return np.arange(N) < N * (held_out if downstream == on else elsewhere)

        return hits

    hits = {f"{key}={rate}": of_rate(rate) for rate in RATES}
    rows = stores.in_settings(folder, hits, ("fine_tune", "lwf"))
    return made_results.of_evaluations(rows, **{"holdout": True, "settings": PLAIN} | values)


def test_each_method_has_the_setting_that_is_best_on_held_out_images(tmp_path: Path) -> None:
    attempts = [
        Attempt(f"column-{name},optimizer.lr={rate}", "column", 0.0, 1800.0 * (k + 1), "cpu")
        for k, rate in enumerate(RATES)
        for name in stores.SETS
    ]
    section = tuning.section(results(tmp_path, attempts=attempts))
    assert section is not None and section.heading == (
        "With 3 settings for every method, LwF has the highest mRI: +20.0 points, 0.0 as its "
        "recipe has it"
    )
    methods, chosen = (table.data for table in section.tables)
    assert dict(zip(chosen["method"], chosen["setting"], strict=True)) == {
        "FT": "optimizer.lr=1e-3", "LwF": "optimizer.lr=1e-4"
    }  # fmt: skip
    assert len(chosen) == 2 * len(stores.SETS)
    rows = methods.set_index("method")
    assert list(rows.index) == ["LwF", "FT"] and list(rows["settings"]) == [3, 3]
    # RI: 100 times the share on the other sets, less the pre-trained model's 50.
    numbers = rows.drop(columns="settings").to_numpy().tolist()
    assert numbers[0] == pytest.approx([20, 0, 20, 80, 70])
    assert numbers[1] == pytest.approx([-10, 10, -20, 90, 70])
    _, hours = section.statements
    assert hours.startswith(
        "The jobs of all settings took 9.00 hours, those of one setting 1.50 to"
    )


def test_a_method_whose_plain_setting_was_not_tried_has_no_gain(tmp_path: Path) -> None:
    rows = {"fine_tune": {"lr": 0.5}, "lwf": {"lr": 0.001}}
    section = tuning.section(results(tmp_path, settings={"Rows": rows}))
    assert section is not None
    gains = section.tables[0].data.set_index("method")["gain_pts"]
    assert np.isnan(gains["FT"]) and gains["LwF"] == pytest.approx(20)


@pytest.mark.parametrize("values", [{"holdout": False}, {"key": "dataset.shots"}, {"settings": {}}])
def test_other_campaigns_have_no_such_section(tmp_path: Path, values: dict[str, Any]) -> None:
    given = results(tmp_path, **values)
    assert tuning.section(given) is None
    assert "tuning" not in [section.key for section in sections.of(given)]
