"""The section of single answers: means over models, shares that add up, and the figure."""

from __future__ import annotations

import numpy as np
import pytest
from made_results import TITLES, drawn, results, row
from stores import SETS

from engine.measures.rows import Agreement
from engine.report.sections import agreement


@pytest.fixture(scope="module")
def of_grid(tmp_path_factory):
    return results(tmp_path_factory.mktemp("grid"))


def test_shares_are_means_over_the_models_trained_elsewhere(of_grid):
    table = agreement.section(of_grid).tables[0].data
    assert len(table) == len(TITLES) * (len(SETS) + 1)
    for method, title in TITLES.items():
        for name in (*SETS, "up"):
            rows = [
                r
                for r in of_grid.sure.behaviour
                if r.method == method and r.evaluated_on == name and not r.on_downstream
            ]
            line = row(table, method=title, evaluated_on=name)
            assert line["models"] == len(rows) == 2 + (name == "up")
            for share in Agreement._fields:
                assert line[share] == pytest.approx(np.mean([getattr(r, share) for r in rows]))
                assert line[f"{share}_low"] <= line[share] <= line[f"{share}_high"]


def test_shares_add_up_to_accuracy_before_and_after(of_grid):
    table = agreement.section(of_grid).tables[0].data
    accuracies = {
        (r.method, r.downstream, r.evaluated_on): r.accuracy for r in of_grid.grid.accuracy
    }
    line = row(table, method="FT", evaluated_on="b")
    assert line["both_right"] + line["lost"] == pytest.approx(accuracies["pre", "", "b"])
    after = np.mean([accuracies["fine_tune", i, "b"] for i in "ac"])
    assert line["both_right"] + line["gained"] == pytest.approx(after)


def test_the_statement_names_who_changes_most_and_least(of_grid):
    section = agreement.section(of_grid)
    table = section.tables[0].data
    changed = {
        title: 100 - table[(table["method"] == title) & (table["evaluated_on"] != "up")][
            "same_top1"
        ].mean()
        for title in TITLES.values()
    }  # fmt: skip
    most = max(changed, key=lambda title: changed[title])
    (text,) = section.statements
    assert f": {most} changes {changed[most]:.1f}% of the answers" in text


def test_the_figure_can_be_drawn_with_a_bar_a_share(of_grid):
    section = agreement.section(of_grid)
    (svg,) = drawn(section).values()
    assert svg.count('aria-roledescription="bar"') == 2 * 4 * 3
