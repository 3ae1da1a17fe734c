"""A metric and a section of a user's extra, as docs/extend.md has them."""

import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest

from engine.measures import scores
from engine.report import finish
from helpers import made_results, stores

DOCUMENT = Path(__file__).parents[3] / "docs" / "extend.md"


@pytest.fixture
def extended(monkeypatch):
    """A module of the document's metric and section."""
    monkeypatch.setattr(scores, "METRICS", dict(scores.METRICS))
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    programs = [block for block in blocks if "overconfidence" in block]
    assert len(programs) == 2
    module = ModuleType("overconfidence")
    for program in programs:
        exec(program, vars(module))
    return module


def test_a_measure_is_a_function_and_a_section_is_one_too(tmp_path, extended):
    evaluations = stores.grid(tmp_path / "store", stores.random_hits(), ("fine_tune", "lwf"))
    rng, expected = np.random.default_rng(0), {}
    for row in evaluations:
        table = pq.read_table(row.path)
        p = rng.random(len(table)).astype(np.float32)
        right = table["top1"].to_numpy() == table["label"].to_numpy()
        expected[row.method, row.downstream, row.evaluated_on] = 100 * np.mean(p - right)
        pq.write_table(stores.table(right, p_top1=p), row.path)
    results = replace(made_results.of_evaluations(evaluations), extras={"mine": extended})
    path = finish.write_into(tmp_path / "report", results)
    read = {
        name: pandas.read_csv(path.parent / name) for name in ("behaviour.csv", "intervals.csv")
    }
    cells = read["behaviour.csv"].fillna({"downstream": ""})
    for row in cells.itertuples():
        key = row.method, row.downstream, row.evaluated_on
        assert row.overconfidence_pts == pytest.approx(expected[key], abs=1e-4)
    rows = read["intervals.csv"].query("quantity == 'overconfidence'")
    assert len(rows) == 2 * 20 + 5, "cells and means of two methods, and of the pretrained model"
    assert ((rows["low"] < rows["value"]) & (rows["value"] < rows["high"])).all()
    html = path.read_text("utf-8")
    assert " has the lowest overconfidence</h2>" in html
    assert "overconfidence: mean confidence less accuracy" in html, "its caption"
    tables = {
        name: path.parent / "tables" / f"{name}.csv" for name in ("overconfidence", "differences")
    }
    section, sure = (pandas.read_csv(file).set_index("method") for file in tables.values())
    for method in made_results.TITLES:
        mean = np.mean([expected[method, i, j] for i in "abc" for j in "abc" if i != j])
        assert section["overconfidence_pts"][method] == pytest.approx(mean, abs=1e-4)
        assert sure["overconfidence_pts"][method] == pytest.approx(mean, abs=1e-4)
