"""The section on a sweep: its tables, its figure, and that no variant is chosen by test sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import made_results
import numpy as np
import pandas
import pytest
import stores

from engine.measures.rows import PRE, Evaluation
from engine.report import finish, headline, sections
from engine.report.results import Results, of_record
from engine.report.section import Figure, Section
from engine.report.sections import sweep

N = 150
LR = {"optimizer.lr=0.001": 0.4, "optimizer.lr=0.01": 0.5, "optimizer.lr=0.1": 0.7}


def results(folder: Path, shares: dict[str, float], **values: Any) -> Results:
    """EWC in each setting, with two seeds. The share of images right elsewhere is the setting's;
    on the held-out images of the set fine-tuned on it is the lower the higher that is."""
    rng = np.random.default_rng(3)
    rows: list[Evaluation] = []
    for number, (setting, share) in enumerate(shares.items()):

        def hits(method: str, downstream: str, on: str, share: float = share) -> np.ndarray:
            level = 0.5 if method == PRE else 1.2 - share if downstream == on else share
            return rng.random(N) < level

        of = stores.several_seeds(folder / str(number), lambda _: hits, (0, 7), methods=("ewc",))
        rows += [replace(r, setting=setting) for r in of if r.method != PRE]
        rows += [r for r in of if r.method == PRE and not number]
    of_sweep = {
        setting: {key: float(value) for key, value in (w.split("=") for w in setting.split(","))}
        for setting in shares
    }
    given = {"methods": {"ewc": "EWC"}, "sweep": of_sweep, "holdout": True} | values
    return of_record(made_results.record(rows, **given), rows)


def made(given: Results) -> tuple[Section, Figure]:
    section = sweep.section(given)
    assert section is not None
    (figure,) = section.figures
    assert made_results.drawn(section)[figure.name].count("<path") > 3
    return section, figure


def test_a_variant_is_chosen_on_held_out_images_only(tmp_path: Path) -> None:
    given = results(tmp_path, LR)
    section, figure = made(given)
    variants, choices = (table.data for table in section.tables)
    assert list(variants["optimizer.lr"]) == [0.001, 0.01, 0.1], "the order of the sweep"
    assert variants["mRI_pts"].iloc[2] == pytest.approx(20, abs=5) == variants["mRI_pts"].max()
    assert (variants["mRI_low"] < variants["mRI_pts"]).all()
    assert (variants["mRI_pts"] < variants["mRI_high"]).all()
    assert list(choices["optimizer.lr"]) == [0.001] * 3, "highest on the set fine-tuned on"
    selection, chosen = section.statements
    assert "selection on the test sets" in selection and "calls none the best" in selection
    assert f"a mean RI of −{-choices['RI_pts'].mean():.1f} points" in chosen
    assert headline.heading("the title", given) == "the title"
    assert headline.lead(given).startswith("Every variant fine-tunes the pre-trained lite0 on each")
    keys = [each.key for each in sections.of(given)]
    assert keys[0] == "sweep" and "ranking" not in keys
    assert figure.spec["encoding"]["x"]["scale"]["type"] == "log"
    assert list(figure.data["x"]) == [0.001, 0.01, 0.1]


def test_without_a_holdout_none_is_chosen(tmp_path: Path) -> None:
    section, _ = made(results(tmp_path, LR, holdout=False))
    assert [table.name for table in section.tables] == ["sweep-variants"]
    assert section.statements[1].startswith("Nothing is held out of the sets fine-tuned on")


def test_a_second_key_is_the_colour(tmp_path: Path) -> None:
    shares = {f"method.lam={a},train.epochs={b}": 0.4 for a in ("1.0", "2.0") for b in (1, 3)}
    section, figure = made(results(tmp_path, shares))
    assert figure.spec["encoding"]["x"]["title"] == "method.lam"
    assert figure.spec["encoding"]["x"]["scale"].get("type") is None, "a decade"
    assert "a colour for each train.epochs" in figure.caption
    assert "every combination of method.lam, train.epochs" in section.text
    assert "Numbers are means over 2 seeds." in section.text


def test_the_tidy_table_has_a_row_a_seed(tmp_path: Path) -> None:
    given = results(tmp_path, LR)
    finish.write_into(tmp_path / "report", given)
    data = pandas.read_parquet(tmp_path / "report/sweep.parquet")
    assert len(data) == 3 * 2 * 3 * 4 and list(data)[:2] == ["optimizer.lr", "seed"]
    means = data.groupby(["optimizer.lr", "downstream", "evaluated_on"])["accuracy_after"].mean()
    cells = given.cells.set_index(["setting", "downstream", "evaluated_on"])["accuracy"]
    for (lr, *key), mean in means.items():
        assert mean == pytest.approx(cells[f"optimizer.lr={lr}", *key])
