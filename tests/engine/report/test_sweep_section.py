"""The sections on a sweep and on equal tuning: no variant is chosen by test sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import made_results
import numpy as np
import pytest
import stores

from engine.measures.rows import PRE, Evaluation
from engine.report import headline, sections
from engine.report.results import Results, of_record
from engine.report.sections import sweep

LR = {"optimizer.lr=0.001": 0.4, "optimizer.lr=0.01": 0.5, "optimizer.lr=0.1": 0.7}
RATES = ("1e-4", "3e-4", "1e-3")
# Shares of images right by method and rate: held out of the set fine-tuned on, and on other sets.
SHARES = {
    ("fine_tune", "1e-4"): (0.6, 0.8), ("fine_tune", "3e-4"): (0.7, 0.6),
    ("fine_tune", "1e-3"): (0.9, 0.4), ("lwf", "1e-4"): (0.8, 0.7),
    ("lwf", "3e-4"): (0.6, 0.9), ("lwf", "1e-3"): (0.7, 0.5),
}  # fmt: skip
PLAIN = {"Rows": {"fine_tune": {"lr": 3e-4}, "lwf": {"lr": 0.001}}}


def swept(folder: Path, shares: dict[str, float], **values: Any) -> Results:
    """EWC in each setting, with two seeds. The share of images right elsewhere is the setting's;
    on the held-out images of the set fine-tuned on it is the lower the higher that is."""
    rng = np.random.default_rng(3)
    rows: list[Evaluation] = []
    for number, (setting, share) in enumerate(shares.items()):

        def hits(method: str, downstream: str, on: str, share: float = share) -> np.ndarray:
            level = 0.5 if method == PRE else 1.2 - share if downstream == on else share
            return rng.random(150) < level

        of = stores.several_seeds(folder / str(number), lambda _: hits, (0, 7), methods=("ewc",))
        rows += [replace(r, setting=setting) for r in of if r.method != PRE]
        rows += [r for r in of if r.method == PRE and not number]
    of_sweep = {
        setting: {key: float(value) for key, value in (w.split("=") for w in setting.split(","))}
        for setting in shares
    }
    given = {"methods": {"ewc": "EWC"}, "sweep": of_sweep, "holdout": True} | values
    return of_record(made_results.record(rows, **given), rows)


def test_a_variant_is_chosen_on_held_out_images_only(tmp_path: Path) -> None:
    given = swept(tmp_path, LR)
    section, tuned = sweep.variants(given), sweep.tuned(given)
    assert section is not None and tuned is not None
    variants, choices = section.tables[0].data, tuned.tables[1].data
    assert list(variants["optimizer.lr"]) == [0.001, 0.01, 0.1], "the order of the sweep"
    assert variants["mRI_pts"].iloc[2] == pytest.approx(20, abs=5) == variants["mRI_pts"].max()
    assert (variants["mRI_low"] < variants["mRI_pts"]).all()
    assert (variants["mRI_pts"] < variants["mRI_high"]).all()
    assert list(choices["setting"]) == ["optimizer.lr=0.001"] * 3, "highest on held-out images"
    assert "selection on the test sets" in section.text and "means over 2 seeds" in section.text
    assert headline.heading("the title", given) == "the title"
    assert headline.lead(given).startswith("Every variant fine-tunes the pre-trained lite0 on each")
    keys = [each.key for each in sections.of(given)]
    assert keys[:2] == ["sweep", "tuning"] and "ranking" not in keys
    (svg,) = made_results.drawn(section).values()
    assert svg.count('aria-roledescription="bar"') == 3
    assert sweep.tuned(replace(given, record=replace(given.record, holdout=False))) is None


def test_variants_are_named_by_what_varies(tmp_path: Path) -> None:
    shares = {f"method.lam={a},train.epochs={b}": 0.4 for a in ("1.0", "2.0") for b in (1, 3)}
    section = sweep.variants(swept(tmp_path, shares))
    assert section is not None
    assert list(section.figures[0].data["method"])[1] == "lam 1.0, epochs 3.0"
    assert "of EWC in method.lam, train.epochs" in section.text


def two_methods(folder: Path, key: str = "optimizer.lr", **values: Any) -> Results:
    """Two methods at three rates, with the first images of each file right."""

    def of_rate(rate: str) -> stores.Hits:
        def hits(method: str, downstream: str, on: str) -> np.ndarray:
            held_out, elsewhere = (0.5, 0.5) if method == PRE else SHARES[method, rate]
            return np.arange(200) < 200 * (held_out if downstream == on else elsewhere)

        return hits

    hits = {f"{key}={rate}": of_rate(rate) for rate in RATES}
    rows = stores.in_settings(folder, hits, ("fine_tune", "lwf"))
    return made_results.of_evaluations(rows, **{"holdout": True, "settings": PLAIN} | values)


def test_each_method_has_the_setting_that_is_best_on_held_out_images(tmp_path: Path) -> None:
    section = sweep.tuned(two_methods(tmp_path))
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


def test_a_method_whose_plain_setting_was_not_tried_has_no_gain(tmp_path: Path) -> None:
    section = sweep.tuned(two_methods(tmp_path, settings={"Rows": {"lwf": {"lr": 0.001}}}))
    assert section is not None
    gains = section.tables[0].data.set_index("method")["gain_pts"]
    assert np.isnan(gains["FT"]) and gains["LwF"] == pytest.approx(20)


@pytest.mark.parametrize("values", [{"holdout": False}, {"key": "dataset.shots"}])
def test_other_campaigns_are_not_tuned(tmp_path: Path, values: dict[str, Any]) -> None:
    assert sweep.tuned(two_methods(tmp_path, **values)) is None
