"""A measure and a section of a user's, as docs/numbers.md adds them."""

import re
from pathlib import Path

import made_results
import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
import stores

from engine.measures import behaviour
from engine.report import finish, sections

DOCUMENT = Path(__file__).parents[3] / "docs" / "numbers.md"


@pytest.fixture
def extended(monkeypatch):
    """The document's two programs have run."""
    monkeypatch.setattr(behaviour, "OF_IMAGES", dict(behaviour.OF_IMAGES))
    monkeypatch.setattr(sections, "SECTIONS", list(sections.SECTIONS))
    programs = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert len(programs) == 2
    for program in programs:
        exec(program, {})


def test_a_measure_is_a_function_and_a_section_is_one_too(tmp_path, extended):
    evaluations = stores.grid(tmp_path / "store", stores.random_hits(), ("fine_tune", "lwf"))
    rng, expected = np.random.default_rng(0), {}
    for row in evaluations:
        table = pq.read_table(row.path)
        p = rng.random(len(table)).astype(np.float32)
        right = table["top1"].to_numpy() == table["label"].to_numpy()
        expected[row.method, row.downstream, row.evaluated_on] = 100 * np.mean((p - right) ** 2)
        pq.write_table(stores.table(right, p_top1=p), row.path)
    path = finish.write_into(tmp_path / "report", made_results.of_evaluations(evaluations))
    read = {
        name: pandas.read_csv(path.parent / name) for name in ("behaviour.csv", "intervals.csv")
    }
    cells = read["behaviour.csv"].fillna({"downstream": ""})
    for row in cells.itertuples():
        key = row.method, row.downstream, row.evaluated_on
        assert row.brier_score == pytest.approx(expected[key], rel=1e-5)
    of_brier = read["intervals.csv"].query("quantity == 'brier_score'")
    assert len(of_brier) == 2 * 20 + 5, (
        "cells and means of two methods, and of the pre-trained model"
    )
    assert ((of_brier["low"] < of_brier["value"]) & (of_brier["value"] < of_brier["high"])).all()
    html = path.read_text("utf-8")
    assert " has the lowest Brier score</h2>" in html and 'data-figure="brier"' in html
    tables = {name: path.parent / "tables" / f"{name}.csv" for name in ("brier", "how-sure")}
    section, sure = (pandas.read_csv(file).set_index("method") for file in tables.values())
    for method, title in made_results.TITLES.items():
        mean = np.mean([expected[method, i, j] for i in "abc" for j in "abc" if i != j])
        assert section["brier_score_pct"][title] == pytest.approx(mean, rel=1e-5)
        assert sure["brier_score_pct"][title] == pytest.approx(mean, rel=1e-5)
