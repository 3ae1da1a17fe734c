"""Banks that do not fit and batches that do not fit: what is read, loaded and kept in memory."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from evaluations import (
    IMAGES,
    SET,
    Counted,
    expected,
    fresh,
    mixes,
    room_for_models,
    same,
    small_slices,
    tables,
)
from grids import grid

from engine.evaluation import bank
from engine.grid import jobs
from engine.grid.columns import Column
from engine.measures.calibration import BINS, TEMPERATURES

__all__ = ["expected", "fresh", "grid", "mixes", "small_slices"]


@pytest.mark.parametrize(("room", "reads"), [(2, 3), (8, 1)])
def test_a_set_is_read_once_for_as_many_models_as_fit(
    grid, fresh, mixes, expected, small_slices, monkeypatch, caplog, room, reads
):
    monkeypatch.setattr(bank, "free_memory", lambda device: room_for_models(grid, mixes, room))
    counted = Counted(monkeypatch)
    caplog.set_level(logging.INFO)
    assert same(tables(fresh.builder(), mixes), expected)
    assert (counted.images, counted.models) == (reads * IMAGES, 6)  # the other two are heads
    message = f"6 models do not fit together: the set is read once for each of {reads} groups"
    assert (message in caplog.text) == (reads > 1)


def test_calibration_costs_no_pass_and_leaves_the_other_columns(
    fresh, mixes, expected, small_slices, monkeypatch
):
    counted = Counted(monkeypatch)
    calibrated = tables(fresh.builder("evaluate.calibration=true"), mixes)
    assert (counted.images, counted.models) == (IMAGES, 6)
    for plain, more in zip(expected, calibrated, strict=True):
        assert more.select(plain.column_names).equals(plain)
        confidences = np.array(more["p_top1_scaled"].to_pylist())
        at_1 = confidences[:, TEMPERATURES.tolist().index(1.0)]
        np.testing.assert_array_equal(at_1, plain["p_top1"].to_numpy())
        assert (np.diff(confidences, axis=1) <= 1e-6).all()
        # A slice has sums of its own, by five classes and the bins.
        lengths = [len(sums) for sums in more["class_gaps"].to_pylist()]
        assert [k for k, length in enumerate(lengths) if length] == [0, 16, 32]
        assert set(lengths) == {0, 5 * BINS}


def test_a_share_of_memory_is_taken_after_the_set_has_its_own(fresh, mixes, monkeypatch):
    builder, opened = fresh.builder(), []
    monkeypatch.setattr(
        bank, "free_memory", lambda device: opened.append(SET in builder.sets._sources) or 1e12
    )
    tables(builder, mixes[:2])
    assert opened == [True]


def test_a_column_holds_one_set_at_a_time(grid, monkeypatch):
    builder, held = grid.builder(), []

    def evaluate(run, mixes, names, split) -> None:
        (name,) = names
        run.sets.source(name)
        held.append(set(run.sets._sources))

    monkeypatch.setattr(jobs, "builders", lambda *_: [builder])
    monkeypatch.setattr(jobs.passes, "evaluate", evaluate)
    monkeypatch.setattr(jobs.progress, "advance", lambda *_: None)
    column = Column("outline", "outline")
    monkeypatch.setattr(builder, "build", lambda: None)
    monkeypatch.setattr(builder, "entries", list)
    monkeypatch.setattr(builder, "remove_snapshots", lambda: None)
    jobs.column(SimpleNamespace(path=None, columns=[column]), column, grid.device)
    assert held == [{"upstream"}, {"outline"}, {"tinted"}, {"few"}]
    assert not builder.sets._sources
