"""The arithmetic of every prediction, beside what others measured."""

import dataclasses

import pytest

from bench import published_throughput
from engine.cost import rates
from engine.cost.rates import Fit

TRUE = Fit(full_rate=0.5, half_rate=0.9, eager=4.0, compiled=2.5, training=1.6)


@pytest.mark.exhaustive
def test_published_throughputs_are_predicted_within_a_quarter(capsys):
    """By constants that the row's architecture, or its GPU, had no part in as well."""
    rows = list(published_throughput.rows())
    assert len(rows) == 72 and all(0.6 < row["ratio"] < 1.6 for row in rows)
    printed = capsys.readouterr().out
    assert "median error, fitted without the row's architecture" in printed
    # Only one GPU has the full rate, and only one was trained on: without it nobody knows.
    assert "without RTX PRO 6000" not in printed and "without RTX 4090" in printed


@pytest.fixture
def made() -> list[published_throughput.Throughput]:
    """Throughputs of two models, exactly as the constants of `TRUE` say."""
    rows = []
    for model, operations, elements in (("a", 1e9, 3e6), ("b", 3e10, 2e7)):
        for gpu in rates.CONSUMER:
            for kind in ("inference", "inference compiled", "training"):
                row = published_throughput.Throughput(model, gpu, kind, 1.0, operations, elements)
                rows.append(dataclasses.replace(row, published=row.predicted(TRUE)))
    return rows


def test_the_constants_are_found_again(made):
    found = published_throughput.fitted(made)
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(TRUE), rel=0.02)
